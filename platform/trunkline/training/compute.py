"""What a training cost: operations by a formula, energy where a counter can be read.

Owns: both figures and the words on how they were come by. Must not know: what is trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")
FORMULA = (
    "6 x parameters x tokens (Kaplan et al. 2020, section 2.1), an upper bound: frozen weights "
    "need no gradient of their own"
)
_MEASURED = "of the machine's processor packages (RAPL), whatever else ran on them"
_NO_COUNTER = "this machine has no readable energy counter (Linux RAPL)"


class EnergyMeter:
    """Reads the processors' own energy counters, which run over: read it every few minutes.

    Args:
        folder: of Linux' power capping; each ``intel-rapl:N`` is a processor package and counts
            microjoules up to ``max_energy_range_uj``.
    """

    def __init__(self, folder: Path = POWERCAP) -> None:
        self._packages: dict[Path, tuple[int, int]] = {}
        self._microjoules = 0
        for package in sorted(folder.glob("intel-rapl:[0-9]*")):
            if package.name.count(":") != 1:  # a part of a package, which counts it already
                continue
            now, span = _number(package / "energy_uj"), _number(package / "max_energy_range_uj")
            if now is not None and span:
                self._packages[package] = (now, span)

    def read(self) -> float | None:
        """Joules since the meter was made; None where there is no counter."""
        for package, (before, span) in list(self._packages.items()):
            now = _number(package / "energy_uj")
            if now is None:
                self._packages.clear()
                break
            self._microjoules += now - before if now >= before else now + span - before
            self._packages[package] = (now, span)
        return self._microjoules / 1e6 if self._packages else None


def compute_report(
    *, parameters: int, tokens: int, device: str, meter: EnergyMeter | None
) -> dict[str, Any]:
    """What a run's report says of its cost.

    Args:
        parameters: of the base.
        tokens: that were trained on, repetitions counted.
        device: that trained.
        meter: made at the begin; None for a run that was resumed.
    """
    joules = None
    if device != "cpu":
        how = f"the counter of the processors says nothing of the device {device}"
    elif meter is None:
        how = "the run was resumed, and what it took before was not kept"
    else:
        joules = meter.read()
        how = _NO_COUNTER if joules is None else _MEASURED
    return {
        "flops": 6.0 * parameters * tokens,
        "parameters": parameters,
        "tokens": tokens,
        "how": FORMULA,
        "energy": {"joules": joules, "how": how},
    }


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
