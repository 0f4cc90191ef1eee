"""What many adapters in one batch cost, over the base alone; and what a switch and a load cost.

Everything computes in one thread of one process: ours, transformers' own forward, and PEFT with
``adapter_names``, interleaved. Prints medians and ratios; asserts nothing.
"""

from __future__ import annotations

import copy
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import timing
from made import load_base, load_plain, load_tokenizer, make_adapters, make_prompts
from timing import interleaved, line, timed, title

ROWS = 16
CONTEXT = 48
PROMPT = 32
DISTINCT = (1, 4, 16)
RESIDENT = (16, 64)
SWITCHED = (2, 16, 64, 256)


def main() -> None:
    options = timing.options(__doc__).parse_args()
    timing.say_where(options.shape)
    quick, shape = options.quick, options.shape
    with tempfile.TemporaryDirectory() as folder:
        folders = make_adapters(Path(folder, "8"), shape, 16 if quick else 64, rank=8)
        batches(shape, folders, quick=quick)
        small = make_adapters(Path(folder, "2"), shape, 16 if quick else 256, rank=2)
        switches(shape, small)


def batches(shape: str | None, folders: list[Path], *, quick: bool) -> None:
    """Steps of 16 rows, and loading, beside PEFT with 16 adapters."""
    from ours import ByHand
    from peers import load_adapter, with_adapters

    from trunkline.adapters.artifact import read_artifact

    base = load_base(shape)
    plain = load_plain(shape)
    adapted = with_adapters(_sharing(plain), folders[:16])
    artifacts = [read_artifact(folder) for folder in folders]
    sides = {
        resident: ByHand(base, artifacts[:resident], slots=resident)
        for resident in RESIDENT if resident <= len(folders)
    }  # fmt: skip
    tokenizer = load_tokenizer()
    steps(base, plain, adapted, sides, artifacts, tokenizer, quick=quick)
    forms(base, next(iter(sides.values())), [one.digest for one in artifacts[:16]], quick=quick)

    bank = next(iter(sides.values())).bank
    held = artifacts[0]
    numbers = count(100)

    def ours() -> float:
        bank.unload(held.digest)
        start = time.perf_counter()
        bank.load(read_artifact(held.folder))
        resident = bank.acquire(held.digest)
        seconds = time.perf_counter() - start
        assert resident is not None
        bank.release(resident)
        return seconds

    def theirs(**settings: Any) -> Callable[[], float]:
        def load() -> float:
            name = str(next(numbers))
            start = time.perf_counter()
            load_adapter(adapted, held.folder, name, **settings)
            seconds = time.perf_counter() - start
            adapted.delete_adapter(name)
            return seconds

        return load

    taken = interleaved(
        {"ours": ours, "PEFT": theirs(), "PEFT low": theirs(low_cpu_mem_usage=True)},
        1 if quick else 9,
    )
    title("From disk to first use, rank 8 beside 16 residents (target: 3x faster)")
    line("ours, digests and numbers checked", taken["ours"])
    for name, words in (("PEFT", ""), ("PEFT low", "(low_cpu_mem_usage=True)")):
        times = taken[name] / taken["ours"]
        line(f"PEFT, load_adapter{words}", taken[name], f"{times:.1f}x ours")


def steps(
    base: Any, plain: Any, adapted: Any, sides: dict[int, Any], artifacts: list[Any],
    tokenizer: Any, *, quick: bool,
) -> None:  # fmt: skip
    """Decode and prefill with 0, 1, 4 and 16 distinct adapters."""
    import peers

    kinds = (
        ("Decode step, 16 rows, context 48", "decode", CONTEXT, 1.25, 2 if quick else 25),
        ("Prefill, 16 x 32 tokens", "prefill", PROMPT, 1.10, 1 if quick else 9),
    )
    for words, kind, tokens, target, rounds in kinds:
        ids = [ids for _, ids in make_prompts(tokenizer, ROWS, tokens, seed=1)]
        first = next(iter(sides.values()))
        measured = {
            "ours, no adapter": timed(getattr(first, kind)(ids, [None] * ROWS)),
            "transformers, no adapter": timed(getattr(peers, kind)(plain, ids)),
        }
        for distinct in DISTINCT:
            for resident, side in sides.items():
                digests = [one.digest for one in artifacts[:resident]]
                chosen = _spread(digests, distinct)
                name = f"ours, {distinct} distinct, {resident} resident"
                measured[name] = timed(getattr(side, kind)(ids, chosen))
            names = _spread([str(number) for number in range(16)], distinct)
            step = getattr(peers, kind)(adapted, ids, adapter_names=names)
            measured[f"PEFT, {distinct} distinct, 16 resident"] = timed(step)
        taken = interleaved(measured, rounds)
        alone = min(taken["ours, no adapter"], taken["transformers, no adapter"])
        title(f"{words}, rank 8 on all linear layers (target: {target:.2f}x the faster base)")
        for name, seconds in taken.items():
            over = alone if name.startswith("ours") else taken["transformers, no adapter"]
            of = "the faster base" if name.startswith("ours") else "transformers' base"
            line(name, seconds, f"{seconds / over:5.2f}x {of}")


def forms(base: Any, side: Any, digests: list[str], *, quick: bool) -> None:
    """The bank's arithmetic alone, in each of its forms, through all layers."""
    import torch

    layers = side.bank._stack._layers
    cases = (
        ("decode, 16 rows", 1, 2 if quick else 15),
        ("prefill, 16 x 32", PROMPT, 1 if quick else 3),
    )
    title("Which form where: what the adapters add to all linear layers (* is what a step uses)")
    for words, tokens, rounds in cases:
        for distinct in DISTINCT:
            pages = [side.bank.get(digest).pages for digest in _spread(digests, distinct)]
            pages = [one for one in pages for _ in range(tokens)]
            taken = interleaved(_forms(layers, pages, base, torch), rounds)
            on_cuda = base.device.type == "cuda"
            used = ("gathered" if on_cuda else "rows") if tokens == 1 else "spans, as a step"
            for form, seconds in taken.items():
                mark = "*" if form == used else ""
                line(f"{words}, {distinct} distinct: {form} {mark}", seconds)


def _forms(layers: Any, pages: list[Any], base: Any, torch: Any) -> dict[str, Callable[[], float]]:
    from trunkline.adapters.stack import Routing, Span

    rows = Routing(rows=pages)
    spans = _spans(pages)
    together = Routing(spans=spans)
    given = {
        layer.fused.inputs: torch.randn(
            len(pages), layer.fused.inputs, dtype=base.dtype, device=base.device
        )
        for layer in layers
    }
    zeros = [
        torch.zeros(len(pages), sum(layer.fused.outputs), dtype=base.dtype, device=base.device)
        for layer in layers
    ]

    def through(add: Callable[[Any, Any, Any], Any]) -> Callable[[], float]:
        def work() -> None:
            with torch.inference_mode():
                for layer, y in zip(layers, zeros, strict=True):
                    add(layer, given[layer.fused.inputs], y)

        return timed(work)

    alone = [
        (slice(span.start, span.stop), Routing(spans=[Span(0, None, span.pages)])) for span in spans
    ]

    def one_by_one(layer: Any, x: Any, y: Any) -> None:
        for tokens, routing in alone:
            layer.add(routing, x[tokens], y[tokens])

    measured = {
        "rows": through(lambda layer, x, y: layer.add(rows, x, y)),
        "gathered": through(lambda layer, x, y: layer._add_gathered(rows, x, y)),
        "spans, one by one": through(one_by_one),
        "spans, as a step": through(lambda layer, x, y: layer.add(together, x, y)),
    }
    if together.even:
        batched = through(lambda layer, x, y: layer._add_even(together, x, y))
        measured["spans, batched"] = batched
    if base.device.type == "cuda":
        del measured["rows"]  # which are gathered there
    return measured


def _spans(pages: Sequence[Any]) -> list[Any]:
    from trunkline.adapters.stack import Span

    spans: list[Any] = []
    for at, one in enumerate(pages):
        if spans and spans[-1].pages == one:
            spans[-1] = Span(spans[-1].start, at + 1, one)
        else:
            spans.append(Span(at, at + 1, one))
    return spans


def switches(shape: str | None, folders: list[Path]) -> None:
    """From one resident to another, for a step of 16 rows; PEFT's ``set_adapter``."""
    import torch
    from ours import ByHand
    from peers import load_adapter, with_adapters

    from trunkline.adapters.artifact import read_artifact
    from trunkline.adapters.stack import Routing

    title("Switch between residents, rank 2 (target: under 0.1 ms, flat)")
    bank = ByHand(load_base(shape), [], slots=len(folders)).bank
    draw = random.Random(0)
    for resident in [number for number in SWITCHED if number <= len(folders)]:
        digests = []
        for folder in folders[:resident]:
            artifact = read_artifact(folder)
            bank.load(artifact)
            digests.append(artifact.digest)
        indexed, tabled = [], []
        for _ in range(200):
            start = time.perf_counter()
            held = bank.acquire(draw.choice(digests))
            assert held is not None
            routing = Routing([held.pages] * ROWS)
            with bank.routed(routing):
                indexed.append(time.perf_counter() - start)
            bank.release(held)
            start = time.perf_counter()
            with torch.inference_mode():
                for layer in bank._stack._layers:
                    layer._down_rows(routing)
                    layer._up_rows(routing)
            tabled.append(time.perf_counter() - start)
        seconds = statistics.median(indexed)
        note = f"+ {1e3 * statistics.median(tabled):.3f} ms for the tables of the first step"
        line(f"ours, {resident} resident: acquire, route 16 rows", seconds, note)
    adapted = with_adapters(load_plain(shape), folders[:2])
    for resident in (2, 16):
        for number in range(len(adapted.peft_config), resident):
            load_adapter(adapted, folders[number], str(number))
        names = [str(number) for number in range(resident)]
        taken = []
        for _ in range(9):
            start = time.perf_counter()
            adapted.set_adapter(draw.choice(names), inference_mode=True)
            taken.append(time.perf_counter() - start)
        line(f"PEFT, {resident} resident: set_adapter", statistics.median(taken))


def _spread(values: Sequence[Any], distinct: int) -> list[Any]:
    """``distinct`` of the values, far from each other, for 16 rows; equal ones side by side."""
    stride = len(values) // distinct
    return [values[row // (ROWS // distinct) * stride] for row in range(ROWS)]


def _sharing(model: Any) -> Any:
    """A second model on the same weights, for PEFT to wrap."""
    held = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(one): one for one in held})


if __name__ == "__main__":
    main()
