"""A platform with the toy plugin on a tiny base, and one in which every recipe was trained."""

from __future__ import annotations

from workbench import platform, tiny, whole

__all__ = ["platform", "tiny", "whole"]
