"""`trunkline plugins check` in an interpreter of its own: crashes, hangs, folders and wheels."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from cli_runner import invoke
from tiny_base import make_tiny_base
from trunkline.errors import NotFoundError, UsageError
from trunkline.plugins import Finding, check
from trunkline.testing import check_plugin

pytestmark = pytest.mark.merge

AddPlugin = Callable[..., Path]

DATASET = "@hookimpl\ndef trunkline_datasets():\n    yield dataset('farm/x', load={})\n"
CRASH = "lambda: __import__('ctypes').CDLL(None)._exit(0)"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "import ctypes\nctypes.CDLL(None)._exit(0)",
            r"importing module_of_fake_farm ended the interpreter \(exit code 0\)",
        ),
        (
            "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
            r"importing module_of_fake_farm ended the interpreter \(SIGKILL\)",
        ),
        (DATASET.format(CRASH), r"reading farm/x ended the interpreter \(exit code 0\)"),
    ],
    ids=["exit", "signal", "load"],
)
def test_plugin_that_ends_the_interpreter_is_named_with_the_stage(
    body: str, message: str, add_plugin: AddPlugin
) -> None:
    add_plugin("farm", body)
    (finding,) = check("farm")
    assert (finding.level, finding.subject) == ("error", "farm")
    assert re.match(message, finding.message)


def test_plugin_that_hangs_is_named_after_the_timeout(add_plugin: AddPlugin) -> None:
    add_plugin("farm", "import time\ntime.sleep(600)")
    stages: list[str] = []
    (finding,) = check("farm", timeout=15, on_stage=stages.append)
    assert "importing module_of_fake_farm takes longer than 15 s" in finding.message
    assert stages == ["importing module_of_fake_farm"]


def test_output_of_a_plugin_is_not_taken_for_findings(add_plugin: AddPlugin) -> None:
    noise = "import os, sys\nos.write(1, b'{\"done\": true}\\n')\nsys.__stdout__.write('x\\n')\n"
    add_plugin("farm", noise + "raise ValueError('late')")
    (finding,) = check("farm")
    assert "raises ValueError: late" in finding.message


# -------------------------------------------------------------------------------------- folders


def make_folder(folder: Path, code: str, *, domain: str = "farm", data: str = "") -> Path:
    """A project whose package ``barn`` reads ``rows.csv`` beside it."""
    package = folder / "src" / "barn"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(code)
    (package / "rows.csv").write_text("a\nb\n")
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "barn"\nversion = "1"\n'
        f'[project.entry-points.trunkline]\n{domain} = "barn"\n{data}'
    )
    return folder


READER = """
from pathlib import Path
from trunkline.contracts import DatasetSpec, Row
from trunkline.hookspecs import hookimpl

TRUNKLINE_API = 1

def load():
    texts = (Path(__file__).parent / "rows.csv").read_text().split()
    return [
        Row(id=f"{n}", text=f"{n}", target=texts[n % 2], group=f"{n}") for n in range(6)
    ]

@hookimpl
def trunkline_datasets():
    yield DatasetSpec(
        name="farm/rows", description="d", task="classification", load=load, license="l",
        source="s", grouping="g",
    )
"""


def test_file_that_is_missing_in_the_wheel_is_named_with_the_cure(
    tmp_path: Path, add_plugin: AddPlugin
) -> None:
    add_plugin("farm", distribution="farm-owner")
    folder = make_folder(tmp_path / "barn", READER)
    before = sorted(folder.rglob("*"))
    findings = check(folder)
    text = "\n".join(finding.message for finding in findings)
    assert "'barn/rows.csv'; the folder has barn/rows.csv but the wheel does not" in text
    assert 'barn = ["*.csv"]' in text
    assert "once installed, it is not loaded: the domain 'farm' belongs to farm-owner 1.0" in text
    assert sorted(folder.rglob("*")) == before


@pytest.mark.slow
def test_folder_whose_wheel_contains_its_data_passes(tmp_path: Path) -> None:
    data = '[tool.setuptools.package-data]\nbarn = ["*.csv"]\n'
    folder = make_folder(tmp_path / "barn", READER, data=data)
    (folder / "build" / "lib" / "barn").mkdir(parents=True)  # of an older build
    assert check(folder) == ()


def test_folder_that_can_not_be_built_is_an_error_beside_the_findings_of_its_code(
    tmp_path: Path,
) -> None:
    folder = make_folder(tmp_path / "barn", "TRUNKLINE_API = 9", data="[tool.setuptools]\nx = 1\n")
    built, loaded = check(folder)
    assert "pip could not build the wheel" in built.message
    assert "written for TRUNKLINE_API 9" in loaded.message


def test_folder_without_a_plugin_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="declares no plugin"):
        check(tmp_path)


def test_unknown_plugin_is_refused() -> None:
    with pytest.raises(NotFoundError, match="plugin or folder 'no-such-farm'"):
        check("no-such-farm")


# ------------------------------------------------------------------------------- claims, fixtures


def test_distribution_that_claims_an_owned_domain_is_an_error(
    add_plugin: AddPlugin, site: Path
) -> None:
    add_plugin("farm", "", distribution="farm-owner")
    os.utime(site / "farm_owner-1.0.dist-info", (1, 1))
    os.utime(site / "farm_owner-1.0.dist-info/METADATA", (1, 1))
    add_plugin("farm", "", distribution="another")
    assert Finding.error(
        "another",
        "the domain 'farm' belongs to farm-owner 1.0, which was installed first; "
        "uninstall one of them, or name the owner in trunkline.toml",
    ) in check("farm")


def test_check_plugin_fails_with_the_findings(add_plugin: AddPlugin) -> None:
    add_plugin("farm", "raise ValueError('no')")
    with pytest.raises(pytest.fail.Exception, match=r"farm: importing .* raises ValueError: no"):
        check_plugin("farm")


def test_check_plugin_passes_a_plugin_with_warnings_only(add_plugin: AddPlugin) -> None:
    add_plugin("farm", "")
    with pytest.warns(UserWarning, match="farm: it contributes nothing"):
        check_plugin("farm")


def test_check_plugin_counts_lengths_with_the_tokenizer_of_a_base(
    add_plugin: AddPlugin, tmp_path: Path
) -> None:
    base = str(make_tiny_base(tmp_path / "tiny"))
    row = "Row(id=str(i), text=f'text {i}', target='long ' * 40, group=str(i))"
    rows = f"lambda: [{row} for i in range(9)]"
    add_plugin(
        "farm",
        "@hookimpl\ndef trunkline_datasets():\n"
        f"    yield dataset('farm/x', task='generation', load={rows})\n"
        "@hookimpl\ndef trunkline_recipes():\n"
        "    yield recipe('farm/x', task='generation', gate=Gate(metric='exact_match'))\n",
    )
    with pytest.raises(pytest.fail.Exception, match="max_new_tokens = 32 would cut it off"):
        check_plugin("farm", base=base)


@pytest.mark.parametrize(("body", "code"), [("", 0), ("raise SystemExit(0)", 1)])
def test_exit_code_of_the_command(body: str, code: int, add_plugin: AddPlugin) -> None:
    add_plugin("farm", body)
    result = invoke("plugins", "check", "farm", "--json")
    assert result.exit_code == code


def test_rows_that_differ_between_processes_are_an_error(add_plugin: AddPlugin) -> None:
    names = "enumerate({f'text {n}' for n in range(20)})"
    row = "Row(id=f'{i}', text=text, target='ab'[i % 2], group=f'{i}')"
    add_plugin("farm", DATASET.format(f"lambda: [{row} for i, text in {names}]"))
    (finding,) = check("farm")
    assert finding.subject == "farm/x"
    assert "in another process" in finding.message
