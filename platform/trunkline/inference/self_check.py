"""Verify at startup that packed inference matches the model's own forward pass.

A step packs the tokens of many requests into one row and replaces the attention. A model that mixes
tokens in another way (a recurrence, positional biases, a window) or scales its logits would give
wrong answers without any error, so two short texts are computed both ways and compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from trunkline.errors import BaseModelError, one_line
from trunkline.inference.attention import Chunk, Layout, packed_attention

if TYPE_CHECKING:
    import torch

_TEXTS = ((5, 6, 7, 8), (9, 10, 11))
_TOLERANCE, _LOW_PRECISION_TOLERANCE = 0.01, 0.1
"""Allowed difference relative to the largest logit, in float32 and in lower precision."""

_HINT = "Use a base with full attention in every layer, such as a Llama, Qwen or GPT-2."


def check_packed_forward(model: Any, layers: list[torch.Tensor], *, exact: bool) -> None:
    """Compare the packed forward pass with the model's; overwrites the first KV cache slots.

    Args:
        model: a causal LM, in eval mode.
        layers: tensors of the KV cache, with room for 7 tokens.
        exact: whether the model computes in float32 throughout.

    Raises:
        BaseModelError: packed steps give other outputs, or fail.
    """
    import torch

    kind = type(model).__name__
    config = model.config.get_text_config()
    if "longrope" in _rope_types(getattr(config, "rope_parameters", None)):
        raise BaseModelError(
            f"The positions of the base's {kind} depend on the longest text of a batch (longrope), "
            "which is not supported.",
            _HINT,
        )
    try:
        with torch.inference_mode():
            alone, packed = _compute_both(model, layers)
    except BaseModelError:
        raise
    except Exception as error:  # an unsuitable model may raise anything
        raise BaseModelError(
            f"The base's {kind} can't be computed in packed steps: "
            f"{one_line(error, with_type=True)[:200]}.",
            _HINT,
        ) from error
    difference = float((alone - packed).abs().max() / alone.abs().max().clamp(min=1e-12))
    if not difference <= (_TOLERANCE if exact else _LOW_PRECISION_TOLERANCE):
        raise BaseModelError(
            f"The base's {kind} gives other outputs in packed steps than alone (by "
            f"{difference:.0%} of the largest): it mixes tokens or scales its outputs in an "
            "unsupported way.",
            _HINT,
        )


def _compute_both(model: Any, layers: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of all tokens, ``[tokens, vocabulary]``: computed text by text, and packed."""
    import torch

    device = next(model.parameters()).device
    texts = [torch.tensor(text, device=device) for text in _TEXTS]
    alone = [model(input_ids=text[None], use_cache=False).logits[0] for text in texts]
    chunks, positions, at = [], [], 0
    for text in texts:
        chunks.append(Chunk(at, at + len(text), None, None))
        positions.append(torch.arange(len(text), device=device))
        at += len(text)
    layout = Layout(layers, torch.arange(at, device=device), chunks=tuple(chunks))
    with packed_attention(model, layout):
        hidden = getattr(model, model.base_model_prefix)(
            input_ids=torch.cat(texts)[None],
            position_ids=torch.cat(positions)[None],
            use_cache=False,
        ).last_hidden_state[0]
    return torch.cat(alone).float(), model.get_output_embeddings()(hidden).float()


def _rope_types(parameters: Any) -> Iterator[str]:
    """Types of rotary positions, of each layer if they differ."""
    if isinstance(parameters, Mapping):
        if isinstance(kind := parameters.get("rope_type"), str):
            yield kind
        for value in parameters.values():
            yield from _rope_types(value)
