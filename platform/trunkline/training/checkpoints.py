"""Checkpoints of a training, and a sampler that makes resuming from one exact.

transformers draws the row order of an epoch from the global random state when the epoch begins and
can't draw it again later, so that state is stored with each checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_SAMPLER_STATE = "order.safetensors"


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint; one that was only partly written is skipped."""
    complete: dict[int, Path] = {}
    for path in folder.glob("checkpoint-*"):
        try:
            state = json.loads((path / "trainer_state.json").read_bytes())
            complete[int(state["global_step"])] = path
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return complete[max(complete)] if complete else None


def step_of(checkpoint: Path) -> int:
    """The number of optimizer steps before a checkpoint."""
    return int(checkpoint.name.rpartition("-")[2])


def load_weights(model: Any, checkpoint: Path) -> None:
    """Load a checkpoint's adapter into a PEFT model."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    weights = load_file(checkpoint / "adapter_model.safetensors", device=str(model.device))
    set_peft_model_state_dict(model, weights)


class ResumableSampler:
    """Yields row indices grouped by similar length, in random order that can be repeated.

    Args:
        lengths: of the examples, in tokens.
        rows: number of rows in one optimizer step.
    """

    def __init__(self, lengths: Sequence[int], rows: int) -> None:
        self._lengths, self._rows = list(lengths), rows
        self._epoch_state: torch.Tensor | None = None
        self._next_state: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        import torch
        from transformers.trainer_pt_utils import get_length_grouped_indices

        if self._next_state is not None:
            torch.set_rng_state(self._next_state)
            self._next_state = None
        self._epoch_state = torch.get_rng_state()
        return iter(get_length_grouped_indices(self._lengths, self._rows))

    def save(self, checkpoint: Path) -> None:
        """Store the random state from which the current epoch's order was drawn."""
        from safetensors.torch import save_file

        if self._epoch_state is not None:
            save_file({"begin": self._epoch_state}, checkpoint / _SAMPLER_STATE)

    def restore(self, checkpoint: Path) -> None:
        """Draw the next epoch's order as in the epoch in which ``checkpoint`` was saved."""
        from safetensors.torch import load_file

        if (checkpoint / _SAMPLER_STATE).exists():
            self._next_state = load_file(checkpoint / _SAMPLER_STATE)["begin"]
