"""Load an image base: the shared one for inference, and models for training."""

from __future__ import annotations

import inspect
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from trunkline.bases.identity import json_object, weight_files
from trunkline.bases.image_info import ImageBaseInfo, describe_image
from trunkline.bases.linear import FusedLayers, fuse_linear_layers
from trunkline.bases.load import Base, pick_device, pick_dtype, quiet_transformers
from trunkline.errors import BaseModelError, UsageError, one_line

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from trunkline.bases.image_model import ImageModel


@dataclass(frozen=True, slots=True, eq=False)
class ImageBase:
    """A loaded image base.

    Attributes:
        info: its name, digest and preprocessing.
        model: an :class:`~trunkline.bases.image_model.ImageModel` without a head, in eval mode,
            without gradients. It is shared: for training use :func:`load_fresh_image`.
        device, dtype: of the parameters.
        fused_layers: its linear layers and 1×1 convolutions.
    """

    info: ImageBaseInfo
    model: ImageModel
    device: torch.device
    dtype: torch.dtype
    fused_layers: FusedLayers

    @property
    def digest(self) -> str:
        """The base's identity, 64 hex digits."""
        return self.info.digest

    @property
    def kind(self) -> str:
        """The arithmetic: ``float32``, ``bfloat16`` or ``float16``."""
        return str(self.dtype).removeprefix("torch.")


AnyBase = Base | ImageBase
"""A loaded base of either modality."""

LITE = "tf_efficientnet_lite0"
"""The architecture, as timm names it, that needs no timm here."""

_FOLDED = 1e-4
"""Largest change of a feature by folding, as a share of the largest feature."""

_held: ImageBase | None = None
_lock = threading.Lock()


def load_image(name: str, *, device: str = "auto", dtype: str = "auto") -> ImageBase:
    """Load the image base ``name``, or return it if this process holds it.

    Args:
        name: of a base that is on this machine.
        device, dtype: as for :func:`trunkline.bases.load`; image bases are not quantized.

    Raises:
        BaseModelError: it is missing or damaged, or this process holds another image base.
        UsageError: the dtype quantizes, or the extra for images is not installed.
    """
    global _held
    with _lock:
        info = describe_image(name)
        if _held is not None:
            if _held.digest != info.digest:
                raise BaseModelError(
                    f"This process holds the image base {_held.info.name!r} and can't load "
                    f"{info.name!r} as well.",
                    "Use another process for it.",
                )
            return _held if info == _held.info else replace(_held, info=info)
        target = pick_device(device)
        kind = _pick_dtype(dtype, target)
        with ThreadPoolExecutor(1, "trunkline-load") as apart:  # bases/load.py explains why
            _held = apart.submit(_load_base, info, target, kind).result()
        return _held


def release_image() -> None:
    """Release the shared image base, so that another can be loaded."""
    global _held
    with _lock:
        _held = None


def load_fresh_image(
    name: str,
    head: int | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 0,
) -> ImageModel:
    """Load a separate image model from the base's files, for training.

    Args:
        name: of a base that is on this machine.
        head: outputs of a linear head, initialized from ``seed``; None: no head.
        device, dtype: as in :func:`load_image`.

    Returns:
        A model in eval mode, with gradients enabled.
    """
    from trunkline.bases.image_model import ImageModel

    info = describe_image(name)
    target = pick_device(device)
    backbone = _load_backbone(info, _pick_dtype(dtype, target))
    model = ImageModel(backbone, _features(backbone, info), head, seed=seed)
    return _channels_last(model.to(target, backbone.dtype).eval())


def load_adapted_image(name: str, adapter: Path, head: int, *, device: str = "cpu") -> Any:
    """A separate image model in float32 with the adapter of a folder, as PEFT loads it.

    Args:
        name: of a base that is on this machine.
        adapter: the folder of an artifact.
        head: outputs of the adapter's head.
        device: as in :func:`load_image`.

    Returns:
        PEFT's model in eval mode.
    """
    from peft import PeftModel

    model = load_fresh_image(name, head, device=device, dtype="fp32")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT calls old names of transformers
        return PeftModel.from_pretrained(model, adapter).eval()


def _load_base(info: ImageBaseInfo, device: torch.device, dtype: torch.dtype) -> ImageBase:
    import torch

    from trunkline.bases.image_model import ImageModel

    backbone = _load_backbone(info, dtype)
    model = ImageModel(backbone, _features(backbone, info)).to(device).eval()
    model.requires_grad_(False)
    if dtype is torch.float32 and not _folded(model, info):
        backbone = _load_backbone(info, dtype)
        model = ImageModel(backbone, model.features).to(device).eval().requires_grad_(False)
    _channels_last(model)
    return ImageBase(info, model, device, dtype, fuse_linear_layers(model))


def _folded(model: ImageModel, info: ImageBaseInfo) -> bool:
    """Fold batch normalizations; False if the outputs for a random picture changed."""
    import torch

    from trunkline.bases.image_model import fold_batch_norms

    draw = torch.Generator().manual_seed(0)
    size = (1, 3, info.preprocessing.height, info.preprocessing.width)
    picture = torch.randn(size, generator=draw)
    with torch.inference_mode():
        before = model.pooled(picture)
    fold_batch_norms(model)
    with torch.inference_mode():
        change = (model.pooled(picture) - before).abs().max()
    return bool(change <= _FOLDED * before.abs().max().clamp(min=1e-6))


def _channels_last(model: ImageModel) -> ImageModel:
    """Store kernels with the channels last, as :meth:`ImageModel.pooled` does with pictures.

    A 1×1 convolution then reads the rows of a matrix without a copy.
    """
    import torch

    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model


def _pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    if dtype in ("int8", "nf4"):
        raise UsageError(f"An image base can't be loaded as {dtype}.", "Use auto, fp32 or bf16.")
    return pick_dtype(dtype, device)


def _load_backbone(info: ImageBaseInfo, dtype: torch.dtype) -> Any:
    """The backbone; without its pooling layer, if the base has no weights for it."""
    if info.architecture == LITE:
        return _load_lite(info, dtype)
    backbone, missing = _from_pretrained(info, dtype)
    if any("pooler." in name for name in missing):
        accepted = inspect.signature(type(backbone).__init__).parameters
        if "add_pooling_layer" in accepted:
            backbone, missing = _from_pretrained(info, dtype, add_pooling_layer=False)
    if missing:
        raise BaseModelError(
            f"The base {info.name!r} is damaged: {len(missing)} tensors are missing or of another "
            f"shape, such as {missing[0]}.",
            "Fetch it again, or copy the folder again.",
        )
    return backbone


def _load_lite(info: ImageBaseInfo, dtype: torch.dtype) -> Any:
    """The backbone of EfficientNet-Lite0, which needs no other package."""
    from safetensors.torch import load_file
    from transformers import PreTrainedConfig

    from trunkline.bases.efficientnet_lite import LiteBackbone

    backbone = LiteBackbone(PreTrainedConfig(**json_object(info.folder / "config.json")))
    tensors = {
        name: tensor
        for file in weight_files(info.folder)
        for name, tensor in load_file(file).items()
        if ".classifier." not in name
    }
    try:
        backbone.load_state_dict(tensors)
    except RuntimeError as error:
        raise BaseModelError(
            f"The base {info.name!r} is damaged: {one_line(error)}",
            "Fetch it again: `trunkline base pull efficientnet-lite0`.",
        ) from error
    return backbone.to(dtype)


def _from_pretrained(
    info: ImageBaseInfo, dtype: torch.dtype, **settings: Any
) -> tuple[Any, list[str]]:
    """The backbone, and the tensors that its files lack."""
    from transformers import AutoModel

    try:
        with quiet_transformers():
            backbone, loading = AutoModel.from_pretrained(
                info.folder,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                **settings,
            )
    except ImportError as error:
        raise UsageError(
            f"The base {info.name!r} needs a package that is not installed: {one_line(error)}",
            "Install it; a model of timm needs timm, and a torchvision that fits your torch.",
        ) from error
    except Exception as error:  # transformers raises many types for a bad file or config
        raise BaseModelError(
            f"The weights of the image base in {info.folder} can't be loaded: {one_line(error)}",
            "Check that it is a vision model in the format of this version of transformers; "
            "custom model code is never run.",
        ) from error
    names = {*loading["missing_keys"], *(str(key) for key in loading["mismatched_keys"])}
    return backbone, sorted(names)


def _features(backbone: Any, info: ImageBaseInfo) -> int:
    """The width of the pooled features, from one picture of zeros."""
    import torch

    from trunkline.bases.image_model import pool

    size = (1, 3, info.preprocessing.height, info.preprocessing.width)
    try:
        with torch.inference_mode():
            pooled = pool(backbone.eval()(pixel_values=torch.zeros(size, dtype=backbone.dtype)))
    except Exception as error:  # a model that is not a vision model raises anything
        raise BaseModelError(
            f"The base {info.name!r} can't compute a picture of {size[2]} × {size[3]} pixels: "
            f"{one_line(error)}",
            "Check its image processor.",
        ) from error
    return int(pooled.shape[-1])
