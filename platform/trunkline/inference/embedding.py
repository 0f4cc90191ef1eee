"""Embeddings: the mean of a text's last hidden states, scaled to length 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class EmbeddingTask:
    """Pools the hidden states of one text; every base and every adapter can do it.

    Attributes:
        skip: how many tokens at the start are read but not pooled, such as a start token.
    """

    kind: ClassVar[str] = "embedding"
    skip: int = 0

    def pool(
        self, total: torch.Tensor | None, hidden: torch.Tensor, start: int
    ) -> torch.Tensor | None:
        """Add hidden states, ``[tokens, hidden]``, to their sum, ``[hidden]`` float32.

        Args:
            total: the sum so far.
            start: position of the first of the tokens in the text.
        """
        part = hidden[max(0, self.skip - start) :]
        if not len(part):
            return total
        part_sum = part.float().sum(0)
        return part_sum if total is None else total + part_sum

    def decode(self, total: torch.Tensor) -> tuple[float, ...]:
        """The sum scaled to length 1, as is the mean; a sum of zero stays zero."""
        wide = total.cpu().double()
        length = float(wide.norm()) or 1.0
        return tuple((wide / length).tolist())
