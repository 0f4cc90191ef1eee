"""A platform with the toy plugin on a tiny base."""

from __future__ import annotations

from workbench import platform, tiny

__all__ = ["platform", "tiny"]
