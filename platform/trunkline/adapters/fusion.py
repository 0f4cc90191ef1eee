"""The part of a manifest that says how a version combines the answers of a text and an image
adapter: the method, its numbers, and the digests of both parents."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from trunkline.contracts import FusionMethod
from trunkline.files import canonical_json

FUSED: Final = "text+image"
"""What a fused version reads: a text and a picture together."""

_Number = Annotated[float, Field(gt=-1e6, lt=1e6, allow_inf_nan=False)]


class FusedParent(BaseModel):
    """A version whose answers are combined: its ref at that time, and its digest."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    ref: str
    digest: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}\z")]


class Fusion(BaseModel):
    """How two parents are combined; all numbers were fitted on validation rows.

    Attributes:
        method: ``average`` of the probabilities, or ``stacked``: multinomial logistic regression
            on the log probabilities.
        text, image: the parents.
        weight: of ``average``: the share of the text's probabilities, from 0 to 1.
        coefficients: of ``stacked``: for each label its coefficients of the log probabilities of
            all labels, first the text's, then the picture's.
        intercepts: of ``stacked``: one for each label.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    method: FusionMethod
    text: FusedParent
    image: FusedParent
    weight: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    coefficients: list[list[_Number]] | None = None
    intercepts: list[_Number] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.text.digest == self.image.digest:
            raise ValueError("text and image are one version")
        averages = self.method == "average"
        for name, needed in (
            ("weight", averages),
            ("coefficients", not averages),
            ("intercepts", not averages),
        ):
            if (getattr(self, name) is not None) != needed:
                raise ValueError(f"{self.method} {'needs' if needed else 'has no'} {name}")
        return self

    @property
    def parents(self) -> tuple[FusedParent, FusedParent]:
        """The text's parent, then the picture's."""
        return self.text, self.image

    def check_labels(self, labels: int) -> None:
        """Raise ``ValueError`` unless the numbers are for so many labels."""
        if self.coefficients is None or self.intercepts is None:
            return
        sizes = {len(row) for row in self.coefficients}
        counts = {len(self.coefficients), len(self.intercepts)}
        if sizes != {2 * labels} or counts != {labels}:
            raise ValueError(f"the coefficients are not for {labels} labels")

    def to_json(self) -> dict[str, Any]:
        """The fields that the method has."""
        return self.model_dump(exclude_none=True)


def pair_digest(text: str, image: str) -> str:
    """The digest of the pair of bases that a fused version needs, 64 hex digits.

    Args:
        text, image: the digests of the two bases.
    """
    return hashlib.sha256(canonical_json({"text": text, "image": image})).hexdigest()
