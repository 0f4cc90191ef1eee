"""A soak: many more adapters than fit in memory, each requested at least once.

Counts failures, loads and evictions, and tracks resident bytes and the process's memory over 2,000
requests for 1,000 adapters, which take 2.4 GB of disk while it runs. Asserts nothing.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timing
from children import Child
from made import load_tokenizer, make_adapters, make_prompts
from ours import EngineProcess
from timing import title

from trunkline.errors import TrunklineError
from trunkline.inference.settings import MIB, EngineSettings

PROMPT = 8
NEW = 2
IN_FLIGHT = 32
SETTINGS = EngineSettings(slots=64, adapter_mib=1024, kv_mib=64)


@dataclass(frozen=True, slots=True)
class Account:
    """What came of a soak; memory in bytes, of the process, before and after each quarter."""

    failures: list[str]
    seconds: float
    most_resident: int
    budget: int
    memory: list[int]
    loads: int
    evictions: int


class Soaked(EngineProcess):
    """The engine, kept busy by one caller."""

    def soak(self, texts: Sequence[str], adapters: Sequence[int]) -> Account:
        """Ask each text of its adapter, with at most :data:`IN_FLIGHT` on their way."""
        pool = self.engine.pool
        failures: list[str] = []
        memory = [timing.memory()]
        most = 0
        on_way: deque[Any] = deque()
        start = time.perf_counter()
        for number, (text, adapter) in enumerate(zip(texts, adapters, strict=True)):
            if number and number % (len(texts) // 4) == 0:
                memory.append(timing.memory())
            try:
                on_way.append(self.engine.submit(self.work(text, adapter, NEW)))
            except TrunklineError as error:
                failures.append(str(error))
            most = max(most, pool.total_bytes)
            if len(on_way) == IN_FLIGHT:
                _finish(on_way.popleft(), failures)
        for handle in on_way:
            _finish(handle, failures)
        seconds = time.perf_counter() - start
        counted = [pool.counters(artifact.digest) for artifact in self.artifacts]
        return Account(
            failures, seconds, most, pool.budget_bytes, [*memory, timing.memory()],
            sum(one.loads for one in counted), sum(one.evictions for one in counted),
        )  # fmt: skip


def main() -> None:
    options = timing.options(__doc__).parse_args()
    timing.say_where(options.shape)
    adapters = 50 if options.quick else 1000
    requests = 2 * adapters
    draw = random.Random(3)
    order = [*range(adapters), *(draw.randrange(adapters) for _ in range(requests - adapters))]
    draw.shuffle(order)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        folders = make_adapters(Path(folder, "2"), options.shape, adapters, rank=2)
        print(f"{adapters} adapters of rank 2 made in {time.perf_counter() - start:.0f} s")
        texts = [text for text, _ in make_prompts(load_tokenizer(), requests, PROMPT, seed=3)]
        with Child(Soaked, options.shape, settings=SETTINGS) as child:
            child.ask("know", folders)
            account: Account = child.ask("soak", texts, order)
    print_account(account, adapters, requests)


def print_account(account: Account, adapters: int, requests: int) -> None:
    """Print the account."""
    title(f"{requests} requests of {PROMPT} tokens, {NEW} new ones, over {adapters} adapters")
    before, *quarters = (f"{one / MIB:,.0f}" for one in account.memory)
    speed = requests / account.seconds
    print(f"  failures                  {len(account.failures)}   (target: none)")
    for failure in sorted(set(account.failures))[:3]:
        print(f"    {failure}")
    print(f"  resident bytes at most    {account.most_resident / MIB:.0f} MiB"
          f" of {account.budget / MIB:.0f} MiB")  # fmt: skip
    print(f"  memory of the process     {before} MiB before; after each quarter"
          f" {' '.join(quarters)}   (target: flat)")  # fmt: skip
    print(f"  loads, evictions          {account.loads}, {account.evictions}")
    print(f"  speed                     {speed:.1f} requests/s, {speed * NEW:.0f} tok/s,"
          f" {account.seconds:.0f} s")  # fmt: skip


def _finish(handle: Any, failures: list[str]) -> None:
    try:
        handle.answer(120)
    except (TrunklineError, TimeoutError) as error:
        failures.append(str(error))


if __name__ == "__main__":
    main()
