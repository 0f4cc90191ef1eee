"""64 requests over 16 adapters that arrive faster than the better peer can serve them.

Adapters follow Zipf's law (s = 1), prompts have 32 tokens and answers 24, arrivals are a Poisson
stream at 1.5 times the better peer's closed-loop rate. The peers: PEFT with ``set_adapter``, one
batch for all requests that wait for one adapter; PEFT's ``generate`` with ``adapter_names`` over up
to 16 waiting requests. PEFT and ours have a process each and get the same schedule, one after the
other. Prints tokens per second and the time to the first token; asserts nothing.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median

import timing
from children import Child
from made import load_tokenizer, make_adapters, make_prompts
from streams import Course, arrivals, first_tokens, poisson, tokens_per_second, zipf
from timing import rate, title

ADAPTERS = 16
PROMPT = 32
NEW = 24
LOAD = 1.5
GROUPS, MIXED, OURS = "PEFT, swap and run by group", "PEFT, adapter_names", "ours"


def main() -> None:
    parser = timing.options(__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    timing.say_where(options.shape)
    requests, rounds = (12, 1) if options.quick else (64, options.rounds)
    with tempfile.TemporaryDirectory() as folder:
        folders = make_adapters(Path(folder, "8"), options.shape, ADAPTERS, rank=8)
        compare(options.shape, folders, requests, rounds)


def compare(shape: str | None, folders: list[Path], requests: int, rounds: int) -> None:
    """Closed loop, then the stream."""
    from ours import EngineProcess
    from peers import Generating

    tokenizer = load_tokenizer()
    with (
        Child(Generating, shape, folders) as peft,
        Child(EngineProcess, shape, folders) as trunkline,
    ):

        def serve(name: str, due: list[float], seed: int) -> list[Course]:
            prompts = make_prompts(tokenizer, len(due), PROMPT, seed)
            stream = arrivals(prompts, zipf(len(due), ADAPTERS, seed), due)
            if name == OURS:
                return trunkline.ask("serve", stream, NEW)
            return peft.ask("serve", stream, NEW, "groups" if name == GROUPS else "mixed")

        systems = (GROUPS, MIXED, OURS)
        peft.wait()
        trunkline.wait()
        for name in systems:
            serve(name, [0.0] * 4, seed=1)
        closed = {
            name: tokens_per_second(serve(name, [0.0] * requests, seed=2), NEW) for name in systems
        }
        better = max((GROUPS, MIXED), key=lambda name: closed[name])
        title(f"{requests} requests over {ADAPTERS} adapters, all there at the start")
        for name in systems:
            rate(name, closed[name], f"{closed[name] / closed[better]:5.2f}x the better peer")

        offered = LOAD * closed[better]
        runs: dict[str, list[list[Course]]] = {name: [] for name in systems}
        for turn in range(rounds):
            due = poisson(requests, offered / NEW, seed=10 + turn)
            for name in systems:
                runs[name].append(serve(name, due, seed=10 + turn))

    speeds = {name: median(tokens_per_second(one, NEW) for one in runs[name]) for name in systems}
    firsts = {name: [first_tokens(one) for one in runs[name]] for name in systems}
    better = max((GROUPS, MIXED), key=lambda name: speeds[name])
    title(
        f"The same, arriving at {LOAD} times what the better peer serves: {offered:.0f} tok/s are "
        f"asked for (target: 3x the better peer at no worse p95)"
    )
    for name in systems:
        half, most = (median(values) for values in zip(*firsts[name], strict=True))
        rate(
            name,
            speeds[name],
            f"{speeds[name] / speeds[better]:5.2f}x the better peer; first token p50 {half:.2f} s, "
            f"p95 {most:.2f} s",
        )
    print(
        f"  No system can serve more than is asked for: {offered / speeds[better]:.2f}x the better "
        "peer is the most that this stream can show."
    )


if __name__ == "__main__":
    main()
