"""One answer from a text adapter and an image adapter: late fusion of their probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from trunkline.adapters.artifact import Artifact, no_weights
from trunkline.adapters.fusion import Fusion
from trunkline.contracts import Modality
from trunkline.errors import UsageError
from trunkline.images import SUFFIXES
from trunkline.inference.prompts import check_abstain
from trunkline.inference.request import Answer, Request, ResolvedRequest
from trunkline.labels import is_blank
from trunkline.tasks import ClassificationTask

LEAST_PROBABILITY = 1e-7
"""Lower probabilities of a parent count as this one, so that every logarithm is finite."""


def stacked_features(text: Any, image: Any) -> Any:
    """The log probabilities of both parents side by side, ``[rows, 2 * labels]`` float64.

    Args:
        text, image: probabilities ``[rows, labels]``.
    """
    import numpy as np

    both = np.concatenate([np.asarray(text, dtype=float), np.asarray(image, dtype=float)], axis=1)
    return np.log(np.maximum(both, LEAST_PROBABILITY))


def fuse_probabilities(fusion: Fusion, text: Any, image: Any) -> Any:
    """The probabilities of a fusion, ``[rows, labels]`` float64; each row has the sum 1.

    Args:
        text, image: probabilities of the parents, ``[rows, labels]``, in the order of the labels.
    """
    import numpy as np

    if fusion.weight is not None:
        first, second = np.asarray(text, dtype=float), np.asarray(image, dtype=float)
        mixed = fusion.weight * first + (1 - fusion.weight) * second
        return mixed / mixed.sum(-1, keepdims=True)
    weights = np.asarray(fusion.coefficients, dtype=float)
    scores = stacked_features(text, image) @ weights.T + np.asarray(fusion.intercepts, dtype=float)
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


@dataclass(frozen=True, slots=True)
class FusedModel:
    """A fused version with the artifacts of its parents, ready to answer.

    Attributes:
        name: its ref, ``domain/name@3``.
        text, image: the refs and artifacts of the parents.
    """

    name: str
    artifact: Artifact
    task: ClassificationTask
    text: tuple[str, Artifact]
    image: tuple[str, Artifact]

    @property
    def fusion(self) -> Fusion:
        """How the parents are combined."""
        assert self.artifact.manifest.fusion is not None
        return self.artifact.manifest.fusion

    def split(self, request: Request) -> tuple[ResolvedRequest, ResolvedRequest]:
        """The requests to the text's and the picture's parent.

        Raises:
            UsageError: the text or the picture is missing, it can't abstain so, or an embedding is
                requested.
        """
        if request.embed:
            raise no_weights(self.name, self.artifact.manifest)
        if is_blank(request.text) or request.image is None:
            raise missing_half(self.name, "text" if is_blank(request.text) else "image")
        check_abstain(request, self.name, self.task)
        (text, reads_text), (image, reads_image) = self.text, self.image
        one = replace(request, adapter=text, image=None, abstain=None)
        other = replace(request, adapter=image, text="", abstain=None)
        return ResolvedRequest(one, reads_text, text), ResolvedRequest(other, reads_image, image)

    def join(self, request: Request, text: Answer, image: Answer) -> Answer:
        """The answer to a request from those of both parents."""
        labels = self.task.labels
        tables = [
            [[(answer.probabilities or {})[label] for label in labels]] for answer in (text, image)
        ]
        (row,) = fuse_probabilities(self.fusion, *tables).tolist()
        best = max(range(len(labels)), key=row.__getitem__)
        abstained = request.abstain is not None and row[best] < self.task.threshold(request.abstain)
        return replace(
            text,
            adapter=self.name,
            digest=self.artifact.digest,
            prompt_tokens=text.prompt_tokens + image.prompt_tokens,
            truncated=text.truncated or image.truncated,
            label=None if abstained else labels[best],
            abstained=abstained,
            probabilities=dict(zip(labels, row, strict=True)),
        )


def missing_half(name: str, half: Modality) -> UsageError:
    """The error for a request to a fused version without its text or its picture."""
    return UsageError(
        f"{name} reads a text and a picture together, and the text is missing."
        if half == "text"
        else f"{name} reads a text and a picture together, and the picture is missing.",
        f'`trunkline predict {name} "a text" picture.jpg`, or in POST /v1/classify '
        '"input": {"text": "…", "image_url": "data:image/png;base64,…"}.',
    )


def read_pair(name: str, arguments: Sequence[str]) -> tuple[str, str]:
    """The text and the path of the picture among the arguments of a command.

    Raises:
        UsageError: one of them is missing, or there are more.
    """
    pictures = [one.lower().endswith(SUFFIXES) for one in arguments]
    if len(arguments) == 1:
        raise missing_half(name, "text" if pictures[0] else "image")
    if len(arguments) != 2:
        raise UsageError(
            f"{name} reads one text and one picture, and there are {len(arguments)} arguments.",
            f'`trunkline predict {name} "a text" picture.jpg`',
        )
    if pictures == [True, False]:
        raise UsageError(
            f"{arguments[1]!r} is no picture.",
            f'The text comes first: `trunkline predict {name} "{arguments[1]}" {arguments[0]}`.',
        )
    return arguments[0], arguments[1]
