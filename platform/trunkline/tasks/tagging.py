"""Tagging: labeled spans of a text, from a linear head on the hidden state of each token.

Tags are those of the BIO scheme (Ramshaw & Marcus 1995): ``B-`` at the first token of a span,
``I-`` inside it, ``O`` outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from trunkline.contracts import LossContext, Row, Span
from trunkline.data.encode import Prompt
from trunkline.data.targets import spans_of
from trunkline.tasks.batches import pad

if TYPE_CHECKING:
    import torch

OUTSIDE = "O"
IGNORED = -100

Offsets = Sequence[tuple[int, int] | None]
"""For each token of a prompt the characters of the text that it covers; None outside the text."""


@dataclass(frozen=True, slots=True)
class TaggingTask:
    """Spans of a text.

    Attributes:
        labels: of the spans, in the order of the head's outputs.
    """

    kind: ClassVar[str] = "tagging"
    labels: tuple[str, ...]

    @property
    def tags(self) -> tuple[str, ...]:
        """The outputs of the head: ``O``, then ``B-`` and ``I-`` of each label."""
        return (OUTSIDE, *(f"{part}-{label}" for label in self.labels for part in "BI"))

    @property
    def head_size(self) -> int:
        """Outputs of the head for each token."""
        return 1 + 2 * len(self.labels)

    def example(self, prompts: Sequence[Prompt], row: Row, tokenizer: Any) -> dict[str, Any]:
        """Encode one training row: a tag for each token of the text, none for the template's."""
        prompt = prompts[0]
        inside = [offsets for offsets in prompt.offsets if offsets is not None]
        targets = iter(self.tags_of(spans_of(row), inside))
        return {
            "input_ids": prompt.ids,
            "tags": [IGNORED if one is None else next(targets) for one in prompt.offsets],
            "offsets": inside,
        }

    def tags_of(self, spans: Sequence[Span], offsets: Sequence[tuple[int, int]]) -> list[int]:
        """The tag of each token; a token that two spans share belongs to the first.

        Args:
            spans: in order, not overlapping.
            offsets: the characters that each token covers.
        """
        tags = [0] * len(offsets)
        left = list(spans)
        begun: Span | None = None
        for index, (start, end) in enumerate(offsets):
            while left and left[0].end <= start:
                left.pop(0)
            if left and left[0].start < end and start < end:
                first = left[0] is not begun
                begun = left[0]
                tags[index] = 1 + 2 * self.labels.index(begun.label) + (not first)
        return tags

    def collate(self, examples: Sequence[dict[str, Any]], pad_id: int) -> dict[str, torch.Tensor]:
        """Pad examples into a batch; ``targets`` is ``[batch, tokens]``, :data:`IGNORED` outside
        the texts.
        """
        import torch

        batch = pad([example["input_ids"] for example in examples], pad_id)
        batch["targets"] = torch.full_like(batch["input_ids"], IGNORED)
        for index, example in enumerate(examples):
            batch["targets"][index, : len(example["tags"])] = torch.tensor(example["tags"])
        return batch

    def outputs(
        self, model: Any, batch: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits ``[tokens, tags]`` in float32 and tags ``[tokens]``, of the texts' tokens."""
        result = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        inside = batch["targets"] != IGNORED
        return result.logits[inside].float(), batch["targets"][inside]

    def loss_context(self, rows: Sequence[Row]) -> LossContext:
        """The tags; how many tokens have each is known only after encoding."""
        return LossContext(labels=self.tags, rows=len(rows))

    def decode(
        self, outputs: torch.Tensor, examples: Sequence[dict[str, Any]] = ()
    ) -> list[tuple[tuple[Span, ...], tuple[float, ...]]]:
        """Logits ``[tokens, tags]`` of the texts' tokens → spans and their probabilities, by row.

        A span begins at ``B-``, and at ``I-`` of another label than before; its probability is the
        lowest of its tokens' tags.

        Args:
            examples: with ``offsets`` of the texts' tokens; together as many as ``outputs``.
        """
        best, tags = outputs.float().softmax(-1).max(-1)
        values = list(zip(tags.tolist(), best.tolist(), strict=True))
        results: list[tuple[tuple[Span, ...], tuple[float, ...]]] = []
        at = 0
        for example in examples:
            offsets = example["offsets"]
            results.append(self._spans(values[at : at + len(offsets)], offsets))
            at += len(offsets)
        return results

    def _spans(
        self, values: Sequence[tuple[int, float]], offsets: Sequence[tuple[int, int]]
    ) -> tuple[tuple[Span, ...], tuple[float, ...]]:
        spans: list[Span] = []
        scores: list[float] = []
        previous = -1  # index of the label that may go on
        for (tag, probability), (start, end) in zip(values, offsets, strict=True):
            if start == end:  # white space, or a further part of a character
                continue
            if tag == 0:
                previous = -1
                continue
            label, inside = divmod(tag - 1, 2)
            if inside and label == previous:
                spans[-1] = spans[-1]._replace(end=max(end, spans[-1].end))
                scores[-1] = min(scores[-1], probability)
            elif spans and start < spans[-1].end:  # parts of one character
                continue
            else:
                spans.append(Span(start, end, self.labels[label]))
                scores.append(probability)
            previous = label
        return tuple(spans), tuple(scores)

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "labels": list(self.labels)}
