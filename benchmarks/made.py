"""Adapters of random weights for the benchmarks, and how figures are taken.

Owns: artifacts of any rank on the default base, interleaved timing, the table that is printed.
Must not know: what is measured.
"""

from __future__ import annotations

import json
import platform as machine
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

BASE = "smollm2-135m"
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def make_adapter(folder: Path, config: Any, base_digest: str, *, seed: int, rank: int = 8) -> Path:
    """An artifact that adapts all linear layers of a Llama, A and B random; plain PEFT loads it."""
    import torch
    from safetensors.torch import save_file

    from trunkline.adapters.artifact import seal
    from trunkline.contracts import Template

    width = config.hidden_size // config.num_attention_heads
    features = {
        "self_attn.q_proj": (config.hidden_size, config.num_attention_heads * width),
        "self_attn.k_proj": (config.hidden_size, config.num_key_value_heads * width),
        "self_attn.v_proj": (config.hidden_size, config.num_key_value_heads * width),
        "self_attn.o_proj": (config.num_attention_heads * width, config.hidden_size),
        "mlp.gate_proj": (config.hidden_size, config.intermediate_size),
        "mlp.up_proj": (config.hidden_size, config.intermediate_size),
        "mlp.down_proj": (config.intermediate_size, config.hidden_size),
    }
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(config.num_hidden_layers):
        for module, (inputs, outputs) in features.items():
            name = f"base_model.model.model.layers.{layer}.{module}"
            down = torch.randn(rank, inputs, generator=draw) / inputs**0.5
            tensors[f"{name}.lora_A.weight"] = down
            tensors[f"{name}.lora_B.weight"] = torch.randn(outputs, rank, generator=draw) * 0.02
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank,
        "target_modules": list(TARGETS), "base_model_name_or_path": BASE,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    seal(
        folder,
        base={"name": BASE, "digest": base_digest},
        task={"kind": "generation", "max_new_tokens": 32},
        template=Template(clean=()),
        data={"dataset": "none", "fingerprint": "none", "split": "none"},
    )
    return folder


def interleaved(measured: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Median of each, in seconds; every round measures all of them, so that a noisy minute hits
    all alike. Each gives the seconds that it took."""
    for measure in measured.values():
        measure()
    taken: dict[str, list[float]] = {name: [] for name in measured}
    for _ in range(rounds):
        for name, measure in measured.items():
            taken[name].append(measure())
    return {name: statistics.median(values) for name, values in taken.items()}


def timed(work: Callable[[], Any]) -> Callable[[], float]:
    """The work as something that gives its own seconds."""

    def measure() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return measure


def say_where() -> None:
    """Print what this runs on."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {device}, "
        f"{machine.processor() or machine.machine()}"
    )
