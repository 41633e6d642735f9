"""The loader names whose fault a failure is, and loads the rest."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from novacron import API_VERSION, PluginLoadError, PluginManager, PluginSource, hookimpl, hookspec


def source(name: str, plugin: object, distribution: str = "") -> PluginSource:
    return PluginSource(
        name=name, distribution=distribution or f"dist-{name}", version="1", plugin=plugin
    )


def plugin(**members: Any) -> SimpleNamespace:
    return SimpleNamespace(NOVACRON_API=API_VERSION, **members)


def offering(name: str) -> SimpleNamespace:
    class Codec:
        pass

    Codec.name = name  # type: ignore[attr-defined]

    @hookimpl
    def novacron_register_compression() -> Any:
        return (Codec,)

    return plugin(novacron_register_compression=novacron_register_compression)


class FailsToImport(PluginSource):
    def load(self) -> object:
        raise ModuleNotFoundError("No module named 'absent'", name="absent")


def test_plugins_load_sorted_by_name_whatever_the_order_they_are_found_in() -> None:
    found = [source("b", offering("y")), source("a", offering("x"))]
    manager = PluginManager.load(sources=found)
    assert list(manager.plugins) == ["a", "b"]
    assert list(manager.providers("compression")) == ["x", "y"]


def test_two_distributions_with_one_name_are_both_named_and_neither_is_used() -> None:
    found = [source("a", offering("x"), "one"), source("a", offering("y"), "two")]
    manager = PluginManager.load(sources=[*found, source("b", offering("z"))])
    assert list(manager.plugins) == ["b"]
    assert "one and two" in manager.failures[0].cause
    assert "uninstall one of them" in manager.failures[0].cure


def test_a_missing_dependency_is_named_with_the_cure_and_the_rest_loads() -> None:
    broken = FailsToImport(name="a", distribution="acme-a", version="1", plugin=object())
    manager = PluginManager.load(sources=[broken, source("b", offering("x"))])
    assert "'absent'" in manager.failures[0].cause
    assert "acme-a" in manager.failures[0].cure
    assert list(manager.plugins) == ["b"]


def test_a_misspelt_hook_is_refused_and_the_right_name_suggested() -> None:
    @hookimpl
    def novacron_register_compresion() -> Any:
        return ()

    bad = plugin(novacron_register_compresion=novacron_register_compresion)
    manager = PluginManager.load(sources=[source("a", bad)])
    assert not manager.plugins
    assert "did you mean 'novacron_register_compression'" in manager.failures[0].cause


def test_an_optional_hook_of_a_package_that_is_not_installed_is_left_alone() -> None:
    @hookimpl(optionalhook=True)
    def novacron_register_what_nobody_declares() -> Any:
        return ()

    good = plugin(novacron_register_what_nobody_declares=novacron_register_what_nobody_declares)
    manager = PluginManager.load(sources=[source("a", good)], strict=True)
    assert list(manager.plugins) == ["a"]


def test_a_hook_with_a_wrong_argument_is_refused_with_the_arguments_name() -> None:
    @hookimpl
    def novacron_on_node_start(knot: object) -> None: ...

    bad = plugin(novacron_on_node_start=novacron_on_node_start)
    manager = PluginManager.load(sources=[source("a", bad)])
    assert "knot" in manager.failures[0].cause


@pytest.mark.parametrize("built_for", [None, 0, 99])
def test_a_plugin_for_another_api_version_is_left_out(built_for: int | None) -> None:
    other = offering("x")
    other.NOVACRON_API = built_for
    manager = PluginManager.load(sources=[source("a", other)])
    assert not manager.plugins
    assert "API version" in manager.failures[0].cause


def test_two_plugins_that_offer_one_provider_are_a_clash_that_names_both() -> None:
    manager = PluginManager.load(sources=[source("a", offering("x")), source("b", offering("x"))])
    assert list(manager.plugins) == ["a"]
    failure = manager.failures[0]
    assert failure.name == "b"
    assert "'a'" in failure.cause


def test_a_plugin_that_raises_while_it_registers_is_left_out_whole() -> None:
    @hookimpl
    def novacron_register_transport() -> Any:
        raise RuntimeError("no luck")

    bad = plugin(novacron_register_transport=novacron_register_transport)
    manager = PluginManager.load(sources=[source("a", bad)])
    assert not manager.plugins
    assert "no luck" in manager.failures[0].cause


def test_strict_loading_refuses_and_names_every_failure() -> None:
    bad = offering("x")
    bad.NOVACRON_API = 99
    with pytest.raises(PluginLoadError, match="API version 99"):
        PluginManager.load(sources=[source("a", bad)], strict=True)


def test_a_profile_that_names_an_absent_plugin_says_what_to_install() -> None:
    manager = PluginManager.load(sources=[source("a", offering("x"))], only=["a", "b"])
    assert manager.failures[0].cure == "pip install novacron-b"


def test_a_plugin_may_bring_hooks_of_its_own_which_others_answer() -> None:
    specs = ModuleType("specs")

    @hookspec
    def novacron_register_colour() -> Any: ...

    specs.novacron_register_colour = novacron_register_colour  # type: ignore[attr-defined]

    @hookimpl(specname="novacron_register_colour")
    def answer() -> str:
        return "green"

    brings = plugin(NOVACRON_HOOKSPECS=(specs,))
    answers = plugin(answer=answer)
    manager = PluginManager.load(sources=[source("z", brings), source("a", answers)])
    assert not manager.failures
    assert manager.call("novacron_register_colour") == [("a", "green", None)]


def test_tracing_times_each_call_by_hook_and_plugin() -> None:
    @hookimpl
    def novacron_register_findings() -> Any:
        return ()

    answers = plugin(novacron_register_findings=novacron_register_findings)
    manager = PluginManager.load(sources=[source("a", answers)], trace=True)
    manager.call("novacron_register_findings")
    timing = manager.timings["novacron_register_findings", "a"]
    assert timing.calls == 1
    assert timing.max_s >= 0
