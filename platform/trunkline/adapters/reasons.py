"""Why an adapter that is more than plain LoRA is not served, in words.

Owns: the reasons for settings and tensors of PEFT that the forward pass would not compute exactly.
Must not know: which values are fine; whoever checks asks here after it has said no.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trunkline.files import brief_repr

PREFIX = "base_model.model."
"""Begins the name of every tensor that PEFT saves; after it comes the module's name."""

HEADS = ("score", "classifier")
"""Names that transformers and PEFT give to the head of a sequence classification."""

_PLAIN_HINT = "Plain LoRA adapters are served: no biases, no DoRA, no code of their own."
_INIT_HINT = (
    "Convert it where it was trained: PEFT's save_pretrained takes "
    "path_initial_model_for_weight_conversion."
)

_WHY = {
    "alora_invocation_tokens": "is active only after certain tokens (aLoRA)",
    "alpha_pattern": "gives some modules another alpha",
    "arrow_config": "chooses between several adapters for each token (Arrow)",
    "auto_map": "names code of its own",
    "bias": "trains the base's biases too",
    "init_lora_weights": "may begin from weights taken out of the base, so that it fits only a "
    "base that was changed likewise",
    "kasa_config": "changes the base's weights (KaSA)",
    "layer_replication": "repeats layers of the base",
    "loftq_config": "is for a base that LoftQ has changed",
    "lora_bias": "adds a bias to its matrices",
    "megatron_config": "is for the parallel layers of Megatron",
    "peft_type": "is not made by LoRA",
    "rank_pattern": "gives some modules another rank",
    "target_parameters": "adapts bare parameters, not linear layers",
    "task_type": "is for a task that is not served",
    "trainable_token_indices": "trains the embeddings of some tokens",
    "use_bdlora": "has matrices in blocks (BD-LoRA)",
    "use_dora": "uses DoRA, which changes more than a product of two matrices",
    "use_qalora": "pools its inputs in groups (QA-LoRA)",
}
"""Key → why an adapter that sets it is not served; the others are not known to be exact."""


def refused_setting(path: Path, key: str, value: Any) -> tuple[str, str]:
    """Message and hint for a key of ``adapter_config.json`` that is not off."""
    if key not in _WHY:
        message = (
            f"{path} sets {brief_repr(key)} = {brief_repr(value)}, which is not known to be "
            "harmless."
        )
        return message, _PLAIN_HINT
    hint = _INIT_HINT if key == "init_lora_weights" else _PLAIN_HINT
    return f"{path} {_WHY[key]}: {key} = {brief_repr(value)}.", hint


def refused_tensor(path: Path, name: str) -> tuple[str, str]:
    """Message and hint for a tensor that is neither of a LoRA pair nor a head's matrix."""
    return f"{path} {_why_tensor(name)}: {brief_repr(name)}.", _PLAIN_HINT


def _why_tensor(name: str) -> str:
    if "lora_magnitude_vector" in name:
        return "uses DoRA, which changes more than a product of two matrices"
    if "lora_embedding_" in name:
        return "adapts the embeddings"
    if "trainable_tokens" in name:
        return "trains the embeddings of some tokens"
    if any(name.startswith(f"{PREFIX}{head}.") for head in HEADS):
        return "has a head with a bias or of several layers; a head of one matrix is served"
    if name.endswith(".bias"):
        return "has biases"
    if "lora_" not in name and name.endswith(".weight"):
        return "carries a weight of the base itself"
    return "holds an unknown tensor"
