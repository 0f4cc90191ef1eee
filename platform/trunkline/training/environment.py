"""Where a run took place: recorded with it, for whoever must repeat it."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = ("trunkline", "torch", "transformers", "peft", "accelerate", "safetensors", "numpy")


def environment(device: Any, bf16: bool) -> dict[str, Any]:
    """Versions, machine and arithmetic, as plain values."""
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "machine": platform.machine(),
        "device": str(device),
        "device_name": name or platform.machine(),
        "threads": torch.get_num_threads(),
        "precision": "bf16" if bf16 else "fp32",
        "byte_order": sys.byteorder,
        "packages": {package: _version(package) for package in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
