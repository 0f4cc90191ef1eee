"""The base: the foundation model that all adapters share; pull, identify, describe and load it.

Nothing here imports torch before a model is converted or loaded, so describing a base takes
milliseconds. The package may import the workspace and the layers below, but no adapters, plugins or
registry.
"""

from __future__ import annotations

from trunkline.bases.info import BaseInfo, describe
from trunkline.bases.load import Base, load, load_fresh, local_tokenizer, release
from trunkline.bases.pull import pull
from trunkline.bases.sources import DEFAULT_BASE, KnownBase, known_bases

__all__ = [
    "DEFAULT_BASE",
    "Base",
    "BaseInfo",
    "KnownBase",
    "describe",
    "known_bases",
    "load",
    "load_fresh",
    "local_tokenizer",
    "pull",
    "release",
]
