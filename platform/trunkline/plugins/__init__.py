"""Plugins: find them, block them, ask each by itself, validate, install.

``load_plugins`` gives a :class:`Catalogue`; nothing is imported before it is called.
"""

from trunkline.plugins.catalogue import Catalogue, Contribution, PluginInfo
from trunkline.plugins.checks import Finding, check
from trunkline.plugins.host import load_plugins
from trunkline.plugins.installation import install, removable, uninstall

__all__ = [
    "Catalogue",
    "Contribution",
    "Finding",
    "PluginInfo",
    "check",
    "install",
    "load_plugins",
    "removable",
    "uninstall",
]
