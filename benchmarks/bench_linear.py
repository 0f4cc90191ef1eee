"""The base's linear layers in each way of computing them, and what else a decode step takes.

Everything computes in one thread of one process, interleaved. Prints medians; asserts nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import timing
from made import load_base, load_plain, load_tokenizer, make_prompts
from timing import interleaved, line, timed, title

TOKENS = (1, 16, 128, 512)
ROWS = 16
CONTEXT = 48


def main() -> None:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own words
    options = timing.options(__doc__).parse_args()
    timing.say_where(options.shape)
    rounds = 2 if options.quick else 15
    plain = load_plain(options.shape)
    bases = {"ours": load_base(options.shape)}
    if plain.device.type == "cpu":
        bases["ours, int8"] = load_base(options.shape, quantized="int8")
    for tokens in TOKENS:
        products(plain, bases, tokens, rounds)
    for name, base in bases.items():
        baseline(name, base, rounds)
    if plain.device.type == "cpu":
        thin(rounds)


def thin(rounds: int) -> None:
    """``y += h B`` in place for two layers: as columns of one tensor, and each in its own.

    The rows of y lie whole (or half) pages of memory apart, or 64 bytes more.
    """
    import torch

    tokens, outputs, rank, adapters = 512, 1536, 8, 16
    hidden = torch.randn(adapters, tokens // adapters, rank)

    def adding(columns: int, apart: bool, distinct: int) -> Callable[[], float]:
        if apart:
            layers = [torch.randn(tokens, columns) for _ in range(2)]
        else:
            y = torch.randn(tokens, columns)
            layers = [y[:, :outputs], y[:, outputs : 2 * outputs]]
        up = torch.randn(distinct, rank, layers[0].shape[1])

        def work() -> None:
            for y in layers:
                y.view(distinct, -1, y.shape[1]).baddbmm_(hidden.view(distinct, -1, rank), up)

        return _inferring(work)

    for distinct in (1, adapters):
        ways = {
            f"{'two tensors' if apart else 'one tensor'}, rows {4 * columns:,} bytes apart": adding(
                columns, apart, distinct
            )
            for apart in (False, True)
            for columns in ((outputs, outputs + 16) if apart else (2 * outputs, 2 * outputs + 16))
        }
        taken = interleaved(ways, 20 * rounds)
        title(f"Adding products of rank {rank}, {distinct} distinct, to 2 x [{tokens}, {outputs}]")
        first = next(iter(taken.values())).median
        for name, times in taken.items():
            line(name, times.median, f"{first / times.median:5.2f}x as fast")


def products(plain: Any, bases: dict[str, Any], tokens: int, rounds: int) -> None:
    """All linear layers but the head, once, for so many tokens."""
    import torch
    from torch.nn.functional import linear

    fused_layers = bases["ours"].fused_layers
    single = [plain.get_submodule(name).weight for name, _, _ in fused_layers.members()]
    joined = [
        torch.cat([plain.get_submodule(name).weight for name in fused.names])
        for fused in fused_layers.fused
    ]
    numbers = sum(weight.numel() for weight in joined)
    widths = {weight.shape[1] for weight in joined}
    given = {
        width: torch.randn(tokens, width, dtype=plain.dtype, device=plain.device)
        for width in widths
    }

    def by_weight(weights: list[Any], x: dict[int, Any]) -> Callable[[], float]:
        def work() -> None:
            for weight in weights:
                linear(x[weight.shape[1]], weight)

        return _inferring(work)

    def by_fused_layers(base: Any) -> Callable[[], float]:
        def work() -> None:
            for fused in base.fused_layers.fused:
                fused.product(given[fused.inputs])

        return _inferring(work)

    size = plain.dtype.itemsize
    ways = {
        "F.linear, layer by layer, as transformers": (by_weight(single, given), size),
        "F.linear, fused": (by_weight(joined, given), size),
        **{
            f"{name}: as Trunkline computes": (by_fused_layers(base), 1 if "int8" in name else size)
            for name, base in bases.items()
        },
    }
    if plain.dtype == torch.float32:
        halved = [weight.bfloat16() for weight in joined]
        short = {width: x.bfloat16() for width, x in given.items()}
        ways["bf16: F.linear, fused"] = (by_weight(halved, short), 2)
    taken = interleaved({name: work for name, (work, _) in ways.items()}, rounds)
    title(f"All linear layers, {tokens} tokens ({numbers / 1e6:.0f} M numbers)")
    first = next(iter(taken.values())).median
    for name, times in taken.items():
        seconds = times.median
        speed = numbers * ways[name][1] / seconds / 1e9
        flops = 2 * tokens * numbers / seconds / 1e9
        note = f"{speed:6.1f} GB/s {flops:8.0f} GFLOP/s {first / seconds:5.2f}x as fast"
        line(name, seconds, note)


def baseline(name: str, base: Any, rounds: int) -> None:
    """A decode step of 16 rows without adapters, and what of it is matrix products."""
    import torch
    from ours import ByHand

    side = ByHand(base, [], slots=1)
    ids = [ids for _, ids in make_prompts(load_tokenizer(), ROWS, CONTEXT, seed=1)]
    step = side.decode(ids, [None] * ROWS)
    given = {
        fused.inputs: torch.randn(ROWS, fused.inputs, dtype=base.dtype, device=base.device)
        for fused in base.fused_layers.fused
    }
    hidden = torch.randn(ROWS, base.model.config.hidden_size, dtype=base.dtype, device=base.device)
    head = base.model.get_output_embeddings()

    def layers() -> None:
        for fused in base.fused_layers.fused:
            fused.product(given[fused.inputs])

    taken = interleaved(
        {
            "the whole step": timed(step),
            "its linear layers alone": _inferring(layers),
            "its head alone": _inferring(lambda: head(hidden)),
        },
        rounds,
    )
    step_seconds, *products = [times.median for times in taken.values()]
    title(
        f"{name}: decode step, 16 rows, context {CONTEXT}, over the baseline of its matrix products"
    )
    for what, times in taken.items():
        line(what, times.median, f"{100 * times.median / step_seconds:3.0f} %")
    rest = step_seconds - sum(products)
    line("everything else", rest, f"{100 * rest / step_seconds:3.0f} %")
    print(
        f"  the step takes {step_seconds / sum(products):.2f}x its matrix products; "
        "where the rest goes:"
    )
    for operator, seconds, calls in _costliest(step):
        line(f"  {operator}, {calls} calls", seconds)


def _costliest(step: Callable[[], Any], most: int = 12) -> list[tuple[str, float, int]]:
    """Operators of a step by their own time, in seconds a step, as the profiler sees them."""
    from torch.profiler import ProfilerActivity, profile

    steps = 5
    step()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(steps):
            step()
    ordered = sorted(seen.key_averages(), key=lambda one: -one.self_cpu_time_total)
    return [
        (one.key, one.self_cpu_time_total / steps / 1e6, one.count // steps)
        for one in ordered[:most]
    ]


def _inferring(work: Callable[[], Any]) -> Callable[[], float]:
    import torch

    def inferred() -> None:
        with torch.inference_mode():
            work()

    return timed(inferred)


if __name__ == "__main__":
    main()
