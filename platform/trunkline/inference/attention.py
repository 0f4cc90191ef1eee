"""Paged attention of packed tokens, which replaces that of transformers' layers during a step.

All tokens of a step are packed into one row, ``[1, heads, tokens, head width]``: first one token
of each generating sequence (decode), then chunks of prompts (prefill). :class:`Layout` describes
which is which.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trunkline.errors import BaseModelError

if TYPE_CHECKING:
    import torch

NAME = "trunkline"
UNSUPPORTED = ("sliding_window", "softcap", "s_aux", "attention_chunk_size")
"""Settings by which a layer requests something other than full attention."""

_step: Layout | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive tokens of one prompt.

    Attributes:
        start, stop: range of its tokens among those of the step.
        context: KV cache slots of all tokens of the prompt up to its last one, ``[context]``; None
            if the prompt begins with this chunk.
        mask: ``[tokens, context]``, added to the scores; None if the prompt begins with this chunk.
    """

    start: int
    stop: int
    context: torch.Tensor | None
    mask: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class Layout:
    """Which sequence each token of one step belongs to.

    Attributes:
        layers: tensors of the KV cache.
        slot_mapping: KV cache slot of each token, ``[tokens]``.
        rows: how many tokens at the start continue one sequence each.
        context: KV cache slots of each row's sequence, ``[rows, longest]``, padded.
        mask: ``[rows, 1, 1, longest]``, added to the scores: 0, or minus infinity for the padding.
        chunks: of prompts, after the rows.
    """

    layers: list[torch.Tensor]
    slot_mapping: torch.Tensor
    rows: int = 0
    context: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    chunks: tuple[Chunk, ...] = field(default_factory=tuple)


@contextmanager
def packed_attention(model: Any, layout: Layout) -> Iterator[None]:
    """Make the model attend by the layout inside the block; one thread at a time."""
    global _step
    register()
    config = model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = NAME
    _step = layout
    try:
        yield
    finally:
        _step = None
        config._attn_implementation = before


def register() -> None:
    """Register this attention with transformers; idempotent."""
    from transformers import AttentionInterface

    if NAME not in AttentionInterface._global_mapping:
        AttentionInterface.register(NAME, attend)


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """Scaled dot-product attention of each token over its own sequence.

    Args:
        query: ``[1, heads, tokens, width]``.
        key, value: ``[1, KV heads, tokens, width]``.

    Returns:
        ``[1, tokens, heads, width]``.

    Raises:
        BaseModelError: the layer requests a sliding window, sinks or a soft cap.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention as sdpa

    layout = _step
    assert layout is not None
    check_plain(settings)
    kv_cache = layout.layers[module.layer_idx]
    heads, tokens, width = query.shape[1:]
    kv_heads = key.shape[1]
    group = heads // kv_heads
    both = torch.cat((key[0].transpose(0, 1), value[0].transpose(0, 1)), 1)
    kv_cache.index_copy_(0, layout.slot_mapping, both)
    rows = layout.rows
    if rows > 0:
        assert layout.context is not None
        past = kv_cache.index_select(0, layout.context.view(-1))
        keys, values = past.view(rows, -1, 2, kv_heads, width).permute(2, 0, 3, 1, 4)
        queries = query[0, :, :rows].transpose(0, 1).reshape(rows, kv_heads, group, width)
        output = sdpa(queries, keys, values, attn_mask=layout.mask, scale=scaling)
        if rows == tokens:
            return output.reshape(1, tokens, heads, width), None
    out = torch.empty(tokens, heads, width, dtype=query.dtype, device=query.device)
    if rows > 0:
        out[:rows].view(rows, kv_heads, group, width).copy_(output)
    for chunk in layout.chunks:
        span = slice(chunk.start, chunk.stop)
        if chunk.context is None:
            output = sdpa(
                query[:, :, span], key[:, :, span], value[:, :, span],
                is_causal=True, scale=scaling, enable_gqa=group > 1,
            )  # fmt: skip
        else:
            past = kv_cache.index_select(0, chunk.context)
            keys, values = past.view(1, -1, 2, kv_heads, width).permute(2, 0, 3, 1, 4)
            output = sdpa(
                query[:, :, span], keys, values,
                attn_mask=chunk.mask, scale=scaling, enable_gqa=group > 1,
            )  # fmt: skip
        out[span] = output[0].transpose(0, 1)
    return out.unsqueeze(0), None


def check_plain(settings: dict[str, Any]) -> None:
    """Raise :class:`BaseModelError` for a setting that changes the attention."""
    for name in UNSUPPORTED:
        if settings.get(name) is not None:
            raise BaseModelError(
                f"The base's attention has {name} = {settings[name]!s:.40}, which is unsupported.",
                "Use a base with full attention in every layer.",
            )
