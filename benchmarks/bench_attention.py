"""Attention of single tokens over the KV cache: rows of unequal lengths, as in traffic, and of one.

16 rows with contexts of 24 to 200 tokens, beside as many tokens in rows of one length, and rows all
as long as the longest, which padding would make of them. First attention alone, through all layers:
the engine's; the engine's with keys and values in separate tables, and the mask in a shape that
torch's fast kernel takes or does not take; transformers' over a padded static batch. Then complete
decode steps. Everything computes in one thread of one process, interleaved. Prints medians and
ratios; asserts nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import timing
from made import load_base, load_plain, load_tokenizer, make_prompts
from timing import Taken, interleaved, line, timed, title

ROWS = 16
SHORTEST, LONGEST = 24, 200
UNEQUAL = [round(SHORTEST + row * (LONGEST - SHORTEST) / (ROWS - 1)) for row in range(ROWS)]
LENGTHS = {
    f"{SHORTEST} to {LONGEST}": UNEQUAL,
    f"all {sum(UNEQUAL) // ROWS}": [sum(UNEQUAL) // ROWS] * ROWS,
    f"all {LONGEST}": [LONGEST] * ROWS,
}
"""Context of each row, its new token included; the second has as many tokens as the first."""

OURS = "ours"
APART = "ours, keys and values apart"
SLOW_MASK = "ours, keys and values apart, mask of three dimensions"
THEIRS = "transformers, padded"


@dataclass(frozen=True, slots=True)
class New:
    """What the new tokens bring to every layer: ``[1, heads, rows, width]``, as in a step."""

    query: Any
    key: Any
    value: Any


def main() -> None:
    import torch
    from ours import ByHand

    options = timing.options(__doc__).parse_args()
    timing.say_where(options.shape)
    side = ByHand(load_base(options.shape), [], slots=1)
    plain = load_plain(options.shape)
    ids = [ids for _, ids in make_prompts(load_tokenizer(), ROWS, LONGEST, seed=1)]
    prompts = {
        name: [one[:length] for one, length in zip(ids, lengths, strict=True)]
        for name, lengths in LENGTHS.items()
    }
    with torch.inference_mode():
        alone(side, plain, prompts, 2 if options.quick else 50)
    steps(side, plain, prompts, 2 if options.quick else 25)


def alone(side: Any, plain: Any, prompts: dict[str, list[list[int]]], rounds: int) -> None:
    """Attention through all layers, the new keys and values put away first; random numbers."""
    import torch

    kv_cache = side.stepper.kv_cache.layers
    for layer in kv_cache:
        layer.normal_()
    tables = [layer.transpose(0, 1).contiguous() for layer in kv_cache]
    config, kind = plain.config, {"dtype": kv_cache[0].dtype, "device": kv_cache[0].device}
    width = kv_cache[0].shape[2]
    heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
    new = New(*(torch.randn(1, count, ROWS, width, **kind) for count in heads))
    measured: dict[tuple[str, str], Callable[[], float]] = {}
    off: dict[tuple[str, str], float] = {}
    for lengths, rows in prompts.items():
        ways = _ways(side, plain, tables, _layout(side, rows), [len(row) for row in rows], new)
        first = ways[OURS]()
        for way, work in ways.items():
            measured[way, lengths] = timed(work)
            off[way, lengths] = max(
                float((one - other).abs().max())
                for one, other in zip(first, work(), strict=True)
            )  # fmt: skip
    taken = _interleaved(measured, rounds)
    for lengths, rows in prompts.items():
        tokens = sum(map(len, rows))
        title(
            f"Attention in all {len(kv_cache)} layers, {ROWS} rows, {lengths} long: {tokens} tokens"
        )
        _print_results(taken, lengths, off)


def steps(side: Any, plain: Any, prompts: dict[str, list[list[int]]], rounds: int) -> None:
    """Decode steps of the whole model, without adapters."""
    measured = {}
    for lengths, rows in prompts.items():
        measured[OURS, lengths] = timed(side.decode(rows, [None] * ROWS))
        measured[THEIRS, lengths] = timed(_padded_decode(plain, rows))
    taken = _interleaved(measured, rounds)
    for lengths, rows in prompts.items():
        title(f"Decode step, {ROWS} rows, {lengths} long: {sum(map(len, rows))} tokens")
        _print_results(taken, lengths, {})


def _interleaved(
    measured: dict[tuple[str, str], Callable[[], float]], rounds: int
) -> dict[tuple[str, str], Taken]:
    taken = interleaved({"; ".join(key): work for key, work in measured.items()}, rounds)
    return {key: taken["; ".join(key)] for key in measured}


def _print_results(
    taken: dict[tuple[str, str], Taken], lengths: str, off: dict[tuple[str, str], float]
) -> None:
    """Each way over ours, and over itself where rows are of one length with as many tokens.

    Args:
        off: how far the results of a way are from ours, at most.
    """
    even = list(LENGTHS)[1]
    ours = taken[OURS, lengths].median
    for (way, where), times in taken.items():
        if where != lengths:
            continue
        note = f"{times.median / ours:5.2f}x ours"
        if lengths != even and (way, even) in taken:
            note += f"; {times.median / taken[way, even].median:5.2f}x itself, {even}"
        if way != OURS and (way, where) in off:
            note += f"; off by {off[way, where]:.0e}"
        line(way, times.median, note)


def _layout(side: Any, rows: Sequence[list[int]]) -> Any:
    """The engine's layout of a step for the last token of each row; blocks lie anywhere."""
    import numpy as np

    from trunkline.inference.batching import Part
    from trunkline.inference.kv_cache import BLOCK_SIZE

    blocks = len(side.stepper.kv_cache.layers[0]) // BLOCK_SIZE
    moved = np.random.default_rng(1).permutation(blocks)[:, None] * BLOCK_SIZE + np.arange(
        BLOCK_SIZE
    )
    parts = [Part(row, 1) for row in side.start(rows, [None] * len(rows))]
    for part in parts:
        part.sequence.slot_mapping = moved.reshape(-1)[part.sequence.slot_mapping]
        part.sequence.computed = len(part.sequence.tokens) - 1
    _, _, slot_mapping = side.stepper.flatten(parts)
    return side.stepper.build_layout(parts, [], slot_mapping)


def _ways(
    side: Any, plain: Any, tables: list[Any], layout: Any, lengths: list[int], new: New
) -> dict[str, Callable[[], list[Any]]]:
    """Each gives what every layer's attention gives, ``[rows, heads, width]``.

    Args:
        tables: keys and values of the pool, ``[2 · KV heads, tokens, width]`` a layer.
        lengths: of the rows' contexts.
    """
    from trunkline.inference.attention import attend, packed_attention

    layers = [layer.self_attn for layer in side.base.model.model.layers]

    def ours() -> list[Any]:
        with packed_attention(side.base.model, layout):
            return [
                attend(layer, new.query, new.key, new.value, None, layer.scaling)[0][0]
                for layer in layers
            ]

    mask = layout.mask
    scaling = layers[0].scaling
    ways: dict[str, Callable[[], list[Any]]] = {OURS: ours}
    if mask is None:
        ways[APART] = _with_tables(tables, layout, new, None, scaling)
    else:
        ways[APART] = _with_tables(tables, layout, new, mask.transpose(0, 1), scaling)
        ways[SLOW_MASK] = _with_tables(tables, layout, new, mask[:, 0], scaling)
    ways[THEIRS] = _padded(plain, layout, lengths, new)
    return ways


def _with_tables(
    tables: list[Any], layout: Any, new: New, mask: Any, scaling: float
) -> Callable[[], list[Any]]:
    """As the engine's, but each KV head's keys, and its values, are a table of their own.

    torch is told that the KV heads are the batch and the rows its heads, which saves copies.

    Args:
        mask: ``[1, rows, 1, longest]``, or ``[rows, 1, longest]``.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention as sdpa

    heads, rows, width = new.query.shape[1:]
    kv_heads = new.key.shape[1]

    def work() -> list[Any]:
        given = []
        for table in tables:
            table.index_copy_(1, layout.slot_mapping, torch.cat((new.key[0], new.value[0])))
            past = table.index_select(1, layout.context.view(-1))
            keys, values = past.view(2, kv_heads, rows, -1, width)
            query = new.query[0].view(kv_heads, -1, rows, width).transpose(1, 2)
            out = sdpa(query, keys, values, attn_mask=mask, scale=scaling)
            given.append(out.transpose(0, 1).reshape(rows, heads, width))
        return given

    return work


def _padded(plain: Any, layout: Any, lengths: list[int], new: New) -> Callable[[], list[Any]]:
    """transformers' attention and cache; rows are padded at their left, as `generate` wants."""
    import torch
    from transformers import DynamicCache
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    context = layout.context
    rows, longest = context.shape
    width, kv_heads = new.key.shape[3], new.key.shape[1]
    at = torch.arange(longest, device=context.device)
    empty = longest - torch.tensor(lengths, device=context.device)[:, None]
    seen = None if layout.mask is None else (at >= empty)[:, None, None]
    before = context.gather(1, (at - empty) % longest)[:, :-1].reshape(-1)
    cache = DynamicCache(config=plain.config)
    for number, layer in enumerate(layout.layers):
        past = layer.index_select(0, before).view(rows, -1, 2, kv_heads, width)
        cache.update(*past.permute(2, 0, 3, 1, 4), number)
    query, key, value = (one.transpose(0, 2) for one in (new.query, new.key, new.value))
    layers = [layer.self_attn for layer in plain.model.layers]

    def work() -> list[Any]:
        given = []
        for number, layer in enumerate(layers):
            keys, values = cache.update(key, value, number)
            out, _ = sdpa_attention_forward(
                layer, query, keys, values, seen, scaling=layer.scaling
            )  # fmt: skip
            given.append(out[:, 0])
        cache.crop(-1)
        return given

    return work


def _padded_decode(model: Any, prompts: Sequence[list[int]]) -> Callable[[], Any]:
    """As ``peers.decode``, for prompts of any lengths, padded at their left."""
    import torch
    from transformers import DynamicCache

    empty = [max(map(len, prompts)) - len(one) for one in prompts]
    rows = [[0] * count + one for count, one in zip(empty, prompts, strict=True)]
    ids = torch.tensor(rows, device=model.device)
    counts = torch.tensor(empty, device=model.device)[:, None]
    positions = torch.arange(ids.shape[1], device=model.device) - counts
    mask, positions = (positions >= 0).long(), positions.clamp_min(0)
    cache = DynamicCache(config=model.config)

    def forward(part: slice) -> Any:
        return model(
            input_ids=ids[:, part], attention_mask=mask[:, : part.stop],
            position_ids=positions[:, part], past_key_values=cache, logits_to_keep=1,
        ).logits  # fmt: skip

    with torch.inference_mode():
        forward(slice(0, -1))

    def step() -> None:
        with torch.inference_mode():
            forward(slice(-1, None))[:, -1].argmax(-1).tolist()
            cache.crop(-1)

    return step


if __name__ == "__main__":
    main()
