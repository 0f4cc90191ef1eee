"""Write an adapter as a LoRA file for llama.cpp, and read it back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trunkline.adapters.artifact import WEIGHTS, Artifact
from trunkline.adapters.config import PREFIX, adapted_module
from trunkline.errors import UsageError
from trunkline.registry.records import VersionRecord
from trunkline.tasks import AnyTask, GenerationTask

_FAMILIES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""Model type of transformers → llama.cpp's name of the architecture. Of ``llama``, llama.cpp orders
the rows of the query and key projections in its own way (pairs of the rotary embedding)."""


def check_gguf(version: VersionRecord, task: AnyTask, base: Path, artifact: Artifact) -> None:
    """Check that llama.cpp can read a LoRA file of a version.

    Args:
        base: folder of the version's base.

    Raises:
        UsageError: it can't; names the reason.
    """
    if artifact.manifest.reads_images:
        raise UsageError(
            f"{version.ref} reads pictures, for which llama.cpp has no LoRA files.",
            "Use --format merged.",
        )
    if artifact.lora.use_dora:
        raise UsageError(
            f"{version.ref} uses DoRA, which a LoRA file of llama.cpp can't hold.",
            "Use --format merged.",
        )
    if not isinstance(task, GenerationTask):
        raise UsageError(
            f"{version.ref} is for {task.kind}; llama.cpp has no head for it.",
            "Use --format merged.",
        )
    kind = _config(base).get("model_type")
    if kind not in _FAMILIES:
        raise UsageError(
            f"The base is a {kind} model; LoRA files are written for "
            f"{', '.join(sorted(_FAMILIES))}.",
            "Use --format merged, and llama.cpp's own converter.",
        )


def _config(base: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((base / "config.json").read_text(encoding="utf-8"))
    return config


def _names(config: Mapping[str, Any]) -> Any:
    """gguf's map from names of transformers' tensors to those of llama.cpp."""
    import gguf

    architecture = _FAMILIES[config["model_type"]].upper()
    layers = int(config["num_hidden_layers"])
    return gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture], layers)


def write_gguf(artifact: Artifact, base: Path, path: Path) -> None:
    """The matrices as llama.cpp's converter names and orders them."""
    import gguf
    from safetensors.torch import load_file

    config = _config(base)
    names = _names(config)
    lora = artifact.lora
    writer = gguf.GGUFWriter(path, _FAMILIES[config["model_type"]])
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    # llama.cpp scales by alpha / rank
    writer.add_float32("adapter.lora.alpha", lora.scaling * lora.rank)
    tensors = load_file(artifact.folder / WEIGHTS)
    for key in sorted(tensors):
        module = adapted_module(key)
        if module is None:
            continue
        name = names.get_name(module)
        if name is None:
            raise UsageError(
                f"llama.cpp has no tensor for the layer {module!r}.", "Use --format merged."
            )
        first = tensors[key].float().numpy()
        second = tensors[f"{PREFIX}{module}.lora_B.weight"].float().numpy()
        if _FAMILIES[config["model_type"]] == "llama":
            second = _permuted(second, name, config)
        writer.add_tensor(f"{name}.weight.lora_a", first)
        writer.add_tensor(f"{name}.weight.lora_b", second)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _permuted(matrix: Any, name: str, config: Mapping[str, Any]) -> Any:
    """Rows of a query or key projection in llama.cpp's order: pairs instead of halves."""
    heads = {
        "attn_q": config["num_attention_heads"],
        "attn_k": config.get("num_key_value_heads") or config["num_attention_heads"],
    }.get(name.rpartition(".")[2])
    if heads is None:
        return matrix
    rows = matrix.reshape(heads, 2, matrix.shape[0] // heads // 2, matrix.shape[1])
    return rows.swapaxes(1, 2).reshape(matrix.shape).copy()


def load_gguf(model: Any, path: Path) -> Any:
    """The base with the file's update added; the order of the rows is restored by transformers."""
    import gguf
    import torch
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

    config = model.config.to_dict()
    names = _names(config)
    modules = {
        names.get_name(name): module
        for name, module in model.named_modules()
        if names.get_name(name) is not None
    }
    reader = gguf.GGUFReader(path)
    alpha = float(reader.get_field("adapter.lora.alpha").contents())
    tensors = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    processor = TENSOR_PROCESSORS.get(_FAMILIES[config["model_type"]], TensorProcessor)(config)
    with torch.no_grad():
        for name, second in tensors.items():
            if not name.endswith(".lora_b"):
                continue
            weight = name.removesuffix(".lora_b")
            first = tensors[f"{weight}.lora_a"]
            update = (alpha / first.shape[0]) * (second @ first)
            restored = torch.from_numpy(
                processor.process(weights=update.numpy(), name=weight).weights.copy()
            )
            target = modules[weight.removesuffix(".weight")].weight
            target += restored.to(target)
    return model.eval()
