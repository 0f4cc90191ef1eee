"""Trained adapters: the artifact format, the store of versions, provenance, archives, PEFT import.

The package imports the registry, ``contracts``, ``files``, ``refs`` and ``errors``, and no other
package that computes: the LoRA runtime is :mod:`trunkline.lora`.
"""
