"""Real pip, in a virtual environment that sees the packages of the running one."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from trunkline.errors import NotFoundError, PluginError, UsageError
from trunkline.plugins import install, uninstall
from trunkline.plugins.install import constraint_lines, run_pip

pytestmark = pytest.mark.merge

MakeWheel = Callable[..., Path]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Give the interpreter of an environment that may be installed into."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    outer = sysconfig.get_path("purelib")
    (site / "outer.pth").write_text(f"import site; site.addsitedir({outer!r})\n")
    return str(folder / "bin" / "python")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep pip from any index; that this has an effect shows that its settings are honored."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)


def test_wheel_is_installed_listed_and_uninstalled(python: str, make_wheel: MakeWheel) -> None:
    lines: list[str] = []
    wheel = make_wheel("trunk-farm", "farm")
    (plugin,) = install(str(wheel), python=python, on_line=lines.append)
    assert (plugin.domain, plugin.status, plugin.recipes) == ("farm", "loaded", ("farm/letters",))
    assert any("Successfully installed" in line for line in lines)
    assert uninstall("farm", python=python).distribution == "trunk-farm"
    with pytest.raises(NotFoundError, match="'farm'"):
        uninstall("farm", python=python)


def test_broken_plugin_is_installed_as_failed_and_can_be_removed(
    python: str, make_wheel: MakeWheel
) -> None:
    (plugin,) = install(str(make_wheel("trunk-sick", "sick", "raise SystemExit(1)")), python=python)
    assert (plugin.status, "exits (1)" in (plugin.reason or "")) == ("failed", True)
    assert uninstall("trunk-sick", python=python).domain == "sick"


def test_second_claimant_of_a_domain_is_set_aside(python: str, make_wheel: MakeWheel) -> None:
    install(str(make_wheel("trunk-one", "shared")), python=python)
    (plugin,) = install(str(make_wheel("trunk-two", "shared")), python=python)
    assert (plugin.distribution, plugin.status) == ("trunk-two", "failed")
    assert "belongs to trunk-one 1.0" in (plugin.reason or "")
    with pytest.raises(UsageError, match="trunk-one and trunk-two"):
        uninstall("shared", python=python)
    for name in ("trunk-one", "trunk-two"):
        uninstall(name, python=python)


def test_plugin_that_crashes_the_interpreter_is_named_and_can_be_removed(
    python: str, make_wheel: MakeWheel
) -> None:
    crash = "import ctypes\nctypes.CDLL(None)._exit(0)"
    with pytest.raises(PluginError, match=r"plugin 'crash' of trunk-crash 1\.0 ended") as caught:
        install(str(make_wheel("trunk-crash", "crash", crash)), python=python)
    assert "trunkline plugins uninstall trunk-crash" in (caught.value.hint or "")
    assert uninstall("trunk-crash", python=python).domain == "crash"


def test_folder_is_installed_editable(python: str, tmp_path: Path) -> None:
    folder = tmp_path / "field"
    folder.mkdir()
    (folder / "trunk_field.py").write_text("TRUNKLINE_API = 1\n")
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    )
    (folder / "backend.py").write_text(EDITABLE_BACKEND)
    (plugin,) = install(str(folder), editable=True, python=python)
    assert (plugin.domain, plugin.status) == ("field", "loaded")
    uninstall("field", python=python)


EDITABLE_BACKEND = """
from pathlib import Path
from zipfile import ZipFile

def build_editable(folder, config_settings=None, metadata_directory=None):
    name, info = "trunk_field-1.0-py3-none-any.whl", "trunk_field-1.0.dist-info"
    members = {
        "trunk_field.pth": f"{Path.cwd()}\\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\\nName: trunk-field\\nVersion: 1.0\\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
        f"{info}/entry_points.txt": "[trunkline]\\nfield = trunk_field\\n",
    }
    members[f"{info}/RECORD"] = "".join(f"{member},,\\n" for member in members)
    with ZipFile(Path(folder, name), "w") as wheel:
        for member, text in members.items():
            wheel.writestr(member, text)
    return name
"""


def test_distribution_without_entry_point_is_refused_with_the_way_out(
    python: str, make_wheel: MakeWheel
) -> None:
    with pytest.raises(
        PluginError, match="'trunk-plain' was installed, but it is not a plugin"
    ) as no:
        install(str(make_wheel("trunk-plain")), python=python)
    assert "pip uninstall trunk-plain" in (no.value.hint or "")


def test_plugin_that_requires_for_another_torch_is_refused(
    python: str, make_wheel: MakeWheel
) -> None:
    wheel = make_wheel("trunk-old", "old", requires="torch==1.0")
    with pytest.raises(PluginError) as caught:
        install(str(wheel), python=python)
    assert "conflicting dependencies" in caught.value.message
    assert "torch" in (caught.value.hint or "")
    with pytest.raises(NotFoundError):
        uninstall("old", python=python)


def test_pips_last_error_is_reported(python: str) -> None:
    with pytest.raises(PluginError, match="No matching distribution found for no-such-plugin-x"):
        install("no-such-plugin-x", python=python)


def test_constraints_pin_what_the_core_runs_on() -> None:
    pinned = {line.partition("==")[0] for line in constraint_lines().splitlines()}
    assert pinned == {"torch", "transformers", "peft", "trunkline"}


@pytest.mark.parametrize("name", ["core", "trunkline"])
def test_builtins_can_not_be_uninstalled(name: str) -> None:
    with pytest.raises(UsageError, match="holds the built-ins"):
        uninstall(name, python="/no/such/python")


@pytest.mark.parametrize("target", ["", " ", "--target=/tmp/x", "-e .", "a b c", "x\ny", "../x@!"])
def test_malformed_target_is_refused_before_pip_runs(target: str) -> None:
    with pytest.raises(UsageError):
        install(target, python="/no/such/python")


def test_missing_folder_is_refused_before_pip_runs() -> None:
    with pytest.raises(NotFoundError, match=r"no file or folder '\./nowhere'"):
        install("./nowhere", python="/no/such/python")


def test_folder_that_is_no_project_is_refused_before_pip_runs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no pyproject"):
        install(str(tmp_path), python="/no/such/python")


def test_credentials_that_pip_and_git_repeat_are_hidden(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\n"
        "echo \"  Running command git clone 'https://ada:s3cret-Word@host/x.git'\"\n"
        "echo 'http.extraheader=Authorization: YWRhOnMzY3JldC1Xb3Jk'\n"
        'echo "ERROR: fatal: could not read from https://ada:s3cret-Word@host/x.git"\n'
        "exit 1\n"
    )
    python.chmod(0o755)
    lines: list[str] = []
    with pytest.raises(PluginError) as caught:
        run_pip(str(python), ["install", "x"], "install 'x'", lines.append)
    shown = "\n".join([*lines, caught.value.message, caught.value.hint or ""])
    assert len(lines) == 3
    assert "https://…@host/x.git" in caught.value.message
    assert "s3cret" not in shown
    assert "YWRh" not in shown
