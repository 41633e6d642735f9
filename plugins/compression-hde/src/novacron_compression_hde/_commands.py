"""``novacron store``: what this node keeps for later migrations. Works while the node runs, too."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from attrs import asdict
from novacron import ShellState

from novacron_compression_hde._images import add_image
from novacron_compression_hde._settings import Settings
from novacron_compression_hde._store import FOLDER, Entry, ReferenceStore

SECTION = "compression.hde"


def _store(state: ShellState) -> ReferenceStore:
    settings: Any = state.config.sections.get(SECTION) or Settings()
    store = ReferenceStore(state.config.node.state_dir / FOLDER, settings.store_bytes)
    store.adopt()
    return store


def _size(number: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"


def _age(then: float) -> str:
    seconds = max(0.0, time.time() - then)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _plain(entry: Entry) -> dict[str, Any]:
    return {
        "id": entry.id,
        **asdict(entry.about),
        "pages": entry.pages,
        "page_bytes": entry.page_size,
        "allocated_bytes": entry.allocated_bytes,
        "used": entry.used,
        "superseded": entry.superseded,
    }


@click.group("store")
def store_group() -> None:
    """See and change what this node keeps so that migrations to it send less."""


@store_group.command("list")
@click.pass_obj
def list_references(state: ShellState) -> None:
    """List the references: checkpoints of machines, parts of them, images."""
    entries = _store(state).entries()
    rows = [
        (
            entry.id,
            entry.about.kind + (" (superseded)" if entry.superseded else ""),
            entry.about.name or entry.about.machine,
            entry.about.tenant,
            entry.pages,
            _size(entry.allocated_bytes),
            _age(entry.used),
        )
        for entry in entries
    ]
    columns = ("id", "kind", "of", "tenant", "pages", "on disk", "used ago")
    state.show([_plain(entry) for entry in entries], "References", columns, rows)


@store_group.command("stats")
@click.pass_obj
def stats(state: ShellState) -> None:
    """Show how much is kept, by kind, and of which budget."""
    store = _store(state)
    entries = store.entries()
    kinds: Counter[str] = Counter(entry.about.kind for entry in entries)
    taken: Counter[str] = Counter()
    for entry in entries:
        taken[entry.about.kind] += entry.allocated_bytes
    budget = store.budget_bytes
    value = {
        "budget_bytes": budget,
        "allocated_bytes": taken.total(),
        "kinds": {
            kind: {"references": kinds[kind], "allocated_bytes": taken[kind]} for kind in kinds
        },
    }
    rows = [(kind, kinds[kind], _size(taken[kind])) for kind in sorted(kinds)]
    rows.append(("all", len(entries), f"{_size(taken.total())} of {_size(budget)}"))
    state.show(value, "Store", ("kind", "references", "on disk"), rows)


@store_group.command("prune")
@click.option(
    "--to-bytes", type=click.IntRange(0), help="What may stay; the configured budget if not given."
)
@click.pass_obj
def prune(state: ShellState, to_bytes: int | None) -> None:
    """Remove references over the budget: superseded ones first, then by last use."""
    removed = _store(state).prune(to_bytes)
    freed = sum(entry.allocated_bytes for entry in removed)
    if state.json:
        state.print_json({"removed": [entry.id for entry in removed], "freed_bytes": freed})
    else:
        click.echo(f"removed {len(removed)} references, {_size(freed)}")


@store_group.command("remove")
@click.argument("reference")
@click.pass_obj
def remove(state: ShellState, reference: str) -> None:
    """Remove one REFERENCE, by the id that `store list` shows."""
    entry = _store(state).remove(reference)
    if state.json:
        state.print_json({"removed": [entry.id], "freed_bytes": entry.allocated_bytes})
    else:
        click.echo(f"removed {entry.id}, {_size(entry.allocated_bytes)}")


@store_group.command("add")
@click.argument("image", type=click.Path(path_type=Path))
@click.option("--name", help="What to call it; the file's name if not given.")
@click.option("--tenant", default="", help="Only for machines of this tenant; else for all.")
@click.pass_obj
def add(state: ShellState, image: Path, name: str | None, tenant: str) -> None:
    """Keep the pages of an IMAGE: machines that were made from it then send less."""
    store = _store(state)
    with click.progressbar(length=1000, label=f"Adding {image.name}", file=sys.stderr) as bar:

        def show(done: int, total: int) -> None:
            bar.update(1000 * done // max(1, total) - bar.pos)

        added = add_image(store, image, name=name or image.name, tenant=tenant, progress=show)
    found = {entry.id: entry for entry in store.entries()}
    if added not in found:
        click.echo("the image is larger than the store's budget and was not kept", err=True)
        raise SystemExit(1)
    if state.json:
        state.print_json(_plain(found[added]))
    else:
        entry = found[added]
        click.echo(f"{added}: {entry.pages} pages, {_size(entry.allocated_bytes)}")


def commands() -> Sequence[click.Command]:
    return [store_group]
