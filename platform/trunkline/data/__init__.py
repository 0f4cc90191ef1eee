"""Rows: read, check, clean, fingerprint, split and encode them.

The package may import plugins, the registry and the layers below, but no adapters and no models.
"""
