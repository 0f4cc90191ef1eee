"""Plugins: discover, block, load, validate, check and install them.

:func:`load_plugins` gives a :class:`Catalog`; nothing is imported before it is called. The package
sits above the contracts, the workspace and the hooks, and imports no other layer.
"""

from trunkline.plugins.catalog import Catalog, Contribution, PluginInfo
from trunkline.plugins.check import Finding, check
from trunkline.plugins.host import load_plugins
from trunkline.plugins.install import install, removable, uninstall
from trunkline.plugins.isolation import unfinished_imports

__all__ = [
    "Catalog",
    "Contribution",
    "Finding",
    "PluginInfo",
    "check",
    "install",
    "load_plugins",
    "removable",
    "unfinished_imports",
    "uninstall",
]
