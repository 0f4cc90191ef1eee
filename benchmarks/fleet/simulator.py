"""Discrete events: requests arrive, replicas compute steps, adapters are loaded.

A replica computes one step after another, as the engine does: waiting requests get a row in the
order of the engine's own queue (:class:`~trunkline.inference.scheduler.WaitQueue`), a step computes
one token of each running answer and a share of the prompts, and takes the time that
:class:`StepTimes` gives. Adapters are loaded one at a time beside the steps. Not simulated: the
prefix cache, different lengths within a stream, memory for keys and values, the network.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from streams import Arrival, Course

from trunkline.inference.scheduler import WaitQueue
from trunkline.inference.settings import EngineSettings
from trunkline.serving.placement import order, place

Policy = Callable[[str, Mapping[str, float]], str]
"""Chooses a replica for an adapter, given the requests in flight of each replica."""


Counts = tuple[int, int, int, int, int]
"""Of one step or of many: steps, rows, distinct adapters, tokens of prompts, new requests."""


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Seconds of a step, as a sum over what it computes.

    Attributes:
        step: of each step.
        row: for each running answer.
        adapter: for each distinct adapter.
        token: for each token of a prompt.
        request: for each request that came since the last step, for what its process does beside.
        load: seconds to load an adapter from disk.
        upload: seconds to bring one from the host's memory to the device's.
    """

    step: float
    row: float
    adapter: float
    token: float
    request: float
    load: float
    upload: float

    def of(self, counts: Counts) -> float:
        """Seconds of one step."""
        return sum(
            count * seconds
            for count, seconds in zip(
                counts, (self.step, self.row, self.adapter, self.token, self.request), strict=True
            )
        )


@dataclass(slots=True, eq=False)
class Job:
    """A request on its way."""

    number: int
    adapter: str
    due: float
    prompt: int
    new: int
    first: float = 0.0


@dataclass(slots=True)
class Replica:
    """One engine: its queue, its rows, and the adapters in its memory, the last used at the end."""

    queue: WaitQueue[Job] = field(default_factory=WaitQueue)
    running: list[Job] = field(default_factory=list)
    device: OrderedDict[str, None] = field(default_factory=OrderedDict)
    host: OrderedDict[str, None] = field(default_factory=OrderedDict)
    wanted: OrderedDict[str, None] = field(default_factory=OrderedDict)
    loading: str | None = None
    stepping: list[tuple[Job, int]] | None = None
    came: int = 0
    loads: int = 0


def policies(seed: int = 0) -> dict[str, Policy]:
    """Name → policy."""
    draw, turn = random.Random(seed), itertools.count()

    def in_turn(_: str, loads: Mapping[str, float]) -> str:
        names = list(loads)
        return names[next(turn) % len(names)]

    return {
        "at random": lambda _, loads: draw.choice(list(loads)),
        "in turn": in_turn,
        "least in flight": lambda _, loads: min(loads, key=lambda one: loads[one]),
        "rendezvous": lambda adapter, loads: order(adapter, loads)[0],
        "rendezvous, bounded load": place,
    }


def simulate(
    stream: Sequence[Arrival],
    new_tokens: int,
    replicas: int,
    times: StepTimes,
    settings: EngineSettings,
    policy: Policy,
    *,
    host: int,
    on_step: Callable[[Counts], object] = lambda _: None,
) -> tuple[list[Course], int]:
    """Serve a stream.

    Args:
        stream: the requests, in the order of their arrival.
        new_tokens: of each answer.
        replicas: how many there are, all alike.
        times: of a replica's steps.
        settings: rows, tokens of prompts in a step, and adapters on the device.
        policy: who answers.
        host: adapters in a replica's memory, those on the device included.
        on_step: called with what each step computes.

    Returns:
        How each request went, and how many adapters were loaded from disk.
    """
    names = [f"replica-{number}" for number in range(replicas)]
    state = {name: Replica() for name in names}
    loads: dict[str, float] = dict.fromkeys(names, 0.0)
    courses: list[Course | None] = [None] * len(stream)
    events: list[tuple[float, int, Callable[[float], None]]] = []
    serial = itertools.count()

    def at(when: float, action: Callable[[float], None]) -> None:
        heapq.heappush(events, (when, next(serial), action))

    def arrive(job: Job, now: float) -> None:
        name = policy(job.adapter, loads)
        loads[name] += 1
        state[name].queue.add(job.adapter, job)
        state[name].came += 1
        step(name, now)

    def start(replica: Replica, adapter: str, _job: Job) -> bool | None:
        if len(replica.running) >= settings.rows:
            return None
        if adapter not in replica.device:
            if adapter != replica.loading:
                replica.wanted[adapter] = None
            return False
        replica.device.move_to_end(adapter)
        replica.host.move_to_end(adapter)
        replica.running.append(_job)
        return True

    def load(name: str, now: float) -> None:
        replica = state[name]
        if replica.loading is not None or not replica.wanted:
            return
        used = {job.adapter for job in replica.running}
        if len(replica.device) >= settings.slots:
            idle = next((one for one in replica.device if one not in used), None)
            if idle is None:
                return
            del replica.device[idle]
        adapter, _ = replica.wanted.popitem(last=False)
        replica.loading = adapter
        if adapter not in replica.host:
            replica.loads += 1
        taken = times.upload if adapter in replica.host else times.load
        at(now + taken, partial(loaded, name, adapter))

    def loaded(name: str, adapter: str, now: float) -> None:
        replica = state[name]
        replica.loading = None
        replica.device[adapter] = replica.host[adapter] = None
        while len(replica.host) > max(host, settings.slots):
            replica.host.pop(next(one for one in replica.host if one not in replica.device))
        step(name, now)

    def step(name: str, now: float) -> None:
        replica = state[name]
        if replica.stepping is not None:
            return
        for _ in replica.queue.admit(partial(start, replica)):
            pass
        load(name, now)
        if not replica.running:
            return
        left, tokens = settings.chunk_tokens, 0
        parts = [(job, 0) for job in replica.running if not job.prompt]
        rows = len(parts)
        for job in replica.running:
            if job.prompt and left:
                share = min(job.prompt, left)
                parts.append((job, share))
                left, tokens = left - share, tokens + share
        counts = (1, rows, len({job.adapter for job, _ in parts}), tokens, replica.came)
        replica.stepping, replica.came = parts, 0
        on_step(counts)
        at(now + times.of(counts), partial(end, name))

    def end(name: str, now: float) -> None:
        replica = state[name]
        parts, replica.stepping = replica.stepping or [], None
        for job, share in parts:
            job.prompt -= share
            replica.queue.count_served(job.adapter, share, int(not share))
            if job.prompt:
                continue
            job.new -= 1
            job.first = job.first or now
            if not job.new:
                replica.running.remove(job)
                replica.queue.end(job.adapter)
                loads[name] -= 1
                courses[job.number] = Course(job.first - job.due, now)
        step(name, now)

    for number, one in enumerate(stream):
        job = Job(number, f"adapter-{one.adapter}", one.due, len(one.ids), new_tokens)
        at(one.due, partial(arrive, job))
    while events:
        now, _, action = heapq.heappop(events)
        action(now)
    done = [one for one in courses if one is not None]
    assert len(done) == len(stream), "a request was never answered"
    return done, sum(one.loads for one in state.values())
