"""The LoRA runtime: which adapters are in memory, and how mixed batches compute with them.

May import ``data``, ``adapters`` and ``bases``; knows no requests and no registry.
"""
