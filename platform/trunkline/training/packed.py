"""One pass over the base for the rows of several trainings, each row with its own adapter.

Rows lie one after another in a single packed row. The frozen linear layers multiply all of it at
once; the matrices of an adapter see its own tokens only, and so does the attention. Each training
keeps a PEFT model of its own, whose frozen weights are those of the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from trunkline.inference.attention import check_plain

if TYPE_CHECKING:
    import torch

NAME = "trunkline-packed"
"""This attention's name in transformers' registry."""

_TOLERANCE = 1e-4
"""Largest difference from a pass of its own, as a share of the largest hidden state, in fp32."""

_ROUNDED = 5e-2
"""The same in a shorter type."""

_spans: Sequence[_Span] = ()


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of one training in a packed pass.

    Attributes:
        input_ids, attention_mask, position_ids: ``[rows, tokens]``.
        model: index of the training.
    """

    model: int
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor

    @property
    def tokens(self) -> int:
        """Tokens with padding."""
        return self.input_ids.numel()

    def visible(self) -> torch.Tensor:
        """``[rows, 1, tokens, tokens]``, true where a query sees a key; padding sees itself."""
        import torch

        keys = self.attention_mask.bool()[:, None, None, :]
        length = keys.shape[-1]
        square = torch.ones(length, length, dtype=torch.bool, device=keys.device)
        return (keys & square.tril()) | torch.eye(length, dtype=torch.bool, device=keys.device)


def part_of(model: int, inputs: Mapping[str, Any]) -> Part:
    """A part from the arguments of a backbone.

    Args:
        model: index of the training.
        inputs: ``input_ids`` ``[rows, tokens]``, and perhaps ``attention_mask``, ``position_ids``.
    """
    import torch

    ids = inputs["input_ids"]
    mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
    if mask is None:
        mask = torch.ones_like(ids)
    if positions is None:
        positions = torch.arange(ids.shape[1], device=ids.device)
    return Part(model, ids, mask, positions.expand_as(ids))


class PackedBackbone:
    """The backbones of several PEFT models, computed as one.

    Args:
        models: PEFT models by the index of their training. They share their frozen weights, see
            :func:`share_frozen`.
    """

    def __init__(self, models: Mapping[int, Any]) -> None:
        self._backbones = {index: backbone_of(model) for index, model in models.items()}
        self._first = next(iter(self._backbones.values()))
        names = {
            name
            for backbone in self._backbones.values()
            for name, module in backbone.named_modules()
            if hasattr(module, "lora_A")
        }
        self._routes = [
            (
                self._first.get_submodule(name),
                {index: _adapted(one, name) for index, one in self._backbones.items()},
            )
            for name in sorted(names)
        ]

    def hidden(self, parts: Sequence[Part]) -> list[torch.Tensor]:
        """The last hidden states of each part, ``[rows, tokens, hidden]``.

        Raises:
            BaseModelError: a layer's attention is not plain.
        """
        import torch

        ids = torch.cat([part.input_ids.reshape(-1) for part in parts])[None]
        positions = torch.cat([part.position_ids.reshape(-1) for part in parts])[None]
        with self._routed(parts), _packed_attention(self._first, parts):
            states = _states(self._first, input_ids=ids, position_ids=positions)[0]
        sizes = [part.tokens for part in parts]
        return [
            span.view(*part.input_ids.shape, -1)
            for part, span in zip(parts, states.split(sizes), strict=True)
        ]

    def alone(self, part: Part) -> torch.Tensor:
        """The last hidden states of one part, computed by its own model."""
        return _states(
            self._backbones[part.model],
            input_ids=part.input_ids,
            attention_mask=part.attention_mask,
            position_ids=part.position_ids,
        )

    def is_exact(self) -> bool:
        """Whether a packed pass gives what passes of their own give, on a few tokens."""
        import torch

        from trunkline.errors import BaseModelError

        device = next(self._first.parameters()).device
        ids = torch.arange(12, device=device).view(2, 6)
        mask = torch.ones_like(ids)
        mask[0, :2] = 0
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        parts = [
            Part(index, ids[:, place % 2 :], mask[:, place % 2 :], positions[:, place % 2 :])
            for place, index in enumerate(self._backbones)
        ]
        for backbone in self._backbones.values():
            backbone.eval()
        try:
            with torch.no_grad():
                packed = self.hidden(parts)
                single = [self.alone(part) for part in parts]
        except BaseModelError:
            return False
        tolerance = _TOLERANCE if single[0].dtype == torch.float32 else _ROUNDED
        return all(
            bool(
                ((one - other)[part.attention_mask.bool()]).abs().max()
                <= tolerance * float(other.abs().max())
            )
            for part, one, other in zip(parts, packed, single, strict=True)
        )

    @contextmanager
    def _routed(self, parts: Sequence[Part]) -> Iterator[None]:
        """Inside, the first model's linear layers add each part's own adapter."""
        sizes = [part.tokens for part in parts]
        for module, adapted in self._routes:
            own = [adapted[part.model] for part in parts]
            module.forward = partial(_linear, module, own, sizes)
        try:
            yield
        finally:
            for module, _ in self._routes:
                del module.forward


def _states(backbone: Any, **inputs: torch.Tensor) -> torch.Tensor:
    """The last hidden states; by the class, since the module's own forward may be replaced."""
    states: torch.Tensor = type(backbone).forward(backbone, **inputs, use_cache=False)[0]
    return states


def backbone_of(model: Any) -> Any:
    """The backbone of a PEFT model: its base without the head."""
    plain = model.get_base_model()
    return getattr(plain, plain.base_model_prefix)


def share_frozen(model: Any, first: Any) -> None:
    """Give a PEFT model the frozen weights of another one's backbone, in place of its own.

    Args:
        model: keeps its adapter and its head.
        first: of the same base.
    """
    frozen = {
        name.replace(".base_layer", ""): parameter
        for name, parameter in backbone_of(first).named_parameters()
        if not parameter.requires_grad
    }
    own = {
        id(parameter): frozen[plain]
        for name, parameter in backbone_of(model).named_parameters()
        if (plain := name.replace(".base_layer", "")) in frozen
    }
    for module in model.modules():  # also those outside of the backbone that are tied to it
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in own:
                setattr(module, name, own[id(parameter)])


def _adapted(backbone: Any, name: str) -> Any:
    """The layer of this name if it has an adapter, else None."""
    module = backbone.get_submodule(name)
    return module if hasattr(module, "lora_A") else None


def _linear(module: Any, own: Sequence[Any], sizes: Sequence[int], x: torch.Tensor) -> torch.Tensor:
    """The frozen layer on all tokens, plus each adapter on its own.

    Args:
        module: of the first model, with or without an adapter.
        own: PEFT's layer of each part; None: the part's adapter leaves this layer alone.
        sizes: tokens of each part.
        x: ``[1, tokens, inputs]``.
    """
    import torch

    base = getattr(module, "base_layer", None)
    y: torch.Tensor = type(module).forward(module, x) if base is None else base(x)
    updates = [
        y.new_zeros(1, span.shape[1], y.shape[-1]) if layer is None else _update(layer, span)
        for layer, span in zip(own, x.split(list(sizes), dim=1), strict=True)
    ]
    return y + torch.cat([update.to(y.dtype) for update in updates], dim=1)


def _update(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """``s·B(A(dropout(x)))`` of a layer of PEFT."""
    (name,) = layer.active_adapters
    down, up = layer.lora_A[name], layer.lora_B[name]
    x = x.to(down.weight.dtype)
    result: torch.Tensor = up(down(layer.lora_dropout[name](x))) * layer.scaling[name]
    return result


class _Span(NamedTuple):
    """Rows of equal length, and which keys each query sees; see :meth:`Part.visible`."""

    rows: int
    tokens: int
    visible: torch.Tensor


@contextmanager
def _packed_attention(backbone: Any, parts: Sequence[Part]) -> Iterator[None]:
    """Inside, each part attends to itself; one thread at a time."""
    global _spans
    from transformers import AttentionInterface

    if NAME not in AttentionInterface._global_mapping:
        AttentionInterface.register(NAME, attend)
    config = backbone.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = NAME
    shapes = [part.input_ids.shape for part in parts]
    _spans = [
        _Span(rows, tokens, part.visible())
        for part, (rows, tokens) in zip(parts, shapes, strict=True)
    ]
    try:
        yield
    finally:
        _spans = ()
        config._attn_implementation = before


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within the rows of each part.

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

    check_plain(settings)
    heads, _, width = query.shape[1:]
    kv_heads = key.shape[1]
    sizes = [span.rows * span.tokens for span in _spans]
    outputs = []
    for span, *tensors in zip(
        _spans, *(tensor[0].split(sizes, dim=1) for tensor in (query, key, value)), strict=True
    ):
        queries, keys, values = (
            one.unflatten(1, (span.rows, span.tokens)).transpose(0, 1) for one in tensors
        )
        output = sdpa(
            queries,
            keys,
            values,
            attn_mask=span.visible,
            dropout_p=dropout if module.training else 0.0,
            scale=scaling,
            enable_gqa=heads > kv_heads,
        )
        outputs.append(output.transpose(1, 2).reshape(-1, heads, width))
    return torch.cat(outputs)[None], None
