"""Checkpoints of a running training, and what makes going on from one exact.

Owns: which checkpoint counts, and the order of the rows within an epoch. Must not know: recipes,
the registry. transformers draws that order from the global random numbers at the epoch's begin and
can't draw it again in its middle, so the state at that moment is kept beside each checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_ORDER = "order.safetensors"


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint; one that was cut off while it was written is passed over."""
    whole: dict[int, Path] = {}
    for path in folder.glob("checkpoint-*"):
        try:
            state = json.loads((path / "trainer_state.json").read_bytes())
            whole[int(state["global_step"])] = path
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return whole[max(whole)] if whole else None


def step_of(checkpoint: Path) -> int:
    """Optimiser steps that were taken before it."""
    return int(checkpoint.name.rpartition("-")[2])


def load_weights(model: Any, checkpoint: Path) -> None:
    """Put a checkpoint's adapter into a PEFT model."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    weights = load_file(checkpoint / "adapter_model.safetensors", device=str(model.device))
    set_peft_model_state_dict(model, weights)


class Order:
    """A sampler that groups rows of similar length, at random, and can repeat an epoch's order.

    Args:
        lengths: of the examples, in tokens.
        rows: of one optimizer step.
    """

    def __init__(self, lengths: Sequence[int], rows: int) -> None:
        self._lengths, self._rows = list(lengths), rows
        self._begin: torch.Tensor | None = None
        self._next: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        import torch
        from transformers.trainer_pt_utils import get_length_grouped_indices

        if self._next is not None:
            torch.set_rng_state(self._next)
            self._next = None
        self._begin = torch.get_rng_state()
        return iter(get_length_grouped_indices(self._lengths, self._rows))

    def save(self, checkpoint: Path) -> None:
        """Keep how the present epoch's order was drawn."""
        from safetensors.torch import save_file

        if self._begin is not None:
            save_file({"begin": self._begin}, checkpoint / _ORDER)

    def repeat(self, checkpoint: Path) -> None:
        """Draw the next epoch as the one was drawn that ``checkpoint`` stands in the middle of."""
        from safetensors.torch import load_file

        if (checkpoint / _ORDER).exists():
            self._next = load_file(checkpoint / _ORDER)["begin"]
