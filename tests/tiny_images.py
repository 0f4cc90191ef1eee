"""Tiny random image bases on disk, and pictures drawn in memory."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

Family = Literal["vit", "resnet"]
SIZE = 32


def make_tiny_image_base(folder: Path, family: Family = "vit", seed: int = 0) -> Path:
    """Write a random ViT or ResNet with its image processor into ``folder``; returns ``folder``."""
    import torch
    import transformers
    from transformers.utils import logging

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if family == "vit":
            config = transformers.ViTConfig(
                hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
                image_size=SIZE, patch_size=8,
            )  # fmt: skip
            model: Any = transformers.ViTModel(config, add_pooling_layer=False)
        else:
            config = transformers.ResNetConfig(
                embedding_size=16, hidden_sizes=[16, 32], depths=[1, 2], layer_type="bottleneck"
            )
            model = transformers.ResNetModel(config)
            for module in model.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.running_mean.normal_(0, 0.1)
                    module.running_var.uniform_(0.5, 1.5)
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model.save_pretrained(folder)
    finally:
        if bars:
            logging.enable_progress_bar()
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": SIZE, "width": SIZE},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    if family == "resnet":
        processor |= {
            "image_processor_type": "ConvNextImageProcessor",
            "size": {"shortest_edge": SIZE},
            "crop_pct": 0.875,
            "resample": 3,
            "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225],
        }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def picture(seed: int = 0, width: int = 40, height: int = 48, mode: str = "RGB") -> Image.Image:
    """A picture of smooth random colors."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 5, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    """The bytes of a picture in a format of Pillow."""
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()
