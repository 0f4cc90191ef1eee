"""The inference engine: requests in; labels, numbers, spans and texts out.

May import ``lora``, ``tasks``, ``data``, ``adapters`` and ``bases``, but not the registry: callers
resolve each request to an artifact first.
"""
