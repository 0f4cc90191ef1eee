"""What a workspace demands of everything in it: ``trunkline.toml`` beside ``registry.db``.

Owns: the file's form and its defaults. Must not know: how a store, a gate or a signature works.

::

    [store]
    url = "s3://models/trunkline"        # default: the folder adapters/

    [store.options]                      # handed to fsspec as they stand
    endpoint_url = "https://s3.example.org"

    [gate]                               # only ever tightens a recipe's own gate
    beats_baseline = true
    beats_champion = false
    champion_margin = 0.01
    slices_at_least = 0.5
    two_persons = true

    [signatures]
    required = true
    keys = ["keys/release.pub"]          # relative to the workspace
"""

from __future__ import annotations

import math
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trunkline.errors import UsageError

FILE = "trunkline.toml"

_KEYS: dict[str, dict[str, tuple[type, ...]]] = {
    "store": {"url": (str,), "options": (dict,)},
    "gate": {
        "beats_baseline": (bool,),
        "beats_champion": (bool,),
        "champion_margin": (int, float),
        "slices_at_least": (int, float),
        "two_persons": (bool,),
    },
    "signatures": {"required": (bool,), "keys": (list,)},
}


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Where artifacts are kept; ``url`` is None for the workspace's own ``adapters/``."""

    url: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GateSettings:
    """Conditions that are added to the gate of every recipe; see :class:`contracts.Gate`."""

    beats_baseline: bool = False
    beats_champion: bool = False
    champion_margin: float | None = None
    slices_at_least: float | None = None
    two_persons: bool = False


@dataclass(frozen=True, slots=True)
class SignatureSettings:
    """Whether what is served must be signed, and the public keys that count."""

    required: bool = False
    keys: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Configuration:
    """A workspace's ``trunkline.toml``."""

    store: StoreSettings = StoreSettings()
    gate: GateSettings = GateSettings()
    signatures: SignatureSettings = SignatureSettings()

    @classmethod
    def read(cls, root: Path) -> Configuration:
        """Read the workspace's file; without one, everything is at its default.

        ``TRUNKLINE_STORE`` takes the place of the store's url.

        Raises:
            UsageError: the file is no TOML, or says something that is not known.
        """
        path = root / FILE
        try:
            said = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            if path.is_symlink():
                raise UsageError(
                    f"The workspace's {path} points at a file that is not there.",
                    "Mend the link, or move it away.",
                ) from error
            said = {}
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise UsageError(
                f"The workspace's {path} can't be read: {error}.", "Mend it, or move it away."
            ) from error
        _check(said, path)
        store = dict(said.get("store", {}))
        if chosen := os.environ.get("TRUNKLINE_STORE"):
            store["url"] = chosen
        signatures = said.get("signatures", {})
        keys = tuple(root / key for key in signatures.get("keys", ()))
        return cls(
            StoreSettings(**store),
            GateSettings(**said.get("gate", {})),
            SignatureSettings(bool(signatures.get("required")), keys),
        )


def _check(said: Mapping[str, Any], path: Path) -> None:
    for table, values in said.items():
        known = _KEYS.get(table)
        if known is None or not isinstance(values, dict):
            raise UsageError(
                f"{path} has {table!r}, which is not known.",
                f"Tables are: {', '.join(_KEYS)}.",
            )
        for key, value in values.items():
            kinds = known.get(key)
            if kinds is None:
                raise UsageError(
                    f"{path}: [{table}] has {key!r}, which is not known.",
                    f"Keys are: {', '.join(known)}.",
                )
            wrong = isinstance(value, bool) and bool not in kinds
            if wrong or not isinstance(value, kinds):
                raise UsageError(
                    f"{path}: [{table}] {key} = {value!r} is not of the right kind.",
                    "See docs/promotion.md and docs/moving.md for examples.",
                )
    if "url" in said.get("store", {}) and not said["store"]["url"].strip():
        raise UsageError(
            f"{path}: [store] url is empty.", 'Write for example url = "s3://bucket/folder".'
        )
    for key in ("champion_margin", "slices_at_least"):
        value = said.get("gate", {}).get(key, 0)
        if not math.isfinite(value) or (key == "champion_margin" and value < 0):
            raise UsageError(
                f"{path}: [gate] {key} = {value!r} is no bound.",
                "Give a finite number in the metric's unit, a margin from zero on.",
            )
    keys = said.get("signatures", {}).get("keys", [])
    if not all(isinstance(key, str) for key in keys):
        raise UsageError(f"{path}: [signatures] keys must be paths.", 'Write ["keys/release.pub"].')
