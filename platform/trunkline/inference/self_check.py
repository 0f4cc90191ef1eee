"""Whether a base can be served: what is computed packed is what the model computes by itself.

Owns: the check that is made once, before the first request. Must not know: requests, adapters.

A step packs the tokens of many requests into one row and replaces the attention. A model that mixes
tokens in another way (a recurrence, positions as biases, a window) or scales what its head gives
would answer wrongly without any error, so two short texts are computed both ways and compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from trunkline.errors import BaseModelError
from trunkline.inference.attention import Chunk, Layout, attending

if TYPE_CHECKING:
    import torch

_TEXTS = ((5, 6, 7, 8), (9, 10, 11))
_EXACT, _ROUGH = 0.01, 0.1
"""Share of the largest logit by which the two ways may differ, in float32 and in less."""

_HINT = "Take a base with full attention in every layer, such as a Llama, Qwen or GPT-2."


def check_serves(model: Any, layers: list[torch.Tensor], *, exact: bool) -> None:
    """Compare both ways of computing; the first places of the pool are written over.

    Args:
        model: a causal LM, in eval mode.
        layers: of the pool, with room for 7 tokens at least.
        exact: whether it computes in float32 throughout.

    Raises:
        BaseModelError: the model computes something that packed steps don't.
    """
    import torch

    kind = type(model).__name__
    config = model.config.get_text_config()
    if "longrope" in _rope_types(getattr(config, "rope_parameters", None)):
        raise BaseModelError(
            f"The positions of the base's {kind} depend on the longest text of a batch (longrope), "
            "which is not served.",
            _HINT,
        )
    try:
        with torch.inference_mode():
            alone, packed = _both(model, layers)
    except BaseModelError:
        raise
    except Exception as error:  # a model that was made for another attention raises anything
        reason = (str(error).strip().splitlines() or ["no message"])[0]
        raise BaseModelError(
            f"The base's {kind} can't be computed in packed steps: {type(error).__name__}: "
            f"{reason[:200]}.",
            _HINT,
        ) from error
    apart = float((alone - packed).abs().max() / alone.abs().max().clamp(min=1e-12))
    if not apart <= (_EXACT if exact else _ROUGH):
        raise BaseModelError(
            f"The base's {kind} gives other outputs in packed steps than by itself (by {apart:.0%} "
            "of the largest): it mixes tokens or scales its outputs in a way that is not served.",
            _HINT,
        )


def _both(model: Any, layers: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of all tokens, ``[tokens, vocabulary]``: text by text, and packed."""
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
    with attending(model, layout):
        hidden = getattr(model, model.base_model_prefix)(
            input_ids=torch.cat(texts)[None],
            position_ids=torch.cat(positions)[None],
            use_cache=False,
        ).last_hidden_state[0]
    return torch.cat(alone).float(), model.get_output_embeddings()(hidden).float()


def _rope_types(parameters: Any) -> Iterator[str]:
    """The kinds of rotary positions, of all layers where they differ."""
    if isinstance(parameters, Mapping):
        if isinstance(kind := parameters.get("rope_type"), str):
            yield kind
        for value in parameters.values():
            yield from _rope_types(value)
