"""The bases: the foundation models that adapters share; pull, identify, describe and load them.

A base reads text (a causal language model) or pictures (a vision backbone). Nothing here imports
torch before a model is converted or loaded, so describing a base takes milliseconds. The package
may import the workspace and the layers below, but no adapters, plugins or registry.
"""

from __future__ import annotations

from trunkline.bases.image_info import (
    AnyInfo,
    ImageBaseInfo,
    describe_any,
    describe_image,
    modality_of,
)
from trunkline.bases.image_load import (
    AnyBase,
    ImageBase,
    load_adapted_image,
    load_fresh_image,
    load_image,
    release_image,
)
from trunkline.bases.info import BaseInfo, describe
from trunkline.bases.load import Base, load, load_fresh, local_tokenizer, release
from trunkline.bases.pull import pull
from trunkline.bases.sources import (
    DEFAULT_BASE,
    DEFAULT_IMAGE_BASE,
    KnownBase,
    known_bases,
)

__all__ = [
    "DEFAULT_BASE",
    "DEFAULT_IMAGE_BASE",
    "AnyBase",
    "AnyInfo",
    "Base",
    "BaseInfo",
    "ImageBase",
    "ImageBaseInfo",
    "KnownBase",
    "describe",
    "describe_any",
    "describe_image",
    "known_bases",
    "load",
    "load_adapted_image",
    "load_fresh",
    "load_fresh_image",
    "load_image",
    "local_tokenizer",
    "modality_of",
    "pull",
    "release",
    "release_image",
]
