"""The cores, the memory and the disk that this process may use, in a container or without one."""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


def usable_cores(cgroup: Path = _CGROUP) -> int:
    """The cores that this process may run on; a CPU quota of its container counts too.

    Args:
        cgroup: the folder of the container's limits (cgroup v2).
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    match = re.match(r"(\d+) (\d+)", _read(cgroup / "cpu.max"))
    if match is not None and int(match[2]):
        cores = min(cores, max(1, math.ceil(int(match[1]) / int(match[2]))))
    return cores


def memory_limit(cgroup: Path = _CGROUP, meminfo: Path = _MEMINFO) -> int | None:
    """The memory that this process may use at most, in bytes; None if the system doesn't say.

    Args:
        cgroup: the folder of the container's limits (cgroup v2).
        meminfo: the system's memory, in the format of Linux.
    """
    total = re.search(r"^MemTotal: *(\d+) kB$", _read(meminfo), re.MULTILINE)
    limit = re.match(r"\d+$", _read(cgroup / "memory.max").strip())
    sizes = [int(total[1]) * 1024] if total else []
    return min([*sizes, *([int(limit[0])] if limit else [])], default=None)


def compute_threads(cores: int, environment: Mapping[str, str] = os.environ) -> int:
    """The threads that a step of this process uses: ``OMP_NUM_THREADS``, else all cores it sees.

    OpenMP does not see a CPU quota.

    Args:
        cores: what to take where the system can't tell.
    """
    match = re.match(r"\s*([1-9]\d{0,4})", environment.get("OMP_NUM_THREADS", ""))
    if match is not None:
        return int(match[1])
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else cores


@dataclass(frozen=True, slots=True)
class DiskSpace:
    """The size of a disk and its free space for this user, in bytes."""

    total: int
    free: int


def disk_space(path: Path) -> DiskSpace:
    """The disk that holds ``path``, or will hold it: of the nearest folder above that exists."""
    present = next((one for one in (path, *path.parents) if one.exists()), Path("/"))
    usage = shutil.disk_usage(present)
    return DiskSpace(usage.total, usage.free)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return ""
