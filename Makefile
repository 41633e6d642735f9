# Everything here prepares itself: `make demo` and `make test` need make, python3 and pip.
SHELL := /bin/sh
PYTHON ?= python3

.PHONY: help setup demo test check docs fuzz lock coverage clean

help:  ## Show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18

setup:  ## Make .venv with everything in it
	@$(PYTHON) scripts/bootstrap

demo: setup  ## Move a running machine between two nodes, there and back
	@.venv/bin/novacron demo $(ARGS)

test:  ## All checks and all tests, set-up included
	@$(PYTHON) scripts/test $(ARGS)

check:  ## The quick part of `make test`: lint, types, arrows, documentation
	@$(PYTHON) scripts/test --checks $(ARGS)

docs: setup  ## Build the documentation into build/site
	@.venv/bin/python scripts/build-docs

fuzz: setup  ## Fuzz every target for 30 minutes each (SECONDS=1800)
	@.venv/bin/python scripts/fuzz --seconds $(or $(SECONDS),1800)

lock:  ## Renew constraints.txt (ARGS=--upgrade for newer versions)
	@$(PYTHON) scripts/bootstrap --only-uv
	@.tools/bin/uv run --quiet --no-project --python '>=3.11' scripts/lock $(ARGS)

coverage: setup  ## Tests with a line-by-line report in build/coverage
	@.venv/bin/pytest -n 2 --dist loadgroup --cov --cov-report=html:build/coverage

clean:  ## Remove what was made, the environment included
	rm -rf .venv .tools build site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage*
