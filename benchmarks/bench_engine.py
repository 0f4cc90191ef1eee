"""Complete requests on the base alone: `generate`, transformers' continuous batching, and ours.

16 requests of one length (32 tokens, 24 new ones, no early end), each system in a process of its
own, measured in turn. Prints medians and ratios, whether answers are the same, and what
transformers' continuous batching does with adapters; asserts nothing. The decision for our own
scheduler rests on these figures.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import timing
from children import Child
from made import load_tokenizer, make_adapters, make_prompts
from timing import interleaved, rate, title

from trunkline.inference.settings import EngineSettings

REQUESTS = 16
PROMPT = 32
NEW = 24
AT_ONCE = EngineSettings(chunk_tokens=REQUESTS * PROMPT)
"""Nobody waits for the first tokens of a batch, so all prompts are one step, as in `generate`."""

GENERATE = "transformers, generate, static batch"
CONTINUOUS = "transformers, continuous batching"
ONE_ADAPTER = "transformers, continuous batching, PEFT, one adapter"


def main() -> None:
    options = timing.options(__doc__).parse_args()
    timing.say_where(options.shape)
    rounds = 2 if options.quick else 7
    with tempfile.TemporaryDirectory() as folder:
        folders = make_adapters(Path(folder, "8"), options.shape, 2, rank=8)
        compare(options.shape, folders, rounds)


def compare(shape: str | None, folders: list[Path], rounds: int) -> None:
    """All systems, in turn."""
    import torch
    from continuous import PAGE, Continuous
    from ours import EngineProcess
    from peers import Generating

    tokenizer = load_tokenizer()
    small = "nf4" if torch.cuda.is_available() else "int8"
    has_small = small == "int8" or find_spec("bitsandbytes") is not None
    with ExitStack() as stack:

        def child(make: Callable[..., object], *args: object, **settings: object) -> Child:
            return stack.enter_context(Child(make, shape, *args, **settings))

        generate = child(Generating)
        continuous = child(Continuous)
        adapted = child(Continuous, folders)
        ours = child(EngineProcess, folders, settings=AT_ONCE)
        ours_small = child(EngineProcess, quantized=small, settings=AT_ONCE) if has_small else ours
        for one in (generate, continuous, adapted, ours, ours_small):
            one.wait()
        long = make_prompts(tokenizer, 1, 2 * PAGE + 1, seed=2)[0][1]
        obeyed, rows, right, requested = adapted.ask("right_answers", long, 8)

        systems: dict[str, tuple[Child, int | None]] = {
            GENERATE: (generate, None),
            CONTINUOUS: (continuous, None),
            "ours": (ours, None),
            f"ours, {small}": (ours_small, None),
            ONE_ADAPTER: (adapted, 0),
            "ours, one adapter": (ours, 0),
        }
        if not has_small:
            del systems[f"ours, {small}"]
        texts: dict[str, list[str]] = {}

        def asking(name: str) -> Callable[[], float]:
            system, adapter = systems[name]
            seeds = count()

            def seconds() -> float:
                prompts = make_prompts(tokenizer, REQUESTS, PROMPT, seed=100 + next(seeds))
                taken, texts[name] = system.ask("batch", prompts, adapter, NEW)
                return taken

            return seconds

        taken = interleaved({name: asking(name) for name in systems}, rounds)

    speeds = {name: REQUESTS * NEW / times.median for name, times in taken.items()}
    best = {name: taken[GENERATE].least / times.least for name, times in taken.items()}
    static = speeds[GENERATE]
    title(f"{REQUESTS} requests of {PROMPT} tokens, {NEW} new ones (targets: 1.3x, int8 2.5x)")
    for name, speed in speeds.items():
        rate(name, speed, f"{speed / static:5.2f}x generate; best rounds {best[name]:5.2f}x")
    same = _same(texts["ours"], texts[GENERATE])
    print(f"  answers of ours that are those of generate: {same} of {REQUESTS}")
    same = _same(texts["ours, one adapter"], texts[ONE_ADAPTER])
    print(f"  the same with one adapter, against continuous batching: {same} of {REQUESTS}")

    title("Own scheduler or transformers' continuous batching")
    theirs = speeds[CONTINUOUS]
    with_one = speeds[ONE_ADAPTER]
    _faster("base alone", speeds["ours"], theirs)
    _faster("one adapter", speeds["ours, one adapter"], with_one)
    print(f"  generate_batch(adapter_names=…): {obeyed} of {rows} rows by the adapter asked for")
    print(
        f"  one prompt under {requested - 1} adapters and the base, prefix cache shared: "
        f"{right} of {requested} right"
    )


def _faster(what: str, ours: float, theirs: float) -> None:
    who, times = ("ours", ours / theirs) if ours >= theirs else ("transformers'", theirs / ours)
    print(f"  {what}: {who} is {times:.2f}x as fast")


def _same(one: list[str], other: list[str]) -> int:
    return sum(mine == theirs for mine, theirs in zip(one, other, strict=True))


if __name__ == "__main__":
    main()
