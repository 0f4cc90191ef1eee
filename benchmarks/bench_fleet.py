"""Many adapters on many replicas: which placement meets a latency, and how many replicas it takes.

Two real servers of one thread each are measured over HTTP while both are busy; the times of their
steps are fitted (non-negative least squares). A simulator of the engine's schedule
(``benchmarks/fleet/``) is then compared with streams that the same servers answer, for each policy,
and used for fleets that don't fit on one machine. Placement that knows what a replica holds is the
subject of LoRAServe (arXiv 2511.22880), InfiniLoRA (2604.07173) and data-driven placement
(2602.24044), whose simulator was within 5 % of the throughput. Prints medians and ratios; asserts
nothing.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import timing
from fleet.servers import Servers, publish
from fleet.simulator import Counts, StepTimes, policies, simulate
from made import load_tokenizer, make_prompts
from streams import Arrival, Course, arrivals, poisson, tokens_per_second, zipf
from timing import line, share, title

from trunkline.inference.settings import EngineSettings

ADAPTERS, RANK = 48, 8
PROMPT, NEW = 64, 24
LOAD = 0.6
"""Requests of the comparison, as a share of what both servers answer at most."""

FIRST = 2.0
"""The latency to meet: seconds to the first token."""

SETTINGS = EngineSettings(slots=16, adapter_mib=256, kv_mib=256)
HOST = 24
"""Adapters of the benchmark's rank that fit in ``adapter_mib``."""

NODE = 500
"""Adapters in the memory of a replica of a large fleet."""

CHECKED = ("at random", "least in flight", "rendezvous, bounded load")


@dataclass(frozen=True, slots=True)
class Summary:
    """How a stream went.

    Attributes:
        met: share of the requests with their first token within :data:`FIRST` seconds.
        half, most: seconds to the first token of half of them, and of 95 of 100.
        speed: new tokens a second.
    """

    met: float
    half: float
    most: float
    speed: float


def main() -> None:
    options = timing.options(__doc__).parse_args()
    timing.say_where(None)
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        publish(workspace, ADAPTERS, RANK)
        with Servers(workspace, 2, SETTINGS) as servers:
            times = measured(servers, quick=options.quick)
            compare(servers, times, 40 if options.quick else 200)
    capacity(times, quick=options.quick)


# ------------------------------------------------------------------------------------ measurement


def measured(servers: Servers, *, quick: bool) -> StepTimes:
    """Fit the times of steps to batches that both servers answer at the same time."""
    import numpy as np
    from scipy.optimize import nnls

    tokenizer = load_tokenizer()
    sizes = [*product((1, 4, 8, 16), (1, 16), (16, 128), (4, 24))]
    counted, taken = [], []
    for rows, distinct, prompt, new in sizes[:: 6 if quick else 1]:
        prompts = make_prompts(tokenizer, 2 * rows, prompt, seed=rows + prompt)
        chosen = [number // 2 % min(distinct, rows) for number in range(2 * rows)]
        batch = arrivals(prompts, chosen, [0.0] * len(prompts))
        _batch(servers, batch, 1)  # loads the adapters
        taken.append(median(_batch(servers, batch, new) for _ in range(1 if quick else 3)))
        counted.append(_counts(batch[::2], new))
    matrix = np.array(counted) / np.array(taken)[:, None]  # the relative error is fitted
    seconds, _ = nnls(matrix, np.ones(len(taken)))
    error = np.abs(matrix @ seconds - 1)
    step, row, adapter, token, request = map(float, seconds)
    times = StepTimes(step, row, adapter, token, request, *_loading(servers, tokenizer))
    title("Times of a step, two servers of one thread each, both busy")
    for name in ("step", "row", "adapter", "token", "request", "load", "upload"):
        line(name, getattr(times, name))
    print(
        f"  the fit is off by {100 * float(np.median(error)):.0f} % (median of {len(taken)} "
        f"batches), {100 * float(error.max()):.0f} % at most"
    )
    return times


def _batch(servers: Servers, batch: Sequence[Arrival], new: int) -> float:
    """Seconds until both servers have answered half of the batch each."""
    courses = servers.serve(batch, new, policies()["in turn"])
    return max(course.end for course in courses)


def _counts(batch: Sequence[Arrival], new: int) -> Counts:
    """What one replica computes for a batch, by the simulator."""
    steps: list[Counts] = []
    nominal = StepTimes(0.05, 0.001, 0.001, 0.001, 0.0, 0.0, 0.0)
    simulate(
        batch, new, 1, nominal, SETTINGS, policies()["rendezvous"], host=HOST,
        on_step=steps.append,
    )  # fmt: skip
    total = [sum(column) for column in zip(*steps, strict=True)]
    return (total[0], total[1], total[2], total[3], total[4])


def _loading(servers: Servers, tokenizer: Any) -> tuple[float, float]:
    """Seconds to load an adapter from disk, and to bring it back to the device."""
    prompts = make_prompts(tokenizer, 2, 16, seed=5)

    def ask(adapter: int) -> float:
        return _batch(servers, arrivals(prompts, [adapter] * 2, [0.0] * 2), 1)

    cold, back, warm = [], [], []
    for adapter in range(SETTINGS.slots, ADAPTERS):
        cold.append(ask(adapter))
        warm.append(ask(adapter))
        if adapter >= 2 * SETTINGS.slots:
            back.append(ask(adapter - SETTINGS.slots))  # left the device, still on the host
    alone = median(warm)
    return max(0.0, median(cold) - alone), max(0.0, median(back) - alone)


# ------------------------------------------------------------------------------------- comparison


def compare(servers: Servers, times: StepTimes, requests: int) -> None:
    """The same streams through the servers and through the simulator."""
    tokenizer = load_tokenizer()
    per_second = LOAD * 2 * _most(times)
    title(
        f"{requests} requests of {PROMPT} + {NEW} tokens over {ADAPTERS} adapters (Zipf) on two "
        f"servers, {per_second:.2f} a second (target: within 15 %)"
    )
    _head()
    for seed, name in enumerate(CHECKED):
        prompts = make_prompts(tokenizer, requests, PROMPT, seed=seed)
        stream = arrivals(
            prompts, zipf(requests, ADAPTERS, seed), poisson(requests, per_second, seed)
        )
        real = _summary(servers.serve(stream, NEW, policies(seed)[name]))
        courses, _ = simulate(stream, NEW, 2, times, SETTINGS, policies(seed)[name], host=HOST)
        simulated = _summary(courses)
        _row(f"{name}: measured", real)
        _row("  simulated", simulated)
        _row("  simulated / measured", simulated, over=real)


def _most(times: StepTimes) -> float:
    """Requests a second that one replica answers with all rows in use and all adapters there."""
    rows = SETTINGS.rows
    seconds = times.of((NEW, rows * NEW, rows * NEW, rows * PROMPT, rows))
    return rows / seconds


# --------------------------------------------------------------------------------------- capacity


def capacity(times: StepTimes, *, quick: bool) -> None:
    """What many adapters need, by policy and number of replicas."""
    adapters, per_second, seconds = (500, 20.0, 20.0) if quick else (10_000, 1_000.0, 60.0)
    requests = int(per_second * seconds)
    ids = [0] * PROMPT
    stream = [
        Arrival(due, adapter, "", ids)
        for due, adapter in zip(
            poisson(requests, per_second, 1), zipf(requests, adapters, 1), strict=True
        )
    ]
    least = per_second / _most(times)
    settings = replace(SETTINGS, slots=64)
    title(
        f"Simulated: {requests:,} requests of {PROMPT} + {NEW} tokens, {per_second:,.0f} a second, "
        f"over {adapters:,} adapters (Zipf); a replica holds {NODE} adapters, {settings.slots} on "
        f"its device; {least:.0f} replicas if every row were always in use"
    )
    _head("loads from disk")
    for factor in (1.1, 1.5, 2.0):
        replicas = math.ceil(least * factor)
        for name, policy in policies(1).items():
            courses, loads = simulate(stream, NEW, replicas, times, settings, policy, host=NODE)
            _row(f"{replicas:,}, {name}", _summary(courses), note=f"{loads:,}")


# ----------------------------------------------------------------------------------------- output


def _summary(courses: Sequence[Course]) -> Summary:
    firsts = [course.first for course in courses]
    return Summary(
        met=sum(one <= FIRST for one in firsts) / len(firsts),
        half=share(firsts, 0.5),
        most=share(firsts, 0.95),
        speed=tokens_per_second(courses, NEW),
    )


def _head(note: str = "") -> None:
    print(
        f"  {'':<36} {f'≤ {FIRST:g} s':>8} {'p50 s':>8} {'p95 s':>8} {'tok/s':>8}  {note}".rstrip()
    )


def _row(name: str, one: Summary, *, over: Summary | None = None, note: str = "") -> None:
    if over is None:
        cells = f"{one.met:8.1%} {one.half:8.2f} {one.most:8.2f} {one.speed:8.0f}"
    else:
        pairs = zip(astuple(one), astuple(over), strict=True)
        cells = " ".join(f"{mine / other:8.2f}" if other else f"{'-':>8}" for mine, other in pairs)
    print(f"  {name:<36} {cells}  {note}".rstrip(), flush=True)


if __name__ == "__main__":
    main()
