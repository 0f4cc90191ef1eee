"""Interleaved timing, printed lines, and the options that every benchmark has."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

SHAPES = ("tiny", "1b", "7b")


def options(doc: str | None) -> argparse.ArgumentParser:
    """A parser with what every benchmark understands."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a smoke run of seconds")
    parser.add_argument(
        "--shape", choices=SHAPES,
        help="a Llama of this size with random weights instead of the default base",
    )  # fmt: skip
    return parser


@dataclass(frozen=True, slots=True)
class Taken:
    """Seconds of several runs of one thing: the median, and the least."""

    median: float
    least: float


def interleaved(measured: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, Taken]:
    """What each takes, after one round that is not counted.

    Every round measures all of them, so that a noisy minute hits all alike. Each gives the seconds
    that it took.
    """
    for measure in measured.values():
        measure()
    taken: dict[str, list[float]] = {name: [] for name in measured}
    for _ in range(rounds):
        for name, measure in measured.items():
            taken[name].append(measure())
    return {name: Taken(statistics.median(times), min(times)) for name, times in taken.items()}


def timed(work: Callable[[], Any]) -> Callable[[], float]:
    """The work as something that gives its own seconds, the device's included."""
    import torch

    wait = torch.cuda.synchronize if torch.cuda.is_available() else None

    def measure() -> float:
        if wait:
            wait()
        start = time.perf_counter()
        work()
        if wait:
            wait()
        return time.perf_counter() - start

    return measure


def memory() -> int:
    """Bytes of this process that are in memory, as Linux tells."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def line(name: str, seconds: float, note: str = "") -> None:
    """Print one time."""
    text = f"{1e3 * seconds:9.3f} ms" if seconds < 0.01 else f"{1e3 * seconds:9.1f} ms"
    print(f"  {name:<58} {text}  {note}".rstrip(), flush=True)


def rate(name: str, tokens_per_second: float, note: str = "") -> None:
    """Print one rate."""
    print(f"  {name:<58} {tokens_per_second:6.0f} tok/s  {note}".rstrip(), flush=True)


def title(text: str) -> None:
    """Print what comes next."""
    print(f"\n{text}", flush=True)


def share(values: list[float], part: float) -> float:
    """The value that ``part`` of all don't exceed."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def say_where(shape: str | None) -> None:
    """Print what this runs on, and which versions."""
    import torch

    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    else:
        device = f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    print(f"{packages}; {device}; base: {shape or 'smollm2-135m'}", flush=True)


def _processor() -> str:
    try:
        listed = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [one.split(":", 1)[1].strip() for one in listed if one.startswith("model name")]
    return names[0] if names else platform.machine()
