"""Write an adapter for pictures, merged into its base, as a model that other programs load.

The folder of a base of transformers loads with ``AutoModelForImageClassification``. That of
EfficientNet-Lite0 is one of transformers' ``TimmWrapper``, which needs timm; it is read back with
the network of this package, which has the same tensors.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trunkline.adapters.artifact import Artifact, write_json
from trunkline.bases import ImageBaseInfo, load_adapted_image
from trunkline.bases.identity import json_object
from trunkline.bases.image_info import PROCESSOR, RESAMPLE_NUMBERS, read_preprocessing
from trunkline.bases.image_load import LITE
from trunkline.bases.load import pick_device, quiet_transformers
from trunkline.contracts import Row
from trunkline.data.pictures import read_pixels, to_tensor
from trunkline.errors import UsageError, one_line
from trunkline.images import ImageSource
from trunkline.preprocessing import Preprocessing
from trunkline.tasks import AnyTask, ClassificationTask

if TYPE_CHECKING:
    import torch

_PROBES = 8
_EDGE = 64
_WEIGHTS = "model.safetensors"


def probe_rows() -> tuple[Row, ...]:
    """Rows with pictures of random colors, for a version that came without a dataset."""
    import io

    import numpy as np

    from trunkline.data.pictures import pillow

    image_module, _ = pillow()
    rng = np.random.default_rng(0)
    rows = []
    for number in range(1, _PROBES + 1):
        pixels = rng.integers(0, 256, (_EDGE, _EDGE, 3), dtype=np.uint8)
        stream = io.BytesIO()
        image_module.fromarray(pixels).save(stream, "PNG")
        name = f"probe/{number}"
        image = ImageSource(stream.getvalue(), name)
        rows.append(Row(id=name, image=image, target="", group=name))
    return tuple(rows)


def picture_reader(row: Row, preprocessing: Preprocessing) -> Callable[[], torch.Tensor]:
    """A function that returns the row's picture, ``[3, height, width]`` float32."""

    def read() -> torch.Tensor:
        return to_tensor(read_pixels(row.picture, preprocessing), preprocessing)

    return read


def write_merged_images(
    info: ImageBaseInfo, artifact: Artifact, task: AnyTask, folder: Path
) -> None:
    """Write the base with the adapter added to its weights (PEFT computes), and its head.

    Raises:
        UsageError: transformers' classifier of this architecture does not compute what the adapter
            was trained for.
    """
    assert task.head_size is not None
    model = load_adapted_image(info.name, artifact.folder, task.head_size)
    merged = model.merge_and_unload(safe_merge=True)
    folder.mkdir()
    write = _write_lite if info.architecture == LITE else _write_classifier
    write(info, merged, task, folder)
    _write_preprocessing(info, artifact.manifest.make_preprocessing(), folder)


def load_merged_images(
    info: ImageBaseInfo, task: AnyTask, folder: Path, device: str
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Read an export back; returns what computes logits of pictures ``[batch, 3, …]``."""
    from transformers import AutoModelForImageClassification

    if info.architecture == LITE:
        model: Any = _read_lite(folder, task)
    else:
        with quiet_transformers():
            model = AutoModelForImageClassification.from_pretrained(
                folder, dtype="auto", local_files_only=True, use_safetensors=True
            )
    target = pick_device(device)
    model = model.to(target).eval()

    def logits(pixels: torch.Tensor) -> torch.Tensor:
        output = model(pixel_values=pixels.to(target))
        result: torch.Tensor = getattr(output, "logits", output)
        return result

    return logits


def _labels(task: AnyTask) -> dict[str, Any]:
    """The fields of a configuration of transformers that name the outputs."""
    if not isinstance(task, ClassificationTask):
        return {"num_labels": 1, "problem_type": "regression"}
    return {
        "id2label": dict(enumerate(task.labels)),
        "label2id": {label: index for index, label in enumerate(task.labels)},
    }


def _write_classifier(info: ImageBaseInfo, merged: Any, task: AnyTask, folder: Path) -> None:
    """The folder of transformers' classification model, with the merged weights."""
    import torch
    from torch import nn
    from transformers import AutoConfig, AutoModelForImageClassification

    refused = partial(_refused, info)
    prefix = merged.base_model_prefix
    try:
        config = AutoConfig.from_pretrained(info.folder, local_files_only=True, **_labels(task))
        plain = AutoModelForImageClassification.from_config(config)
    except ValueError as error:
        raise refused(one_line(error)) from error
    backbone = getattr(plain, prefix, None)
    heads = [
        module
        for name, module in plain.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith(f"{prefix}.")
    ]
    weight = merged.classifier.weight.detach()
    if backbone is None or len(heads) != 1 or heads[0].weight.shape != weight.shape:
        raise refused("its head does not read the pooled features alone")
    state = getattr(merged, prefix).state_dict()
    if state.keys() != backbone.state_dict().keys():
        raise refused("it pools the features in another way")
    backbone.load_state_dict(state)
    with torch.no_grad():
        heads[0].weight.copy_(weight)
        if heads[0].bias is not None:
            heads[0].bias.zero_()
    with quiet_transformers():
        plain.save_pretrained(folder, safe_serialization=True)


def _write_preprocessing(info: ImageBaseInfo, steps: Preprocessing, folder: Path) -> None:
    """State how pictures are prepared where transformers reads it.

    Raises:
        UsageError: the image processor has no such steps.
    """
    config = json_object(folder / "config.json")
    if isinstance(config.get("pretrained_cfg"), dict):
        edge = steps.shortest_edge or min(steps.height, steps.width)
        config["pretrained_cfg"] |= {
            "input_size": [3, steps.height, steps.width],
            "crop_pct": min(steps.height, steps.width) / edge,
        }
        write_json(folder / "config.json", config)
    elif steps == info.preprocessing:
        shutil.copyfile(info.folder / PROCESSOR, folder / PROCESSOR)
    else:
        size: dict[str, Any] = {"shortest_edge": steps.shortest_edge}
        if steps.resize is not None:
            size = dict(zip(("height", "width"), steps.resize, strict=True))
        processor = {
            "image_processor_type": "CLIPImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": size,
            "resample": RESAMPLE_NUMBERS.index(steps.resample),
            "do_center_crop": True,
            "crop_size": {"height": steps.height, "width": steps.width},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [*steps.image_mean],
            "image_std": [*steps.image_std],
        }
        write_json(folder / PROCESSOR, processor)
    if read_preprocessing(config, folder) != steps:
        raise _refused(info, f"no image processor prepares pictures as {steps.to_json()}")


def _refused(info: ImageBaseInfo, reason: str) -> UsageError:
    return UsageError(
        f"transformers' classification model for {info.architecture} can't hold this version: "
        f"{reason}.",
        "Its artifact loads with plain PEFT on the base; or archive it with --format archive.",
    )


def _write_lite(info: ImageBaseInfo, merged: Any, task: AnyTask, folder: Path) -> None:
    """The folder of transformers' ``TimmWrapperForImageClassification``."""
    import torch
    from safetensors.torch import save_file

    network = getattr(merged, merged.base_model_prefix).timm_model
    tensors = {f"timm_model.{name}": tensor for name, tensor in network.state_dict().items()}
    weight = merged.classifier.weight.detach()
    tensors["timm_model.classifier.weight"] = weight
    tensors["timm_model.classifier.bias"] = torch.zeros(len(weight))
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, folder / _WEIGHTS, metadata={"format": "pt"})
    named = task.labels if isinstance(task, ClassificationTask) else ("number",)
    config: Mapping[str, Any] = json_object(info.folder / "config.json")
    write_json(
        folder / "config.json", {**config, "num_classes": len(weight), "label_names": [*named]}
    )


def _read_lite(folder: Path, task: AnyTask) -> Any:
    from safetensors.torch import load_file

    from trunkline.bases.efficientnet_lite import EfficientNetLite

    network = EfficientNetLite(task.head_size)
    tensors = load_file(folder / _WEIGHTS)
    network.load_state_dict(
        {name.removeprefix("timm_model."): tensor for name, tensor in tensors.items()}
    )
    return network
