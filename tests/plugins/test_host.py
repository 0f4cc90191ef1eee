"""A broken plugin is set aside with its reason; the others load."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from trunkline import __version__
from trunkline.contracts import TASKS
from trunkline.errors import NotFoundError, PluginError, UsageError
from trunkline.plugins import load_plugins
from trunkline.plugins.catalog import SPECS

AddPlugin = Callable[..., Path]

BROKEN = {
    "importerror": ("import no_such_module", "No module named 'no_such_module'"),
    "exits": ("raise SystemExit(3)", "exits (3)"),
    "asserts": ("assert False, 'never'", "AssertionError: never"),
    "exitszero": ("raise SystemExit(0)", "exits (0)"),
    "hardexit": ("import os\nos._exit(9)", "ends the program with os._exit(9)"),
    "importedexit": ("from os import _exit\n_exit(3)", "ends the program with os._exit(3)"),
    "aborts": ("import os\nos.abort()", "ends the program with os.abort()"),
    "becomes": ("import os\nos.execv('/bin/false', ['false'])", "ends the program with os.execv"),
    "interrupts": ("raise KeyboardInterrupt", "raises KeyboardInterrupt"),
    "generator": ("raise GeneratorExit", "raises GeneratorExit"),
    "cancels": ("import asyncio\nraise asyncio.CancelledError", "raises CancelledError"),
    "ownbase": ("class Stop(BaseException): pass\nraise Stop('x')", "raises Stop: x"),
    "recursion": ("def f(): f()\nf()", "raises RecursionError"),
    "memory": ("raise MemoryError", "raises MemoryError"),
    "syntax": ("def f(:", "raises SyntaxError"),
    "nullbyte": ("x = '\0'", "null bytes"),
    "unprintable": (
        "class Odd(Exception):\n    def __str__(self): raise ValueError\nraise Odd",
        "raises Odd: no message",
    ),
    "exitingtext": (
        "class Odd(Exception):\n    def __str__(self): raise SystemExit(0)\nraise Odd",
        "raises Odd: no message",
    ),
    "hardexitingtext": (
        "import os\nclass Odd(Exception):\n    def __str__(self): os._exit(0)\nraise Odd",
        "raises Odd: no message",
    ),
    "interruptingtext": (
        "class Odd(Exception):\n    def __str__(self): raise KeyboardInterrupt\nraise Odd",
        "raises Odd: no message",
    ),
    "oddnotes": ("class Odd(Exception): __notes__ = 5\nraise Odd('x')", "raises Odd: x"),
    "oddclass": (
        "class Meta(type):\n    def __getattribute__(one, name): raise SystemExit(0)\n"
        "class Odd(Exception, metaclass=Meta): pass\nraise Odd",
        "raises an exception that has no name",
    ),
    "group": ("raise ExceptionGroup('two', [OSError(), OSError()])", "raises ExceptionGroup: two"),
    "skips": ("import pytest\npytest.skip('no', allow_module_level=True)", "raises Skipped: no"),
    "stops": ("raise StopIteration", "raises StopIteration"),
    "apiraises": (
        "del TRUNKLINE_API\ndef __getattr__(name): raise OSError('gone')",
        "gone",
    ),
    "hookhardexit": (
        "import os\n@hookimpl\ndef trunkline_datasets():\n    yield os._exit(9)",
        "trunkline_datasets ends the program with os._exit(9)",
    ),
    "hookinterrupts": (
        "@hookimpl\ndef trunkline_datasets():\n    raise KeyboardInterrupt",
        "trunkline_datasets raises KeyboardInterrupt",
    ),
    "misspelt": (
        "@hookimpl\ndef trunkline_dataset():\n    yield",
        "did you mean trunkline_datasets",
    ),
    "unmarked": ("def trunkline_datasets():\n    yield", "lacks the marker"),
    "arguments": ("@hookimpl\ndef trunkline_datasets(config):\n    yield", "config"),
    "raising": ("@hookimpl\ndef trunkline_datasets():\n    yield 1 / 0", "ZeroDivisionError"),
    "hookexits": ("@hookimpl\ndef trunkline_datasets():\n    exit(4)", "exits (4)"),
    "wrongtype": ("@hookimpl\ndef trunkline_datasets():\n    yield 'rows'", "not a DatasetSpec"),
    "nothing": ("@hookimpl\ndef trunkline_datasets():\n    pass", "gives nothing"),
    "single": (
        "@hookimpl\ndef trunkline_datasets():\n    return dataset('single/a')",
        "gives one DatasetSpec; yield each",
    ),
    "exitingrepr": (
        "import os\nclass Odd:\n    def __repr__(self): os._exit(0)\n"
        "@hookimpl\ndef trunkline_datasets():\n    yield dataset('DOMAIN/x', description=Odd())",
        "ends the program with os._exit(0)",
    ),
    "unqualified": (
        "@hookimpl\ndef trunkline_datasets():\n    yield dataset('other/letters')",
        "'other/letters' in trunkline_datasets is not qualified by its domain",
    ),
    "twice": (
        "@hookimpl\ndef trunkline_datasets():\n    yield from [dataset('twice/a')] * 2",
        "yields 'twice/a' 2 times",
    ),
    "Upper": ("", "'Upper' is not a valid domain"),
    "base": ("", "'base' is reserved"),
}


@pytest.mark.parametrize("domain", BROKEN)
def test_broken_plugin_is_shown_as_failed_with_its_reason(
    domain: str, add_plugin: AddPlugin
) -> None:
    source, reason = BROKEN[domain]
    add_plugin(domain, source)
    plugin = load_plugins().plugin(domain)
    assert plugin.status == "failed"
    assert reason in (plugin.reason or "")
    assert "\n" not in (plugin.reason or "")
    assert "Traceback" in (plugin.traceback or "")


def test_good_plugin_is_loaded_beside_all_the_broken_ones(add_plugin: AddPlugin) -> None:
    for domain, (source, _) in BROKEN.items():
        add_plugin(domain, source)
    add_plugin("good")
    catalog = load_plugins()
    assert catalog.plugin("good").status == "loaded"
    assert catalog.recipe("good/letters").dataset == "good/letters"


def test_builtins_are_the_plugin_core() -> None:
    plugin = load_plugins().plugin("core")
    assert (plugin.distribution, plugin.version, plugin.status) == (
        "trunkline",
        __version__,
        "loaded",
    )
    assert "accuracy" in plugin.metrics
    assert "majority" in plugin.baselines
    assert plugin.tasks == TASKS


def test_another_plugin_of_the_name_core_is_refused(add_plugin: AddPlugin) -> None:
    add_plugin("core")
    core, other = (one for one in load_plugins().plugins if one.domain == "core")
    assert (core.status, other.status) == ("loaded", "failed")
    assert "reserved for the built-ins" in (other.reason or "")


def test_plugin_lists_what_it_contributes(add_plugin: AddPlugin) -> None:
    add_plugin("good")
    plugin = load_plugins().plugin("good")
    assert plugin.counts == dict.fromkeys(SPECS, 1)
    assert (plugin.distribution, plugin.version, plugin.api) == ("fake-good", "1.0", 1)
    assert plugin.losses == ("good/soft_margin",)


def test_traceback_shows_the_plugins_own_line(add_plugin: AddPlugin) -> None:
    add_plugin("raising", BROKEN["raising"][0])
    assert "yield 1 / 0" in (load_plugins().plugin("raising").traceback or "")


@pytest.mark.parametrize(
    ("head", "reason"),
    [("", "declares no TRUNKLINE_API"), ("TRUNKLINE_API = 2", "written for TRUNKLINE_API 2")],
)
def test_other_contract_number_is_refused(head: str, reason: str, add_plugin: AddPlugin) -> None:
    add_plugin("old", "", head=head)
    assert reason in (load_plugins().plugin("old").reason or "")


def test_unreadable_entry_points_file_harms_only_its_distribution(
    add_plugin: AddPlugin, site: Path
) -> None:
    add_plugin("torn")
    (site / "fake_torn-1.0.dist-info" / "entry_points.txt").write_text("[trunkline]\ntorn\n")
    add_plugin("good")
    catalog = load_plugins()
    assert catalog.plugin("good").status == "loaded"
    assert "can't be parsed" in (catalog.plugin("fake-torn").reason or "")


# ---------------------------------------------------------------------------------- blocking


def test_blocked_plugin_is_never_imported(add_plugin: AddPlugin) -> None:
    marker = add_plugin("good")
    assert load_plugins(block=["good"]).plugin("good").status == "blocked"
    assert not marker.exists()


def test_plugin_that_is_not_blocked_is_imported(add_plugin: AddPlugin) -> None:
    marker = add_plugin("good")
    load_plugins()
    assert marker.exists()


def test_no_plugins_blocks_all_but_the_builtins(add_plugin: AddPlugin) -> None:
    add_plugin("good")
    core, *others = load_plugins(no_plugins=True).plugins
    assert (core.domain, core.status) == ("core", "loaded")
    assert {plugin.status for plugin in others} == {"blocked"}


def test_builtins_can_not_be_blocked() -> None:
    with pytest.raises(UsageError, match="'core' can't be blocked"):
        load_plugins(block=["core"])


def test_blocking_an_unknown_plugin_names_the_nearest(add_plugin: AddPlugin) -> None:
    add_plugin("gardening")
    with pytest.raises(NotFoundError) as caught:
        load_plugins(block=["gardenning"])
    assert "'gardening'" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("value", "loaded"),
    [("", set()), ("one", {"one"}), ("one, two", {"one", "two"}), (",two,", {"two"})],
)
def test_variable_names_the_only_plugins_that_are_loaded(
    value: str, loaded: set[str], add_plugin: AddPlugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    for domain in ("one", "two"):
        add_plugin(domain)
    monkeypatch.setenv("TRUNKLINE_LOAD_PLUGINS", value)
    plugins = load_plugins().plugins
    assert {plugin.domain for plugin in plugins if plugin.status == "loaded"} == {"core", *loaded}


def test_variable_that_names_an_unknown_plugin_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUNKLINE_LOAD_PLUGINS", "no-such-domain")
    with pytest.raises(NotFoundError, match="no-such-domain"):
        load_plugins()


# ------------------------------------------------------------------------------------ strict


def test_strict_raises_on_a_failed_plugin_and_names_it(add_plugin: AddPlugin) -> None:
    add_plugin("raising", BROKEN["raising"][0])
    with pytest.raises(PluginError, match=r"raising: .*ZeroDivisionError"):
        load_plugins(strict=True)


def test_strict_accepts_good_and_blocked_plugins(
    add_plugin: AddPlugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_plugin("good")
    add_plugin("raising", BROKEN["raising"][0])
    monkeypatch.setenv("TRUNKLINE_LOAD_PLUGINS", "good")
    assert load_plugins(strict=True).plugin("good").status == "loaded"


# ----------------------------------------------------------------------- cost and side effects


def test_hook_calls_are_traced_on_stderr(
    add_plugin: AddPlugin,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    add_plugin("good")
    monkeypatch.setenv("TRUNKLINE_TRACE_HOOKS", "1")
    load_plugins()
    assert "trunkline: good: trunkline_recipes is called" in capsys.readouterr().err


def test_loading_imports_no_torch(add_plugin: AddPlugin, site: Path) -> None:
    add_plugin("good")
    code = (
        "import sys; from trunkline.plugins import load_plugins; "
        "assert load_plugins().plugin('good').status == 'loaded'; "
        "sys.exit(', '.join({'torch', 'transformers', 'peft'} & set(sys.modules)))"
    )
    path = os.pathsep.join((str(site), os.environ.get("PYTHONPATH", "")))
    environment = os.environ | {"PYTHONPATH": path, "TRUNKLINE_LOAD_PLUGINS": "good"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.stderr.strip() == ""
