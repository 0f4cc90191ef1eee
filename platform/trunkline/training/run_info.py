"""Facts recorded with a run: environment, compute and energy, and the recipe with its code."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from trunkline.plugins import PluginInfo
from trunkline.training.distributed import processes
from trunkline.training.job import TrainingJob

PACKAGES = ("trunkline", "torch", "transformers", "peft", "accelerate", "safetensors", "numpy")
IMAGE_PACKAGES = ("pillow", "pydicom", "timm")
"""Packages that decide which numbers a picture becomes."""

POWERCAP = Path("/sys/class/powercap")
FORMULA = (
    "6 x parameters x tokens (Kaplan et al. 2020, section 2.1), an upper bound: frozen weights "
    "need no gradient of their own"
)
_MEASURED = "of the machine's processor packages (RAPL), including other processes"
_NOT_ESTIMATED = "not estimated: a convolution uses its weights at every position of a picture"
_NO_COUNTER = "this machine has no readable energy counter (Linux RAPL)"
_CORE = Path(__file__).parents[1] / "__init__.py"
_GIT_SECONDS = 10


# -------------------------------------------------------------------------------- environment


def environment(
    device: Any, bf16: bool, together: Sequence[str] = (), *, pictures: bool = False
) -> dict[str, Any]:
    """Package versions, machine and precision, as plain values.

    Args:
        device: that trains, of torch.
        bf16: whether it multiplies in bfloat16.
        together: recipes that are trained at the same time on the same copy of the base.
        pictures: whether it learns pictures.
    """
    import torch

    packages = (*PACKAGES, *IMAGE_PACKAGES) if pictures else PACKAGES

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "machine": platform.machine(),
        "device": str(device),
        "device_name": name or platform.machine(),
        "threads": torch.get_num_threads(),
        "processes": processes(),
        "together": list(together),
        "precision": "bf16" if bf16 else "fp32",
        "byte_order": sys.byteorder,
        "packages": {package: _package_version(package) for package in packages},
    }


def changed_environment(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first difference between two environments that changes the numbers of a training."""
    earlier = {**before, **(before.get("packages") or {})}
    current = {**now, **now["packages"]}
    if others := before.get("together"):
        return f"it was trained together with {' and '.join(others)}"
    counts = ("threads", "processes")
    for name in ("device", "device_name", "precision", *counts, *now["packages"]):
        if earlier.get(name) != current.get(name):
            label = f"the number of {name}" if name in counts else name
            return f"{label} was {earlier.get(name)!r} and is {current.get(name)!r} now"
    return None


def _package_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


# ------------------------------------------------------------------------------------ compute


class EnergyMeter:
    """Reads the processors' energy counters, which wrap around: read it every few minutes.

    Args:
        folder: Linux' power capping interface; each ``intel-rapl:N`` is a processor package and
            counts microjoules up to ``max_energy_range_uj``.
    """

    def __init__(self, folder: Path = POWERCAP) -> None:
        self._packages: dict[Path, tuple[int, int]] = {}
        self._microjoules = 0
        for package in sorted(folder.glob("intel-rapl:[0-9]*")):
            if package.name.count(":") != 1:  # a subdomain, which its package counts already
                continue
            now, span = _read_int(package / "energy_uj"), _read_int(package / "max_energy_range_uj")
            if now is not None and span:
                self._packages[package] = (now, span)

    def read(self) -> float | None:
        """Joules since the meter was created; None where there is no counter."""
        for package, (before, span) in list(self._packages.items()):
            now = _read_int(package / "energy_uj")
            if now is None:
                self._packages.clear()
                break
            self._microjoules += now - before if now >= before else now + span - before
            self._packages[package] = (now, span)
        return self._microjoules / 1e6 if self._packages else None


def compute_report(
    *, parameters: int, tokens: int | None, device: str, meter: EnergyMeter | None
) -> dict[str, Any]:
    """The compute and energy of a run, as plain values.

    Args:
        parameters: of the base.
        tokens: trained on, repetitions included; None: pictures, for which operations are not
            estimated.
        device: type of the device that trained.
        meter: created at the start; None for a resumed run.
    """
    joules = None
    if device != "cpu":
        how = f"the processors' counter does not measure the device {device}"
    elif meter is None:
        how = "the run was resumed, and its earlier use was not recorded"
    else:
        joules = meter.read()
        how = _NO_COUNTER if joules is None else _MEASURED
    return {
        "flops": None if tokens is None else 6.0 * parameters * tokens,
        "parameters": parameters,
        "tokens": tokens,
        "how": _NOT_ESTIMATED if tokens is None else FORMULA,
        "energy": {"joules": joules, "how": how},
    }


def _read_int(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


# ------------------------------------------------------------------------------ specification


def specification(job: TrainingJob) -> dict[str, Any]:
    """The recipe with everything that it names, as plain values; settings are recorded apart.

    ``code`` is the sha256 of the complete source file of a function, so that its helpers count as
    well; null where there is none. ``commit`` is null where git does not track the source;
    ``changed`` is true where the checkout differed from its commit.
    """
    recipe, dataset, loss = job.recipe, job.dataset, job.loss
    return {
        "description": recipe.description,
        "task": recipe.task,
        "dataset": {
            "name": dataset.name,
            "grouping": dataset.grouping,
            "unit": dataset.unit,
            "slices": list(dataset.slices),
            "validation_share": dataset.validation_share,
            "test_share": dataset.test_share,
            "code": code_digest(dataset.load),
        },
        "transforms": [
            {"name": step.name, "stage": step.stage, "code": code_digest(step.apply)}
            for step in job.transforms
        ],
        "template": {**asdict(recipe.template), "clean": list(recipe.template.clean)},
        "loss": {
            "name": recipe.loss,
            "options": dict(recipe.loss_options),
            "code": code_digest(loss.build),
        },
        "metrics": [
            {"name": metric.name, "code": code_digest(metric.compute)} for metric in job.metrics
        ],
        "baselines": list(recipe.baselines),
        "gate": asdict(recipe.gate),
        "scale": recipe.scale,
        "max_new_tokens": recipe.max_new_tokens,
        "config": None if job.config is None else job.config.to_json(),
        "plugin": None if job.plugin is None else _plugin(job.plugin),
        "core": {"version": version("trunkline"), **checkout(_CORE)},
    }


def changed_specification(
    before: Mapping[str, Any], now: Mapping[str, Any], *, finished: bool = False
) -> str | None:
    """The first difference between two recipes that changes a training on the same rows.

    Args:
        finished: all steps are taken, so that only what the recipe states must be the same; its
            code may be corrected to evaluate and publish.
    """
    for name in ("task", "template", "scale", "max_new_tokens", "loss", "transforms"):
        if _compared(before.get(name), finished) != _compared(now.get(name), finished):
            return f"its {name.replace('_', ' ')} changed"
    for name, noun in (("name", "dataset"), ("unit", "unit")):
        if before.get("dataset", {}).get(name) != now["dataset"][name]:
            return f"its {noun} changed"
    first = [_compared(one.get("metrics", ())[:1], finished) for one in (before, now)]
    if first[0] != first[1]:
        return "the metric that selects the best checkpoint changed"
    return None


def _compared(value: Any, finished: bool) -> Any:
    """Plain values; without the digests of code if the steps are finished."""
    value = _plain(value)
    if not finished:
        return value
    if isinstance(value, list):
        return [_compared(one, finished) for one in value]
    if isinstance(value, dict):
        return {name: one for name, one in value.items() if name != "code"}
    return value


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def code_digest(function: Callable[..., Any]) -> str | None:
    """sha256 of the source file that defines a function; a partial is unwrapped."""
    while isinstance(function, functools.partial):
        function = function.func
    try:
        source = inspect.getsourcefile(inspect.unwrap(function))
        return None if source is None else hashlib.sha256(Path(source).read_bytes()).hexdigest()
    except (OSError, TypeError, ValueError):
        return None


def checkout(file: Path) -> dict[str, Any]:
    """``commit`` of the git checkout that tracks a file, and whether its folder was ``changed``."""
    untracked = {"commit": None, "changed": None}
    if _git(file, "ls-files", "--error-unmatch", "--", file.name) is None:
        return untracked
    commit = _git(file, "rev-parse", "HEAD")
    status = _git(file, "status", "--porcelain", "--", ".")
    return untracked if commit is None else {"commit": commit, "changed": bool(status)}


def _plugin(plugin: PluginInfo) -> dict[str, Any]:
    file = getattr(sys.modules.get(plugin.module), "__file__", None)
    state = checkout(Path(file)) if file else {"commit": None, "changed": None}
    return {
        "distribution": plugin.distribution,
        "version": plugin.version,
        "domain": plugin.domain,
        **state,
    }


def _git(file: Path, *arguments: str) -> str | None:
    """Output of git in the file's folder; None if it fails or is not installed."""
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            ["git", "-C", str(file.parent), *arguments],
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
