"""Plugins: find them, block them, ask each by itself, validate, install.

``load_plugins`` gives a :class:`Catalog`; nothing is imported before it is called.
"""

from trunkline.plugins.catalog import Catalog, Contribution, PluginInfo
from trunkline.plugins.check import Finding, check
from trunkline.plugins.host import load_plugins
from trunkline.plugins.install import install, removable, uninstall

__all__ = [
    "Catalog",
    "Contribution",
    "Finding",
    "PluginInfo",
    "check",
    "install",
    "load_plugins",
    "removable",
    "uninstall",
]
