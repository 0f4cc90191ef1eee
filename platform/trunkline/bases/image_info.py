"""Describe an image base from its files, without importing torch or transformers.

An image base is a folder that ``AutoModel`` of transformers loads, with
``preprocessor_config.json`` or, for a model of timm, ``pretrained_cfg`` in ``config.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trunkline.bases.identity import (
    cached_image_digest,
    damaged,
    json_object,
    weight_files,
)
from trunkline.bases.info import (
    CAUSAL,
    BaseInfo,
    ImageManifest,
    count_parameters,
    describe,
    read_manifest,
)
from trunkline.bases.sources import (
    FolderSource,
    WheelSource,
    located,
    resolve,
)
from trunkline.contracts import Modality
from trunkline.errors import BaseModelError, UsageError
from trunkline.preprocessing import RESAMPLES, Preprocessing

PROCESSOR = "preprocessor_config.json"
_TEXT_PARTS = ("text_config", "vocab_size")
RESAMPLE_NUMBERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""The filters by Pillow's numbers, which image processors store."""

_IMAGE_HINT = (
    "Use a vision model that transformers loads with AutoModel, such as a ViT, DINOv2, ConvNeXt or "
    "ResNet."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageBaseInfo:
    """An image base that is on this machine.

    Attributes:
        name: of the base; of a folder the absolute path.
        source: a phrase on where its files come from.
        folder: the weights in the format that plain transformers loads.
        digest: identity, 64 hex digits.
        architecture: class name in transformers, of a model of timm its name there.
        parameters: stored parameters.
        dtype: of most stored parameters, such as ``float32``.
        preprocessing: from a picture to what the base reads.
        bytes: of the weight files.
        pulled: whether ``pull`` fetched it (wheel or hub), unlike a user's own folder.
    """

    name: str
    source: str
    folder: Path
    digest: str
    architecture: str
    parameters: int
    dtype: str
    preprocessing: Preprocessing
    bytes: int
    pulled: bool


AnyInfo = BaseInfo | ImageBaseInfo
"""What is known about a base of either modality."""


def modality_of(name: str) -> Modality:
    """What the base ``name`` reads; a base that is not on this machine yet counts as text.

    Raises:
        NotFoundError: there is no such base.
    """
    source = resolve(name)
    if isinstance(source, WheelSource):
        return source.base.modality
    try:
        return _modality_in(located(source)[0])
    except BaseModelError:
        return "text"


def describe_any(name: str) -> AnyInfo:
    """:func:`~trunkline.bases.info.describe` or :func:`describe_image`, by the base's modality."""
    return describe_image(name) if modality_of(name) == "image" else describe(name)


def describe_image(name: str) -> ImageBaseInfo:
    """Read an image base's headers and configuration, and identify it.

    Raises:
        NotFoundError: there is no such base.
        BaseModelError: it was not pulled yet, is damaged, or is not an image base.
    """
    from trunkline.workspace import cache_folder

    source = resolve(name)
    folder, origin = located(source)
    pulled = not isinstance(source, FolderSource)
    info = read_image_info(source.name, origin, folder, cache_folder() / "digests", pulled=pulled)
    if (
        isinstance(source, WheelSource)
        and read_manifest(folder, ImageManifest).digest != info.digest
    ):
        raise BaseModelError(
            f"The base {name!r} in {folder} is not what was pulled: its digest is "
            f"{info.digest[:12]}.",
            f"Fetch it again: `trunkline base pull {name}`.",
        )
    return info


def read_image_info(
    name: str, origin: str, folder: Path, digests: Path, *, pulled: bool
) -> ImageBaseInfo:
    """:func:`describe_image` for a folder that is already located.

    Args:
        name, origin, pulled: to put into the result.
        folder: of the base.
        digests: the folder of cached digests.
    """
    if not (folder / "config.json").is_file():
        raise BaseModelError(
            f"The folder {folder} is not a base: it has no config.json.",
            "Give a folder written by save_pretrained of transformers.",
        )
    config = json_object(folder / "config.json")
    parameters, dtype = count_parameters(folder)
    return ImageBaseInfo(
        name=name,
        source=origin,
        folder=folder,
        architecture=_architecture(config, folder),
        parameters=parameters,
        dtype=dtype,
        preprocessing=read_preprocessing(config, folder),
        digest=cached_image_digest(folder, digests),
        bytes=sum(file.stat().st_size for file in weight_files(folder)),
        pulled=pulled,
    )


def read_preprocessing(config: Mapping[str, Any], folder: Path) -> Preprocessing:
    """The preprocessing that a base's folder states.

    Raises:
        BaseModelError: it states none, or a step that is not supported.
    """
    file = folder / PROCESSOR
    try:
        if isinstance(config.get("pretrained_cfg"), dict):
            return _of_timm(config["pretrained_cfg"])
        if file.is_file():
            return _of_processor(json_object(file))
    except UsageError as error:
        raise damaged(file, f"can't be used: {error.message.rstrip('.')}") from error
    raise BaseModelError(
        f"The base in {folder} does not state how pictures are prepared: it has no {PROCESSOR}.",
        "Save the image processor with the weights: processor.save_pretrained(folder).",
    )


def _modality_in(folder: Path) -> Modality:
    config = json_object(folder / "config.json") if (folder / "config.json").is_file() else {}
    names = config.get("architectures")
    causal = isinstance(names, list) and bool(names) and str(names[0]).endswith(CAUSAL)
    states_image = (folder / PROCESSOR).is_file() or "pretrained_cfg" in config
    return "image" if states_image and not causal else "text"


def _architecture(config: Mapping[str, Any], folder: Path) -> str:
    """The name of the architecture; refuses models that read more than pictures."""
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if isinstance(config.get("architecture"), str):
        name = config["architecture"]
    if not isinstance(name, str) or any(part in config for part in _TEXT_PARTS):
        raise BaseModelError(
            f"The base in {folder} is not a vision model alone: its config.json names "
            f"{name or 'no architecture'}.",
            f"{_IMAGE_HINT} Of a model with two towers, save the vision model alone.",
        )
    if config.get("num_channels", 3) != 3:
        raise BaseModelError(
            f"The base in {folder} reads {config['num_channels']!r} channels; 3 are supported.",
            "Use a base for red, green and blue.",
        )
    return name


def _of_timm(values: Mapping[str, Any]) -> Preprocessing:
    """The evaluation transform of timm: resize the shorter edge, crop the center."""
    _, height, width = values.get("input_size", (3, 224, 224))
    edge = int(min(height, width) / float(values.get("crop_pct", 0.875)))
    if values.get("crop_mode", "center") != "center":
        raise UsageError(f"crop_mode is {values['crop_mode']!r}, which is not supported.")
    return Preprocessing(
        height=height,
        width=width,
        shortest_edge=max(edge, height, width),
        resample=values.get("interpolation", "bilinear"),
        image_mean=tuple(values.get("mean", (0.5, 0.5, 0.5))),
        image_std=tuple(values.get("std", (0.5, 0.5, 0.5))),
    )


def _of_processor(values: Mapping[str, Any]) -> Preprocessing:
    """The steps of an image processor of transformers."""
    for step, wanted in (("do_resize", True), ("do_rescale", True), ("do_pad", False)):
        if bool(values.get(step, wanted)) != wanted:
            raise UsageError(f"{step} is {values[step]!r}, which is not supported.")
    if values.get("do_flip_channel_order"):
        raise UsageError("do_flip_channel_order is true, which is not supported.")
    if abs(float(values.get("rescale_factor") or 1 / 255) * 255 - 1) > 1e-6:
        raise UsageError(f"rescale_factor is {values['rescale_factor']!r}, which is not supported.")
    normalized = values.get("do_normalize", True)
    colors = {
        "image_mean": _color(values.get("image_mean"), 0.5) if normalized else (0.0,) * 3,
        "image_std": _color(values.get("image_std"), 0.5) if normalized else (1.0,) * 3,
        "resample": _filter(values.get("resample", 2)),
    }
    size = values.get("size")
    if isinstance(size, int):
        size = {"height": size, "width": size}
    if not isinstance(size, Mapping):
        raise UsageError(f"size is {size!r:.60}, which is not supported.")
    edge = size.get("shortest_edge")
    if edge is not None and "crop_pct" in values:  # ConvNextImageProcessor, also of ResNet
        if edge >= _CONVNEXT_WARPED:
            return Preprocessing(height=edge, width=edge, **colors)
        resized = int(edge / float(values["crop_pct"] or 224 / 256))
        return Preprocessing(height=edge, width=edge, shortest_edge=resized, **colors)
    cropped = values.get("crop_size") if values.get("do_center_crop") else None
    if isinstance(cropped, int):
        cropped = {"height": cropped, "width": cropped}
    if edge is not None:
        cropped = cropped or {"height": edge, "width": edge}
        return Preprocessing(**_edges(cropped), shortest_edge=edge, **colors)
    edges = _edges(size)
    resize = (edges["height"], edges["width"])
    return Preprocessing(**_edges(cropped or size), resize=resize, **colors)


_CONVNEXT_WARPED = 384
"""The shorter edge from which ConvNextImageProcessor resizes without a crop."""


def _edges(size: Mapping[str, Any]) -> dict[str, Any]:
    if not {"height", "width"} <= size.keys():
        raise UsageError(f"size is {dict(size)!r:.60}, which is not supported.")
    return {"height": size["height"], "width": size["width"]}


def _color(value: Any, default: float) -> tuple[Any, ...]:
    if value is None:
        return (default,) * 3
    return tuple(value) if isinstance(value, list | tuple) else (value,) * 3


def _filter(value: Any) -> Any:
    if isinstance(value, int) and 0 <= value < len(RESAMPLE_NUMBERS):
        return RESAMPLE_NUMBERS[value]
    if isinstance(value, str) and value.lower() in RESAMPLES:
        return value.lower()
    raise UsageError(f"resample is {value!r:.40}, which is not supported.")
