"""A base without its weights: what its modules are called, and which of them are linear.

Owns: the shapes that an adapter is compared with before the base is loaded. Must not know:
adapters' files, how a base is found.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trunkline.errors import BaseModelError


@dataclass(frozen=True, slots=True)
class Skeleton:
    """The modules of a base.

    Attributes:
        modules: the names of all.
        linear: name → inputs and outputs of the trunk's linear layers, which LoRA may adapt.
        head: name and inputs of the head on top; None where there is none, or it is more than
            one matrix.
    """

    modules: frozenset[str]
    linear: Mapping[str, tuple[int, int]]
    head: tuple[str, int] | None

    def targets(self, adapted: Collection[str]) -> list[str]:
        """The shortest ends of names that mean exactly the ``adapted`` modules, sorted.

        PEFT takes a module whose name is a target or ends with a dot and a target.
        """
        others = {end for name in self.modules - set(adapted) for end in _ends(name)}
        return sorted(
            {next((end for end in _ends(name) if end not in others), name) for name in adapted}
        )


def read_skeleton(folder: Path, *, headed: bool) -> Skeleton:
    """Build the base's modules from its ``config.json``; no weight is read or allocated.

    Args:
        folder: of the base.
        headed: look at the model with a head as well; only what both have alike is linear.

    Raises:
        BaseModelError: transformers makes no such model of it.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    causal = _bare_model(AutoModelForCausalLM, folder)
    linear, modules = _linear(causal), _names(causal)
    if not headed:
        return Skeleton(modules, linear, None)
    other = _bare_model(AutoModelForSequenceClassification, folder)
    also = _linear(other)
    both = {name: shape for name, shape in linear.items() if also.get(name) == shape}
    return Skeleton(modules | _names(other), both, _head(other))


def _bare_model(kind: Any, folder: Path) -> Any:
    import torch
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            return kind.from_config(config, trust_remote_code=False)
    except Exception as error:  # transformers raises whatever a config leads to
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BaseModelError(
            f"The modules of the base in {folder} can't be told from its config.json: {reason}",
            "Use a base that transformers has a model for; custom model code is never run.",
        ) from error


def _names(model: Any) -> frozenset[str]:
    return frozenset(name for name, _ in model.named_modules() if name)


def _linear(model: Any) -> dict[str, tuple[int, int]]:
    """Name → inputs and outputs; GPT-2's Conv1D is linear too, with its weight transposed."""
    import torch
    from transformers.pytorch_utils import Conv1D

    found: dict[str, tuple[int, int]] = {}
    for name, module in model.named_modules():
        if not name.startswith(f"{model.base_model_prefix}."):
            continue
        if isinstance(module, torch.nn.Linear):
            found[name] = (module.in_features, module.out_features)
        elif isinstance(module, Conv1D):
            found[name] = (module.weight.shape[0], module.weight.shape[1])
    return found


def _head(model: Any) -> tuple[str, int] | None:
    names = [
        name
        for name, _ in model.named_parameters()
        if not name.startswith(f"{model.base_model_prefix}.")
    ]
    if len(names) != 1 or not names[0].endswith(".weight"):
        return None
    return names[0].removesuffix(".weight"), model.get_parameter(names[0]).shape[1]


def _ends(name: str) -> list[str]:
    """``c``, ``b.c``, ``a.b.c`` of ``a.b.c``."""
    parts = name.split(".")
    return [".".join(parts[start:]) for start in reversed(range(len(parts)))]
