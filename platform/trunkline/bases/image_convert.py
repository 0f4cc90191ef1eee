"""Convert the checkpoint of EfficientNet-Lite0 into a folder that plain transformers loads.

The folder is one of transformers' ``TimmWrapper``: with timm installed, ``AutoModel`` and
``AutoModelForImageClassification`` load it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trunkline.errors import BaseModelError, one_line
from trunkline.files import indented_json

if TYPE_CHECKING:
    import torch

CONFIG: dict[str, Any] = {
    "model_type": "timm_wrapper",
    "architecture": "tf_efficientnet_lite0",
    "architectures": ["TimmWrapperForImageClassification"],
    "num_classes": 1000,
    "num_features": 1280,
    "initializer_range": 0.02,
    "pretrained_cfg": {
        "input_size": [3, 224, 224],
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "crop_mode": "center",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "license": "apache-2.0",
    },
}
"""The configuration as timm states it for ``tf_efficientnet_lite0.in1k``."""

_BLOCK = re.compile(r"_blocks\.(\d+)\.(\w+?)\.(.+)")
_TOP = {
    "_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2",
    "_fc": "classifier",
}  # fmt: skip
_EXPANDING = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
    "_project_conv": "conv_pwl", "_bn2": "bn3",
}  # fmt: skip
_PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def convert_checkpoint(file: Path, folder: Path) -> None:
    """Write weights (fp32 safetensors) and configuration into ``folder``.

    The checkpoint is a pickle. It is read once, with ``weights_only``, after its digest was
    verified.

    Raises:
        BaseModelError: torch can't read it, or it holds other tensors.
    """
    import torch
    from safetensors.torch import save_file

    from trunkline.bases.efficientnet_lite import EfficientNetLite

    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        named = {timm_name(name): tensor for name, tensor in state.items()}
        network = EfficientNetLite(CONFIG["num_classes"])
        network.load_state_dict(named)
    except Exception as error:  # a bad file raises pickle, zip, key, value or runtime errors
        raise BaseModelError(
            f"The file {file.name} could not be converted: {one_line(error)}",
            "Fetch it again, with the version of torch in constraints.txt.",
        ) from error
    tensors: dict[str, torch.Tensor] = {
        f"timm_model.{name}": tensor.contiguous() for name, tensor in network.state_dict().items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_bytes(indented_json(CONFIG))


def timm_name(name: str) -> str:
    """The name that timm gives to a tensor of the checkpoint.

    Raises:
        KeyError: the checkpoint has no such tensor.
    """
    from trunkline.bases.efficientnet_lite import STAGES

    if (match := _BLOCK.fullmatch(name)) is None:
        module, _, rest = name.partition(".")
        return f"{_TOP[module]}.{rest}"
    index = int(match[1])
    for number, stage in enumerate(STAGES):
        blocks, expansion = stage[0], stage[3]
        if index < blocks:
            module = (_EXPANDING if expansion > 1 else _PLAIN)[match[2]]
            return f"blocks.{number}.{index}.{module}.{match[3]}"
        index -= blocks
    raise KeyError(name)
