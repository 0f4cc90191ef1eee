"""Trunkline: one foundation model with many domain adapters.

``trunkline.open()`` returns the :class:`~trunkline.api.Platform` of a workspace. Importing this
package imports neither torch nor transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Platform", "Request", "open"]

if TYPE_CHECKING:
    from trunkline.api import Platform, open
    from trunkline.inference.request import Request


def __getattr__(name: str) -> Any:
    if name in ("Platform", "open"):
        from trunkline import api

        return getattr(api, name)
    if name == "Request":
        from trunkline.inference.request import Request

        return Request
    raise AttributeError(f"module 'trunkline' has no attribute {name!r}")
