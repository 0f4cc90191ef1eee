"""Skip the layers below the lowest adapted one: their outputs never change in a training.

The first pass over a row keeps the hidden states that enter the lowest adapted layer; later epochs
begin there. The loss is the same as with all layers computed, which the first batch checks; in bf16
it is the same but for rounding. The last bits of a state depend on the batch that it was computed
in, so a resumed training computes the same batches again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    import torch

_TOLERANCE = 1e-4
"""Largest difference of an output, as a share of the largest output."""


class FrozenLayers:
    """The kept hidden states of the training rows of one model.

    Args:
        backbone: a decoder with the modules ``embed_tokens``, ``layers`` and ``norm``.
        lowest: index of the lowest layer with an adapter; those below it are frozen.
        budget: memory for kept states, in bytes; rows beyond it are computed each time.

    Attributes:
        bf16: compute the states under autocast to bfloat16, as the forward pass of a training is.
    """

    bf16 = False

    def __init__(self, backbone: nn.Module, lowest: int, budget: int) -> None:
        self._backbone, self._lowest, self._left = backbone, lowest, budget
        self._kept: dict[tuple[int, int], torch.Tensor] = {}
        self._batches: list[list[int]] = []

    @classmethod
    def of(cls, model: Any, layers: Sequence[int] | None, budget: int) -> FrozenLayers | None:
        """For a PEFT model, or None if no layer below the adapted ones can be skipped.

        Args:
            layers: indices of the adapted layers; None: all.
            budget: memory for kept states, in bytes.
        """
        plain = model.get_base_model()
        backbone = getattr(plain, plain.base_model_prefix)
        names = ("embed_tokens", "layers", "norm")
        if not layers or min(layers) == 0 or budget <= 0:
            return None
        if not all(isinstance(getattr(backbone, name, None), nn.Module) for name in names):
            return None
        return cls(backbone, min(layers), budget)

    def is_exact(self, inputs: Mapping[str, torch.Tensor], forward: Callable[[], Any]) -> bool:
        """Whether skipping gives the outputs of all layers, for one batch.

        Models that change the embeddings before the first layer do not pass.

        Args:
            inputs: a batch.
            forward: computes its outputs, a tensor.
        """
        import torch

        with torch.no_grad():
            expected = forward().nan_to_num(neginf=0.0)  # the padding of a ranking
            with self.skipped([], inputs):
                actual = forward().nan_to_num(neginf=0.0)
        size = float(expected.abs().max()) or 1.0
        return bool((actual - expected).abs().max() <= _TOLERANCE * size)

    @contextmanager
    def skipped(self, rows: Sequence[int], inputs: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Inside, a forward pass of this batch begins at the lowest adapted layer.

        Args:
            rows: index of each row of the batch; empty: keep nothing.
            inputs: ``input_ids``, ``attention_mask`` and perhaps ``position_ids``, each
                ``[prompts, tokens]``; of rows with several prompts also ``sizes``, ``[batch]``.
        """
        states = self._states(rows, inputs)
        layers: Any = self._backbone.layers
        with self._replaced(embed_tokens=_Given(states), layers=layers[self._lowest :]):
            yield

    def save(self, path: Path) -> None:
        """Store which batches the kept states were computed in."""
        path.write_text(json.dumps(self._batches), encoding="utf-8")

    def restore(
        self, path: Path, inputs_of: Callable[[Sequence[int]], Mapping[str, torch.Tensor]]
    ) -> None:
        """Keep the states that a training kept when it stored ``path``, bit for bit.

        Args:
            inputs_of: the batch of these rows.
        """
        for rows in json.loads(path.read_text(encoding="utf-8")):
            self._states(rows, inputs_of(rows))

    def _states(self, rows: Sequence[int], inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Hidden states ``[prompts, tokens, hidden]``; zero where there is padding."""
        import torch

        mask = inputs["attention_mask"].bool()
        prompts = _prompts(rows, inputs)
        if rows and all(prompt in self._kept for prompt in prompts):
            first = self._kept[prompts[0]]
            states = first.new_zeros(*mask.shape, first.shape[-1])
            for index, prompt in enumerate(prompts):
                states[index, mask[index]] = self._kept[prompt]
            return states
        names = ("input_ids", "attention_mask", "position_ids")
        given = {name: inputs[name] for name in names if name in inputs}
        layers: Any = self._backbone.layers
        autocast = torch.autocast(inputs["input_ids"].device.type, torch.bfloat16, self.bf16)
        with (
            torch.no_grad(),
            autocast,
            self._replaced(layers=layers[: self._lowest], norm=nn.Identity()),
        ):
            states = self._backbone(**given).last_hidden_state
        count = len(self._kept)
        for index, prompt in enumerate(prompts):
            kept = states[index, mask[index]].clone()
            size = kept.numel() * kept.element_size()
            if prompt not in self._kept and size <= self._left:
                self._kept[prompt] = kept
                self._left -= size
        if len(self._kept) > count:
            self._batches.append(list(rows))
        return states

    @contextmanager
    def _replaced(self, **modules: Any) -> Iterator[None]:
        """The backbone with other modules under these names; their parameters stay the same."""
        before = {name: getattr(self._backbone, name) for name in modules}
        for name, module in modules.items():
            setattr(self._backbone, name, module)
        try:
            yield
        finally:
            for name, module in before.items():
                setattr(self._backbone, name, module)


def _prompts(rows: Sequence[int], inputs: Mapping[str, torch.Tensor]) -> list[tuple[int, int]]:
    """The row of each prompt, and its number within the row."""
    sizes = inputs["sizes"].tolist() if "sizes" in inputs else [1] * len(rows)
    return [(row, n) for row, size in zip(rows, sizes, strict=bool(rows)) for n in range(size)]


class _Given(nn.Module):
    """Takes the place of the embedding and returns states that are computed already."""

    def __init__(self, states: torch.Tensor) -> None:
        super().__init__()
        self._states = states

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self._states
