"""The registry: runs, versions, aliases, events, keys and requests in one database.

:class:`trunkline.registry.registry.Registry` is the entry. SQLite and PostgreSQL share one code
path; :mod:`trunkline.registry.engine` holds everything that differs. The package imports
``contracts``, ``refs`` and ``errors`` only, and neither torch nor transformers.
"""
