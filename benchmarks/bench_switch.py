"""Load an adapter from disk to its first use, and switch between resident ones; PEFT does both too.

Everything is called from one thread of one process. Prints medians and ratios; asserts nothing.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import timing
from made import load_base, load_plain, make_adapters
from timing import interleaved, line, title

ROWS = 16
RESIDENT = (2, 16, 64, 256)
PEFT_RESIDENT = (2, 16)
SWITCHES = 200


def main() -> None:
    options = timing.options(__doc__).parse_args()
    timing.say_where(options.shape)
    most = 16 if options.quick else max(RESIDENT)
    with tempfile.TemporaryDirectory() as folder:
        ranked = make_adapters(Path(folder, "8"), options.shape, 17, rank=8)
        small = make_adapters(Path(folder, "2"), options.shape, most, rank=2)
        base = load_base(options.shape)
        plain = load_plain(options.shape)
        switches(base, small)
        loads(base, plain, ranked, rounds=2 if options.quick else 9)


def loads(base: Any, plain: Any, folders: Sequence[Path], rounds: int) -> None:
    """One more adapter beside 16; PEFT's ``set_adapter`` on the way there."""
    from ours import ByHand
    from peers import load_adapter, with_adapters

    from trunkline.adapters.artifact import read_artifact

    *others, another = folders
    pool = ByHand(base, [read_artifact(one) for one in others], slots=len(folders)).pool
    adapted = with_adapters(plain, others[: PEFT_RESIDENT[0]])
    for resident in PEFT_RESIDENT:
        for number in range(len(adapted.peft_config), resident):
            load_adapter(adapted, others[number], str(number))
        line(f"PEFT, {resident} resident: set_adapter", _set_adapter(adapted))
    names = count(len(folders))

    def ours() -> float:
        start = time.perf_counter()
        resident = pool.load(read_artifact(another))
        acquired = pool.acquire(resident.artifact.digest)
        seconds = time.perf_counter() - start
        assert acquired is not None
        pool.release(acquired)
        gone = pool.unload(resident.artifact.digest)
        assert gone
        return seconds

    def theirs(**settings: Any) -> Callable[[], float]:
        def load() -> float:
            name = str(next(names))
            start = time.perf_counter()
            load_adapter(adapted, another, name, **settings)
            seconds = time.perf_counter() - start
            adapted.delete_adapter(name)
            return seconds

        return load

    measured = {
        "ours: read, verified, checked, placed": ours,
        "PEFT: load_adapter": theirs(),
        "PEFT: load_adapter(low_cpu_mem_usage=True)": theirs(low_cpu_mem_usage=True),
    }
    taken = interleaved(measured, rounds)
    title(f"From disk to first use, rank 8 beside {len(others)} residents (target: 3x faster)")
    own = next(iter(taken.values()))
    for name, times in taken.items():
        line(name, times.median, f"{times.median / own.median:5.1f}x ours")


def switches(base: Any, folders: Sequence[Path]) -> None:
    """From one resident to another, for a step of 16 rows."""
    import torch
    from ours import ByHand

    from trunkline.adapters.artifact import read_artifact
    from trunkline.lora.routing import Routing

    title("Switch between residents, all linear layers (target: under 0.1 ms, flat)")
    pool = ByHand(base, [], slots=len(folders)).pool
    draw = random.Random(0)
    digests: list[str] = []
    for resident in [number for number in RESIDENT if number <= len(folders)]:
        for folder in folders[len(digests) : resident]:
            artifact = read_artifact(folder)
            pool.load(artifact)
            digests.append(artifact.digest)
        routed, tables = [], []
        for _ in range(SWITCHES):
            start = time.perf_counter()
            held = pool.acquire(draw.choice(digests))
            assert held is not None
            routing = Routing([held.pages] * ROWS)
            with pool.route(routing):
                routed.append(time.perf_counter() - start)
            pool.release(held)
            start = time.perf_counter()
            with torch.inference_mode():
                for layer in pool.lora_slots.layers:
                    layer.index_rows(routing)
            tables.append(time.perf_counter() - start)
        note = f"+ {1e3 * statistics.median(tables):.3f} ms, index tables of the first step"
        line(f"ours, {resident} resident: acquire and route", statistics.median(routed), note)


def _set_adapter(adapted: Any) -> float:
    draw = random.Random(0)
    names = sorted(adapted.peft_config)
    taken = []
    for _ in range(9):
        name = draw.choice(names)
        start = time.perf_counter()
        adapted.set_adapter(name, inference_mode=True)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


if __name__ == "__main__":
    main()
