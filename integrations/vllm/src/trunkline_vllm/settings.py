"""Settings of the integration, from environment variables, as vLLM configures its plugins."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trunkline.errors import UsageError
from trunkline.refs import shown
from trunkline.workspace import cache_folder

PREFIX = "TRUNKLINE_VLLM_"

_RANGES: dict[str, tuple[type[int] | type[float], float, float]] = {
    "cache_bytes": (int, 1 << 20, 1 << 50),
    "max_bytes": (int, 1024, 1 << 40),
    "load_seconds": (float, 0.1, 3600),
    "grace_seconds": (float, 0, 86_400),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The limits of one vLLM server; each field is the variable ``TRUNKLINE_VLLM_<FIELD>``.

    Attributes:
        cache: the folder of local copies of artifacts; processes may share it.
        cache_bytes: the total size of the copies that are not in use.
        max_bytes: the largest artifact that is fetched.
        load_seconds: how long a request waits for an artifact.
        grace_seconds: how long keys and versions that the registry confirmed are used while it
            can't be reached.
        probe: whether an adapter without recorded probes is refused (``required``) or served
            unproven (``optional``).
        base: the base that vLLM serves; None: the model that vLLM was started with.
    """

    cache: Path
    cache_bytes: int = 20 << 30
    max_bytes: int = 2 << 30
    load_seconds: float = 60.0
    grace_seconds: float = 600.0
    probe: Literal["required", "optional"] = "required"
    base: str | None = None

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """Read the variables; an empty one counts as not set.

        Raises:
            UsageError: a value is invalid.
        """
        texts = {
            name: text
            for name in cls.__slots__
            if (text := environment.get(PREFIX + name.upper(), "").strip())
        }
        numbers = {name: _number(name, texts[name]) for name in _RANGES if name in texts}
        probe = texts.get("probe", "required")
        if probe not in ("required", "optional"):
            raise UsageError(f"{PREFIX}PROBE can't be {shown(probe)}.", "Use required or optional.")
        folder = Path(texts["cache"]).expanduser() if "cache" in texts else cache_folder() / "vllm"
        return cls(
            cache=folder.absolute(),
            probe="required" if probe == "required" else "optional",
            base=texts.get("base"),
            **numbers,  # type: ignore[arg-type] # int where the field is one
        )


def _number(name: str, text: str) -> int | float:
    kind, least, most = _RANGES[name]
    try:
        value = kind(text)
    except ValueError:
        value = kind(-1)
    if not least <= value <= most:
        raise UsageError(
            f"{PREFIX}{name.upper()} can't be {shown(text)}.",
            f"Give a number from {least:,} to {most:,}.",
        )
    return value
