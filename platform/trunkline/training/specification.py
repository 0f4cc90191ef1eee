"""What a run was told to do, written down with it: the recipe and the code behind its names.

Owns: the form of a run's ``specification``. Must not know: the registry, how anything is trained.

Settings are kept apart, by number. Code is told by the sha256 of the whole source file in which a
function stands, so that what it calls beside itself counts as well, and by the commit where that
file is tracked by git.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trunkline.plugins import PluginInfo
from trunkline.training.fit import TrainingJob

_CORE = Path(__file__).parents[1] / "__init__.py"
_GIT_SECONDS = 10


def specification(training_job: TrainingJob, plugin: PluginInfo | None) -> dict[str, Any]:
    """The recipe with everything that it names, as plain values.

    ``code`` is null where a function has no source file; ``commit`` where the source is no
    checkout; ``changed`` says that the checkout's folder differed from its commit.
    """
    recipe, dataset, loss = training_job.recipe, training_job.dataset, training_job.loss
    return {
        "description": recipe.description,
        "task": recipe.task,
        "dataset": {
            "name": dataset.name,
            "grouping": dataset.grouping,
            "slices": list(dataset.slices),
            "validation_share": dataset.validation_share,
            "test_share": dataset.test_share,
            "code": code_digest(dataset.load),
        },
        "transforms": [
            {"name": step.name, "stage": step.stage, "code": code_digest(step.apply)}
            for step in training_job.transforms
        ],
        "template": {**asdict(recipe.template), "clean": list(recipe.template.clean)},
        "loss": {
            "name": recipe.loss,
            "code": code_digest(loss.build),
        },
        "metrics": [
            {"name": metric.name, "code": code_digest(metric.compute)}
            for metric in training_job.metrics
        ],
        "baselines": list(recipe.baselines),
        "gate": asdict(recipe.gate),
        "scale": recipe.scale,
        "max_new_tokens": recipe.max_new_tokens,
        "plugin": None if plugin is None else _plugin(plugin),
        "core": {"version": version("trunkline"), **checkout(_CORE)},
    }


def code_digest(function: Callable[..., Any]) -> str | None:
    """sha256 of the source file in which a function, or what a partial wraps, is written."""
    while isinstance(function, functools.partial):
        function = function.func
    try:
        found = inspect.getsourcefile(inspect.unwrap(function))
        return None if found is None else hashlib.sha256(Path(found).read_bytes()).hexdigest()
    except (OSError, TypeError, ValueError):
        return None


def checkout(file: Path) -> dict[str, Any]:
    """``commit`` of the checkout that tracks a file, and whether its folder was ``changed``."""
    unknown = {"commit": None, "changed": None}
    if _git(file, "ls-files", "--error-unmatch", "--", file.name) is None:
        return unknown
    commit = _git(file, "rev-parse", "HEAD")
    status = _git(file, "status", "--porcelain", "--", ".")
    return unknown if commit is None else {"commit": commit, "changed": bool(status)}


def _plugin(plugin: PluginInfo) -> dict[str, Any]:
    file = getattr(sys.modules.get(plugin.module), "__file__", None)
    found = checkout(Path(file)) if file else {"commit": None, "changed": None}
    return {
        "distribution": plugin.distribution,
        "version": plugin.version,
        "domain": plugin.domain,
        **found,
    }


def _git(file: Path, *words: str) -> str | None:
    """What git says in the file's folder; None where it says no, or is not there."""
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            ["git", "-C", str(file.parent), *words],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
            timeout=_GIT_SECONDS,
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip()
