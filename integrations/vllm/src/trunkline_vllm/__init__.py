"""Serve adapters of a registry from vLLM: a resolver of names, and a middleware in front of it.

vLLM is imported inside functions only, so everything but the resolver works without it.
"""
