"""How a picture becomes the numbers that an image base reads; stored in the artifact."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from trunkline.errors import UsageError
from trunkline.settings import checks_field_names

Resample = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
RESAMPLES: tuple[Resample, ...] = get_args(Resample)

MAX_EDGE = 4096
"""The largest edge that a base may read, in pixels."""


@checks_field_names
@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """Resize, crop the center, scale to 0…1, subtract the mean, divide by the deviation.

    The names are those of transformers' image processors.

    Attributes:
        height, width: what the base reads, in pixels.
        shortest_edge: the picture is first resized so that its shorter edge has this length; the
            other follows. None: it is resized to ``resize`` instead, whatever its proportions.
        resize: height and width to resize to, without ``shortest_edge``; by default
            ``height, width``.
        resample: the filter of the resizing.
        image_mean, image_std: of red, green and blue, on the scale 0…1.

    Raises:
        UsageError: a value has the wrong type or is out of range.
    """

    height: int
    width: int
    shortest_edge: int | None = None
    resize: tuple[int, int] | None = None
    resample: Resample = "bilinear"
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        for name in ("resize", "image_mean", "image_std"):
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))
        if self.resize is None and self.shortest_edge is None:
            object.__setattr__(self, "resize", (self.height, self.width))
        if self.resize is not None and self.shortest_edge is not None:
            raise UsageError(
                "A preprocessing resizes to shortest_edge or to resize, not to both.",
                "Leave out one of them.",
            )
        for name in ("height", "width", "shortest_edge"):
            value = getattr(self, name)
            if value is not None and not _is_edge(value):
                raise UsageError(
                    f"The preprocessing's {name} is {value!r:.40}.",
                    f"Give an integer from 1 to {MAX_EDGE}.",
                )
        if self.resize is not None and not (
            isinstance(self.resize, tuple)
            and len(self.resize) == 2
            and all(map(_is_edge, self.resize))
        ):
            raise UsageError(
                f"The preprocessing's resize is {self.resize!r:.40}.",
                f"Give height and width, each an integer from 1 to {MAX_EDGE}.",
            )
        least = self.resize or (self.shortest_edge, self.shortest_edge)
        if least[0] < self.height or least[1] < self.width:  # type: ignore[operator]
            raise UsageError(
                f"The preprocessing crops {self.height} × {self.width} of a smaller picture.",
                "Resize to at least what is cropped.",
            )
        if self.resample not in RESAMPLES:
            raise UsageError(
                f"The preprocessing's resample is {self.resample!r:.40}.",
                f"Use one of: {', '.join(RESAMPLES)}.",
            )
        _check_color("image_mean", self.image_mean, least=-10.0)
        _check_color("image_std", self.image_std, least=1e-6)

    @property
    def pixels(self) -> int:
        """Pixels of what the base reads."""
        return self.height * self.width

    def resized(self, image_size: int) -> Preprocessing:
        """The same steps for pictures whose shorter edge has ``image_size`` pixels; 0: as it is.

        What is cropped keeps its share of the picture.
        """
        if not image_size:
            return self
        factor = image_size / min(self.height, self.width)
        height, width = round(factor * self.height), round(factor * self.width)
        edge, resize = self.shortest_edge, self.resize
        return replace(
            self,
            height=height,
            width=width,
            shortest_edge=None if edge is None else max(height, width, round(factor * edge)),
            resize=None
            if resize is None
            else (max(height, round(factor * resize[0])), max(width, round(factor * resize[1]))),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values; :meth:`from_json` reads them."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Preprocessing:
        """The preprocessing that :meth:`to_json` made.

        Raises:
            UsageError: a field is missing, unknown or out of range.
        """
        missing = [name for name in ("height", "width") if name not in values]
        if missing:
            raise UsageError(f"The preprocessing has no {missing[0]}.", "Add it.")
        return cls(**values)


def _is_edge(value: Any) -> bool:
    return type(value) is int and 1 <= value <= MAX_EDGE


def _check_color(name: str, value: Any, *, least: float) -> None:
    numbers = isinstance(value, tuple) and len(value) == 3
    if not numbers or not all(
        type(one) in (int, float) and math.isfinite(one) and least <= one <= 10.0 for one in value
    ):
        raise UsageError(
            f"The preprocessing's {name} is {value!r:.60}.",
            f"Give three numbers from {least:g} to 10, for red, green and blue.",
        )
