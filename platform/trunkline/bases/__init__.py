"""The base: the one foundation model that every adapter shares.

Owns: which bases there are, how one is fetched, verified, converted, identified and loaded.
Must not know: adapters, plugins, the registry. Nothing here imports torch before a model is
converted or loaded, so a base can be described in milliseconds.

The modules, in the order in which a name travels: ``sources`` (name → where its files are),
``pull`` with ``fetch`` and ``convert`` (once, into the cache), ``weights`` and ``digest``
(identity), ``info`` (what can be said without torch), ``load`` (weights into memory), ``heads``
(a new head on top of the trunk).
"""

from __future__ import annotations

from trunkline.bases.info import BaseInfo, describe
from trunkline.bases.load import Base, load, load_fresh, release
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
    "pull",
    "release",
]
