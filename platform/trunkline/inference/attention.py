"""Attention of packed tokens over the pool of keys and values.

Owns: what transformers' layers call in place of their own attention while the engine steps. Must
not know: requests, adapters, sampling.

All tokens of a step lie in one row, ``[1, heads, tokens, width]``: first one token of each
sequence that is being written, then the chunks of prompts. :class:`Layout` says which is which.
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
CHANGES = ("sliding_window", "softcap", "s_aux", "attention_chunk_size")
"""Settings by which a layer asks for an attention that is not plain."""

_step: Layout | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some tokens of one prompt.

    Attributes:
        start, stop: of its tokens among those of the step.
        context: places in the pool of everything up to its last token; None where the chunk is
            the whole of it.
        mask: ``[tokens, context]``, added to the scores; None where the chunk is the whole of it.
    """

    start: int
    stop: int
    context: torch.Tensor | None
    mask: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the tokens of one step belong.

    Attributes:
        layers: of the pool.
        places: where in the pool each token's key and value go, ``[tokens]``.
        rows: tokens at the start that continue a sequence each.
        context: places of each row's tokens so far, ``[rows, longest]``, padded.
        mask: ``[rows, 1, 1, longest]``, added to the scores: 0, or minus infinity for the padding.
        chunks: of prompts, after the rows.
    """

    layers: list[torch.Tensor]
    places: torch.Tensor
    rows: int = 0
    context: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    chunks: tuple[Chunk, ...] = field(default_factory=tuple)


@contextmanager
def attending(model: Any, layout: Layout) -> Iterator[None]:
    """Let the model attend by the layout until the block ends; one thread at a time."""
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
    """Make transformers know this attention; a second time changes nothing."""
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
        query: ``[1, heads, tokens, width]``; key and value with the KV heads.

    Returns:
        ``[1, tokens, heads, width]``.

    Raises:
        BaseModelError: the layer asks for an attention that is not this one (a sliding window,
            sinks, a soft cap).
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
    kv_cache.index_copy_(0, layout.places, both)
    rows = layout.rows
    if rows > 0:
        assert layout.context is not None
        past = kv_cache.index_select(0, layout.context.view(-1))
        keys, values = past.view(rows, -1, 2, kv_heads, width).permute(2, 0, 3, 1, 4)
        asked = query[0, :, :rows].transpose(0, 1).reshape(rows, kv_heads, group, width)
        given = sdpa(asked, keys, values, attn_mask=layout.mask, scale=scaling)
        if rows == tokens:
            return given.reshape(1, tokens, heads, width), None
    out = torch.empty(tokens, heads, width, dtype=query.dtype, device=query.device)
    if rows > 0:
        out[:rows].view(rows, kv_heads, group, width).copy_(given)
    for chunk in layout.chunks:
        span = slice(chunk.start, chunk.stop)
        if chunk.context is None:
            given = sdpa(
                query[:, :, span], key[:, :, span], value[:, :, span],
                is_causal=True, scale=scaling, enable_gqa=group > 1,
            )  # fmt: skip
        else:
            past = kv_cache.index_select(0, chunk.context)
            keys, values = past.view(1, -1, 2, kv_heads, width).permute(2, 0, 3, 1, 4)
            given = sdpa(
                query[:, :, span], keys, values,
                attn_mask=chunk.mask, scale=scaling, enable_gqa=group > 1,
            )  # fmt: skip
        out[span] = given[0].transpose(0, 1)
    return out.unsqueeze(0), None


def check_plain(settings: dict[str, Any]) -> None:
    """Raise :class:`BaseModelError` for a setting that would change the attention."""
    for name in CHANGES:
        if settings.get(name) is not None:
            raise BaseModelError(
                f"The base's attention has {name} = {settings[name]!s:.40}, which is not served.",
                "Take a base with full attention in every layer.",
            )
