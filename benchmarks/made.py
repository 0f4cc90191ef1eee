"""Bases, adapters of random weights and prompts of a fixed length, the same for every system."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

BASE = "smollm2-135m"
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

LLAMAS: dict[str, dict[str, int]] = {
    "tiny": {
        "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    },
    "1b": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8,
    },
    "7b": {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32,
    },
}  # fmt: skip
"""Llama 3.2 1B and Llama 2 7B, with the default base's vocabulary; tiny is for smoke runs."""


def config_of(shape: str | None) -> Any:
    """transformers' configuration of the default base, or of a random Llama."""
    from transformers import AutoConfig, LlamaConfig

    from trunkline.bases import describe

    stored = AutoConfig.from_pretrained(describe(BASE).folder)
    if shape is None:
        return stored
    return LlamaConfig(
        **LLAMAS[shape], vocab_size=stored.vocab_size, max_position_embeddings=2048,
        bos_token_id=stored.bos_token_id, eos_token_id=stored.eos_token_id,
    )  # fmt: skip


def digest_of(shape: str | None) -> str:
    """Identity of the base that adapters are made for."""
    from trunkline.bases import describe

    return describe(BASE).digest if shape is None else hashlib.sha256(shape.encode()).hexdigest()


def load_tokenizer() -> Any:
    """The default base's."""
    from transformers import AutoTokenizer

    from trunkline.bases import describe

    return AutoTokenizer.from_pretrained(describe(BASE).folder)


def load_plain(shape: str | None) -> Any:
    """A causal LM as transformers makes it, in eval mode; it never ends an answer by itself."""
    import torch
    from transformers import AutoModelForCausalLM

    from trunkline.bases import describe
    from trunkline.bases.load import pick_device, pick_dtype, quiet_transformers

    device = pick_device("auto")
    dtype = pick_dtype("auto", device)
    if shape is None:
        with quiet_transformers():
            model = AutoModelForCausalLM.from_pretrained(describe(BASE).folder, dtype=dtype)
    else:
        torch.manual_seed(0)
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(config_of(shape), dtype=dtype)
    model.generation_config.eos_token_id = None
    return model.to(device).eval().requires_grad_(False)


def load_base(shape: str | None, *, quantized: Any = None) -> Any:
    """A :class:`Base` of ours; computed in the calling thread, whose OpenMP workers it keeps."""
    from trunkline.bases import describe
    from trunkline.bases.linear import fuse_linear_layers
    from trunkline.bases.load import Base

    model = load_plain(shape)
    info = describe(BASE)
    if shape is not None:
        info = replace(info, name=shape, digest=digest_of(shape), context=2048)
    fused_layers = fuse_linear_layers(model, quantized=quantized)
    return Base(info, model, load_tokenizer(), model.device, model.dtype, fused_layers, quantized)


def make_adapters(folder: Path, shape: str | None, count: int, *, rank: int) -> list[Path]:
    """Artifacts of random weights in folders of their own."""
    config, digest = config_of(shape), digest_of(shape)
    return [
        make_adapter(folder / str(seed), config, digest, seed=seed, rank=rank)
        for seed in range(count)
    ]


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


def make_prompts(tokenizer: Any, count: int, tokens: int, seed: int) -> list[tuple[str, list[int]]]:
    """Texts of random words that are ``tokens`` tokens each, with their ids."""
    import random

    vocabulary = sorted(
        token[1:] for token in tokenizer.get_vocab()
        if token[:1] == "Ġ" and token[1:].isascii() and token[1:].isalpha() and token[1:].islower()
    )  # fmt: skip
    draw = random.Random(seed)
    made: list[tuple[str, list[int]]] = []
    while len(made) < count:
        text = "The " + " ".join(draw.choices(vocabulary, k=tokens - 1))
        ids = tokenizer(text)["input_ids"]
        if len(ids) == tokens:
            made.append((text, ids))
    return made
