"""The cost of many adapters in one batch over the base alone, and of each form of computing them.

Everything computes in one thread of one process: ours, transformers' own forward, and PEFT with
``adapter_names``, interleaved. 16 rows; 64 on a GPU. Prints medians and ratios; asserts nothing.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import timing
from made import load_base, load_plain, load_tokenizer, make_adapters, make_prompts
from timing import interleaved, line, timed, title

CONTEXT = 48
PROMPT = 32
DISTINCT = (1, 4, 16, 64)
RESIDENT = (16, 64)
TARGETS = {"decode": 1.25, "prefill": 1.10}


def main() -> None:
    import torch
    from ours import ByHand
    from peers import with_adapters

    from trunkline.adapters.artifact import read_artifact

    options = timing.options(__doc__).parse_args()
    timing.say_where(options.shape)
    rows = 64 if torch.cuda.is_available() else 16
    most = rows if options.quick else 64
    with tempfile.TemporaryDirectory() as folder:
        folders = make_adapters(Path(folder), options.shape, most, rank=8)
        base = load_base(options.shape)
        plain = load_plain(options.shape)
        adapted = with_adapters(_sharing(plain), folders[:rows])
        artifacts = [read_artifact(one) for one in folders]
        sides = {
            resident: ByHand(base, artifacts[:resident], slots=resident)
            for resident in RESIDENT if resident <= most
        }  # fmt: skip
    for kind, tokens in (("decode", CONTEXT), ("prefill", PROMPT)):
        rounds = 2 if options.quick else 25
        prompts = [ids for _, ids in make_prompts(load_tokenizer(), rows, tokens, seed=1)]
        steps(kind, prompts, sides, plain, adapted, rounds)
    title("Which form where: what the adapters add to all linear layers (* is what a step uses)")
    side = sides[max(sides)]
    for tokens in (1, PROMPT):
        for distinct in _countable(rows, len(side.digests)):
            rounds = 1 if options.quick else 15 if tokens == 1 else 3
            forms(side, _spread(side.digests, distinct, rows), tokens, rounds)


def steps(
    kind: str, prompts: list[list[int]], sides: dict[int, Any], plain: Any, adapted: Any,
    rounds: int,
) -> None:  # fmt: skip
    """Decode or prefill with no adapter, and with more and more distinct ones."""
    import peers

    rows = len(prompts)
    own = next(iter(sides.values()))
    ours_alone, theirs_alone = "ours, no adapter", "transformers, no adapter"
    measured = {
        ours_alone: timed(getattr(own, kind)(prompts, [None] * rows)),
        theirs_alone: timed(getattr(peers, kind)(plain, prompts)),
    }
    for distinct in _countable(rows, rows):
        for resident, side in sides.items():
            if distinct <= resident:
                chosen = _spread(side.digests, distinct, rows)
                name = f"ours, {distinct} distinct, {resident} resident"
                measured[name] = timed(getattr(side, kind)(prompts, chosen))
        names = _spread([str(number) for number in range(rows)], distinct, rows)
        step = getattr(peers, kind)(adapted, prompts, adapter_names=names)
        measured[f"PEFT, {distinct} distinct, {rows} resident"] = timed(step)
    taken = interleaved(measured, rounds)
    faster = min((ours_alone, theirs_alone), key=lambda name: taken[name].median)
    heading = f"Decode step, {rows} rows, context {len(prompts[0])}"
    if kind == "prefill":
        heading = f"Prefill, {rows} x {len(prompts[0])} tokens"
    title(f"{heading}, rank 8 on all linear layers (target: {TARGETS[kind]:.2f}x the faster base)")
    for name, times in taken.items():
        ours = name.startswith("ours")
        base = taken[faster if ours else theirs_alone]
        of = "the faster base" if ours else "transformers' base"
        note = f"{times.median / base.median:5.2f}x {of}"
        line(name, times.median, f"{note}; the least of both {times.least / base.least:5.2f}x")


def forms(side: Any, digests: list[str], tokens: int, rounds: int) -> None:
    """The adapter pool's arithmetic alone, in each of its forms, through all layers.

    Args:
        digests: of the adapter of each prompt.
        tokens: of each prompt.
    """
    pages = [side.pool.get(digest).pages for digest in digests for _ in range(tokens)]
    taken = interleaved(_forms(side, pages), rounds)
    used = ("rows" if "rows" in taken else "gathered") if tokens == 1 else "spans, as a step"
    what = f"{len(digests)} x {tokens}, {len(set(digests))} distinct"
    for form, times in taken.items():
        line(f"{what}: {form}{' *' if form == used else ''}", times.median)


def _forms(side: Any, pages: list[Any]) -> dict[str, Callable[[], float]]:
    import torch

    from trunkline.lora.routing import Routing, Span

    layers, base = side.pool.lora_slots.layers, side.base
    spans = _spans(pages)
    rows, together = Routing(rows=pages), Routing(spans=spans)
    alone = [
        (slice(span.start, span.stop), Routing(spans=[Span(0, None, span.pages)])) for span in spans
    ]

    def some(width: int) -> Any:
        return torch.randn(len(pages), width, dtype=base.dtype, device=base.device)

    given = {width: some(width) for width in {layer.fused.inputs for layer in layers}}
    sums = [[some(block.columns) for block in layer.fused.blocks] for layer in layers]

    def through(add: Callable[[Any, Any, Any], Any]) -> Callable[[], float]:
        def work() -> None:
            with torch.inference_mode():
                for layer, y in zip(layers, sums, strict=True):
                    add(layer, given[layer.fused.inputs], y)

        return timed(work)

    def one_by_one(layer: Any, x: Any, y: Any) -> None:
        for tokens, routing in alone:
            layer.add(routing, x[tokens], [block[tokens] for block in y])

    measured = {
        "rows": through(lambda layer, x, y: layer.add(rows, x, y)),
        "gathered": through(lambda layer, x, y: layer.add_gathered(rows, x, y)),
        "spans, one by one": through(one_by_one),
        "spans, as a step": through(lambda layer, x, y: layer.add(together, x, y)),
    }
    if together.even:
        batched = through(lambda layer, x, y: layer.add_even(together, x, y))
        measured["spans, batched"] = batched
    if base.device.type == "cuda":
        del measured["rows"]  # which are gathered there
    return measured


def _spans(pages: Sequence[Any]) -> list[Any]:
    from trunkline.lora.routing import Span

    spans: list[Any] = []
    for at, one in enumerate(pages):
        if spans and spans[-1].pages == one:
            spans[-1] = Span(spans[-1].start, at + 1, one)
        else:
            spans.append(Span(at, at + 1, one))
    return spans


def _countable(rows: int, adapters: int) -> list[int]:
    return [distinct for distinct in DISTINCT if distinct <= min(rows, adapters)]


def _spread(values: Sequence[Any], distinct: int, rows: int) -> list[Any]:
    """``distinct`` of the values, far from each other, for all rows; equal ones side by side."""
    stride = len(values) // distinct
    return [values[row // (rows // distinct) * stride] for row in range(rows)]


def _sharing(model: Any) -> Any:
    """A second model on the same weights, for PEFT to wrap."""
    held = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(one): one for one in held})


if __name__ == "__main__":
    main()
