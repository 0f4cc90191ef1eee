"""`trunkline plugins check`: the findings from reading a plugin's rows and trying its specs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from trunkline.errors import NotFoundError, UsageError
from trunkline.plugins import check
from trunkline.testing import check_plugin

AddPlugin = Callable[..., Path]

DATASET = "@hookimpl\ndef trunkline_datasets():\n    yield dataset('farm/x', {})\n"
ROW = "Row(id=f'r{i}', text='t', target='ab'[i % 2], group=f'g{i}')"
ROWS = f"load=lambda: [{ROW} for i in range(6)]"
NAN_ROWS = ROWS.replace("'ab'[i % 2]", "float('nan')")


def rows(old: str, new: str) -> str:
    return DATASET.format(ROWS.replace(old, new))


def recipe_with(transform: str, other: str = "") -> str:
    return (
        f"{DATASET.format('')}"
        "@hookimpl\ndef trunkline_recipes():\n"
        f"    yield recipe('farm/x', transforms=('farm/t',), {other})\n"
        "@hookimpl\ndef trunkline_transforms():\n"
        "    yield TransformSpec(name='farm/t', description='d', stage='clean', "
        f"apply=lambda row, rng: {transform})\n"
    )


BAD = {
    "failed": ("raise ValueError('x')", "importing module_of_fake_farm raises ValueError: x"),
    "license": (DATASET.format("license=' '"), "its license is empty"),
    "load raises": (DATASET.format("load=lambda: 1 / 0"), "load raises ZeroDivisionError"),
    "no rows": (rows("range(6)", "range(0)"), "load gives no rows"),
    "no Row": (rows(ROW, "'row'"), "row 0 ('row'): it is str, not Row"),
    "same id": (rows("f'r{i}'", "'r'"), "more than one row has the id 'r'"),
    "empty group": (rows("f'g{i}'", "''"), "its group is '', not a non-empty string"),
    "two groups": (rows("f'g{i}'", "f'g{i % 2}'"), "it has 2 groups"),
    "blank text": (rows("'t'", "' '"), "its text is ' '"),
    "number as label": (rows("'ab'[i % 2]", "1.0"), "its target is 1.0, not a non-empty string"),
    "one class": (rows("'ab'[i % 2]", "'a'"), "every row has the label 'a'"),
    "label unknown": (
        DATASET.format(f"labels=('a',), {ROWS}"),
        "its label 'b' is not among the data set's labels",
    ),
    "slice missing": (DATASET.format("slices=('country',)"), "it has no slice 'country'"),
    "not finite": (
        DATASET.format(f"task='regression', {NAN_ROWS}"),
        "its target is nan, not a finite number",
    ),
    "other order": (
        "import itertools\ncount = itertools.count()\n" + rows("f'r{i}'", "f'r{i}-{next(count)}'"),
        "load gives other rows, or another order, the second time",
    ),
    "transform raises": (recipe_with("1 / 0"), "apply raises ZeroDivisionError"),
    "transform gives no row": (recipe_with("['row']"), "apply gives something that is not a Row"),
    "clean gives two": (recipe_with("[row, row]"), "a clean step gives one or none"),
    "metric": (
        recipe_with("[row]", "metrics=('farm/m',)")
        + "@hookimpl\ndef trunkline_metrics():\n    yield MetricSpec(name='farm/m', "
        "description='d', task='classification', compute=lambda scored: 'high')",
        "compute gives 'high', not a finite number",
    ),
    "loss": (
        recipe_with("[row]", "loss='farm/l'")
        + "@hookimpl\ndef trunkline_losses():\n    yield LossSpec(name='farm/l', "
        "description='d', task='classification', build=lambda context: context.labels)",
        "build gives tuple, which can't be called",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_mistake_is_an_error(case: str, add_plugin: AddPlugin) -> None:
    body, message = BAD[case]
    add_plugin("farm", body)
    errors = [finding.message for finding in check("farm") if finding.level == "error"]
    assert any(message in error for error in errors), errors


def test_sound_plugin_has_no_findings(add_plugin: AddPlugin) -> None:
    add_plugin("farm")
    assert check("farm") == ()


def test_empty_plugin_is_a_warning(add_plugin: AddPlugin) -> None:
    add_plugin("farm", "")
    (finding,) = check("farm")
    assert (finding.level, finding.subject) == ("warning", "farm")


def test_loss_that_no_recipe_uses_is_a_warning(add_plugin: AddPlugin) -> None:
    add_plugin(
        "farm",
        "@hookimpl\ndef trunkline_losses():\n    yield LossSpec(name='farm/l', "
        "description='d', task='regression', build=lambda context: None)",
    )
    assert [finding.level for finding in check("farm")] == ["warning"]


@pytest.mark.parametrize(
    ("named", "nearest"),
    [
        ("metrics=('acuracy',)", "accuracy"),
        ("metrics=('core/macro_f',)", "macro_f1"),
        ("gate=Gate(metric='acc')", "accuracy"),
        ("baselines=('nearst',)", "nearest"),
        ("transforms=('lowercase',)", "lowercase-copy"),
        ("loss='crossentropy'", "cross_entropy"),
    ],
)
def test_misspelled_builtin_is_an_error_with_the_nearest_name(
    named: str, nearest: str, add_plugin: AddPlugin
) -> None:
    source = f"@hookimpl\ndef trunkline_recipes():\n    yield recipe('farm/x', {named})\n"
    add_plugin("farm", DATASET.format("") + source)
    (finding,) = check("farm")
    assert finding.level == "error"
    assert f"which doesn't exist; did you mean {nearest!r}?" in finding.message


def test_core_is_checked_like_any_plugin() -> None:
    assert check("core") == ()


def test_folder_is_checked_without_being_installed(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "uninstalled_farm.py").write_text("TRUNKLINE_API = 9\n")
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "x"\n[project.entry-points.trunkline]\nfarm = "uninstalled_farm"\n'
    )
    assert "written for TRUNKLINE_API 9" in check(tmp_path)[0].message


def test_folder_without_a_plugin_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="declares no plugin"):
        check(tmp_path)


def test_unknown_plugin_is_refused() -> None:
    with pytest.raises(NotFoundError, match="plugin or folder 'no-such-farm'"):
        check("no-such-farm")


# ------------------------------------------------------------------------- trunkline.testing


def test_check_plugin_fails_with_the_findings(add_plugin: AddPlugin) -> None:
    add_plugin("farm", rows("range(6)", "range(0)"))
    with pytest.raises(pytest.fail.Exception, match="farm/x: load gives no rows"):
        check_plugin("farm")


def test_check_plugin_passes_a_sound_plugin(add_plugin: AddPlugin) -> None:
    add_plugin("farm")
    check_plugin("farm")


def test_workspace_fixture_is_an_empty_folder_that_is_in_force(
    trunkline_workspace: Path,
) -> None:
    assert os.environ["TRUNKLINE_WORKSPACE"] == str(trunkline_workspace)
    assert list(trunkline_workspace.iterdir()) == []


def test_testing_module_imports_neither_host_nor_torch() -> None:
    code = (
        "import sys, trunkline.testing; "
        "assert not {'torch', 'trunkline.plugins'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
