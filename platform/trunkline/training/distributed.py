"""Training in several processes, as ``torchrun`` and ``accelerate launch`` start them.

Every process reads the rows and takes its share of each step. The first one alone uses the
registry, writes the artifact, and evaluates it.
"""

from __future__ import annotations

import os
from typing import Any, TypeVar

from trunkline.errors import UsageError

Value = TypeVar("Value")


class StepsTakenError(Exception):
    """Raised by a process that is not the first, once it has taken its share of the steps."""


def processes() -> int:
    """How many processes train together; 1 if no launcher started this one.

    Raises:
        UsageError: the variable ``WORLD_SIZE`` is no number.
    """
    count = os.environ.get("WORLD_SIZE", "").strip() or "1"
    if not (count.isascii() and count.isdecimal()):
        raise UsageError(
            f"The environment variable WORLD_SIZE is {count!r}, not a number of processes.",
            "Unset it, or start the command with torchrun or accelerate launch.",
        )
    return max(1, int(count))


def is_first() -> bool:
    """Whether this process uses the registry and the disk."""
    return processes() == 1 or os.environ.get("RANK", "0") == "0"


def require_one() -> None:
    """Raise :class:`UsageError` if a launcher started several processes."""
    if processes() > 1:
        raise UsageError(
            f"{processes()} processes (WORLD_SIZE) can't share this work; only `trunkline train` "
            "can be shared.",
            "Start the command without torchrun or accelerate launch.",
        )


def connect(device: Any) -> None:
    """Join the other processes, before the first exchange; nothing if there are none.

    Args:
        device: that this process trains on, of torch.
    """
    if processes() > 1:
        from accelerate import PartialState

        PartialState(cpu=device.type == "cpu")


def share(value: Value) -> Value:
    """The first process' value, in every process."""
    if processes() == 1:
        return value
    import torch.distributed as dist

    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def total(count: int) -> int:
    """The sum of a number over all processes."""
    if processes() == 1:
        return count
    import torch.distributed as dist

    numbers: list[Any] = [None] * processes()
    dist.all_gather_object(numbers, count)
    return sum(numbers)


def wait_for_all() -> None:
    """Return when every process has come here."""
    if processes() > 1:
        import torch.distributed as dist

        dist.barrier()
