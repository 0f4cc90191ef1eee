"""Rows: read, check, fingerprint, split, encode."""
