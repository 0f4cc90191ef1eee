"""The module names and linear layers of a base, built from its configuration without weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trunkline.adapters.config import LAYER
from trunkline.errors import BaseModelError, one_line


@dataclass(frozen=True, slots=True)
class ModuleTree:
    """The modules of a base.

    Attributes:
        modules: the names of all modules, with and without the head.
        own: the names of the modules of the model that the adapter is for.
        biased: those of them that have a bias.
        linear: name → inputs and outputs of the linear layers below the head, which LoRA can
            adapt.
        head: name and inputs of the head; None if there is none, or if it is more than one matrix.
    """

    modules: frozenset[str]
    own: frozenset[str]
    biased: frozenset[str]
    linear: Mapping[str, tuple[int, int]]
    head: tuple[str, int] | None

    @property
    def layers(self) -> int:
        """The number of the base's layers; 0 if the names of its modules have no number."""
        numbers = [int(match[1]) for name in self.linear if (match := LAYER.match(name))]
        return max(numbers, default=-1) + 1

    def targets(self, adapted: Collection[str]) -> list[str]:
        """The shortest suffixes that match exactly the ``adapted`` modules, sorted.

        PEFT adapts a module whose name is a target or ends with a dot and a target.
        """
        others = {end for name in self.modules - set(adapted) for end in _suffixes(name)}
        return sorted(
            {next((end for end in _suffixes(name) if end not in others), name) for name in adapted}
        )


def read_module_tree(folder: Path, *, with_head: bool) -> ModuleTree:
    """Build the tree from the base's ``config.json``; no weight is read or allocated.

    Args:
        folder: of the base.
        with_head: also build the model with a head; only the layers that both share are linear.

    Raises:
        BaseModelError: transformers can't build the model.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    causal = _meta_model(AutoModelForCausalLM, folder)
    linear, modules = _linear_layers(causal), _module_names(causal)
    if not with_head:
        return ModuleTree(modules, modules, _biased(causal), linear, None)
    classifier = _meta_model(AutoModelForSequenceClassification, folder)
    other = _linear_layers(classifier)
    shared = {name: shape for name, shape in linear.items() if other.get(name) == shape}
    own = _module_names(classifier)
    return ModuleTree(modules | own, own, _biased(classifier), shared, _head(classifier))


def _meta_model(model_class: Any, folder: Path) -> Any:
    import torch
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            return model_class.from_config(config, trust_remote_code=False)
    except Exception as error:  # transformers raises many types, depending on the configuration
        raise BaseModelError(
            f"transformers can't build a model from {folder / 'config.json'}: {one_line(error)}.",
            "Use a base that transformers supports; custom model code is never run.",
        ) from error


def _module_names(model: Any) -> frozenset[str]:
    return frozenset(name for name, _ in model.named_modules() if name)


def _biased(model: Any) -> frozenset[str]:
    return frozenset(
        name.rpartition(".")[0] for name, _ in model.named_parameters() if name.endswith(".bias")
    )


def _linear_layers(model: Any) -> dict[str, tuple[int, int]]:
    """Name → inputs and outputs; GPT-2's Conv1D is linear too, with its weight transposed."""
    import torch
    from transformers.pytorch_utils import Conv1D

    layers: dict[str, tuple[int, int]] = {}
    for name, module in model.named_modules():
        if not name.startswith(f"{model.base_model_prefix}."):
            continue
        if isinstance(module, torch.nn.Linear):
            layers[name] = (module.in_features, module.out_features)
        elif isinstance(module, Conv1D):
            layers[name] = (module.weight.shape[0], module.weight.shape[1])
    return layers


def _head(model: Any) -> tuple[str, int] | None:
    names = [
        name
        for name, _ in model.named_parameters()
        if not name.startswith(f"{model.base_model_prefix}.")
    ]
    if len(names) != 1 or not names[0].endswith(".weight"):
        return None
    return names[0].removesuffix(".weight"), model.get_parameter(names[0]).shape[1]


def _suffixes(name: str) -> list[str]:
    """``c``, ``b.c``, ``a.b.c`` of ``a.b.c``."""
    parts = name.split(".")
    return [".".join(parts[start:]) for start in reversed(range(len(parts)))]
