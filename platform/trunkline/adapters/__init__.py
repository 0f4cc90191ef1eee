"""Trained adapters: the artifact format, the store of versions, and what stands beside the base."""
