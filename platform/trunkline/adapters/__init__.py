"""Trained adapters at rest: the artifact format, import and export, and the store of versions.

Modules here import the registry, the bases, the contracts and what is below them, but not
inference, serving or training.
"""
