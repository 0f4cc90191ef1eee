"""Build the wheel of a plugin's folder and unpack it, as an installation would."""

from __future__ import annotations

import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement

from trunkline.errors import PluginError, UsageError
from trunkline.plugins.install import run_pip

_CACHES = {"__pycache__", ".mypy_cache", ".nox", ".pytest_cache", ".ruff_cache", ".tox",
           "node_modules"}  # fmt: skip
_OUTPUTS = {"build", "dist"}


def read_project(folder: Path) -> dict[str, Any]:
    """The contents of a folder's ``pyproject.toml``; empty if it has a ``setup.py`` instead.

    Raises:
        UsageError: there is neither file, or it can't be read.
    """
    file = folder / "pyproject.toml"
    if not file.exists() and (folder / "setup.py").exists():
        return {}
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{str(file)!r} declares no plugin: {type(error).__name__} {error}.",
            'Write for example [project.entry-points.trunkline] with mydomain = "my_module".',
        ) from None


def unpack_wheel(
    folder: Path,
    site: Path,
    scratch: Path,
    on_line: Callable[[str], None] = lambda line: None,
) -> None:
    """Build a folder's wheel and unpack it into ``site``, without its dependencies.

    The wheel is built from a copy, so the folder gets no new files, and old build outputs in it
    can't hide that a file is missing. If this environment has everything that the build requires,
    no index is asked; else pip fetches it, with its own settings.

    Args:
        folder: holds the ``pyproject.toml`` or ``setup.py``.
        site: receives the packages; created.
        scratch: an empty folder for the copy.
        on_line: called with each line that pip prints.

    Raises:
        PluginError: the wheel can't be built.
    """
    project = read_project(folder)
    options = ["--no-deps", "--no-user", "--no-compile", "--target", str(site)]
    if _can_build_here(project):
        options.append("--no-build-isolation")
    copy = scratch / folder.resolve().name
    try:
        shutil.copytree(folder, copy, ignore=_ignored(folder), ignore_dangling_symlinks=True)
    except (OSError, shutil.Error) as error:
        raise PluginError(f"The folder {str(folder)!r} can't be copied: {error}.") from error
    action = f"build the wheel of {str(folder)!r}"
    try:
        run_pip(sys.executable, ["install", *options, str(copy)], action, on_line)
    except PluginError:
        if "version" not in project.get("project", {}).get("dynamic", ()):
            raise
        # The version may come from a version control system that a copy is not part of.
        run_pip(sys.executable, ["install", *options, str(folder)], action, on_line)


def files_left_out(folder: Path, site: Path) -> Iterator[Path]:
    """Files of the folder's packages that the unpacked wheel does not contain, relative to it."""
    root = folder / "src" if (folder / "src").is_dir() else folder
    for package in site.iterdir():
        source = root / package.name
        if not package.is_dir() or not source.is_dir():
            continue
        for file in sorted(source.rglob("*")):
            path = file.relative_to(root)
            skipped = file.suffix == ".pyc" or _CACHES & set(path.parts)
            if file.is_file() and not skipped and not (site / path).exists():
                yield path


def _can_build_here(project: dict[str, Any]) -> bool:
    """Whether every requirement of the build is installed in this environment."""
    required = project.get("build-system", {}).get("requires", ["setuptools"])
    try:
        for text in required:
            requirement = Requirement(text)
            installed = metadata.version(requirement.name)
            if not requirement.specifier.contains(installed, prereleases=True):
                return False
    except (InvalidRequirement, TypeError, metadata.PackageNotFoundError):
        return False
    return True


def _ignored(folder: Path) -> Callable[[Any, list[str]], set[str]]:
    def ignored(parent: Any, names: list[str]) -> set[str]:
        return {
            name
            for name in names
            if name in _CACHES
            or name.endswith(".egg-info")
            or (name in _OUTPUTS and Path(parent) == folder)
            or Path(parent, name, "pyvenv.cfg").exists()
        }

    return ignored
