"""Compare the modules that a PEFT folder adapts with its configuration and with the base.

The names of the base's modules come from its configuration, without its weights.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trunkline.adapters.artifact import CONFIG, WEIGHTS
from trunkline.adapters.config import HEADS, LAYER, PREFIX, LoraShape, is_head, tensor_reason
from trunkline.adapters.peft_folder import PeftFolder
from trunkline.errors import BaseModelError, IntegrityError, one_line
from trunkline.files import brief_repr


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


# ------------------------------------------------------------------------------------------ checks

_OTHER_BASE = "It was trained on another base, or the name of the base is wrong."
_INCOMPLETE = "The file is incomplete, or it was made for another base."
_TARGET_TYPES = {
    "target_modules": "a list of names, or a pattern",
    "exclude_modules": "a list of names, or a pattern",
    "layers_pattern": "a name, or a list of names",
}
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "module.")
"""Parts of names that torch's wrappers around a model add."""


def check_fits_base(peft: PeftFolder, lora: LoraShape, tree: ModuleTree) -> None:
    """Compare the LoRA pairs with the layers of the base.

    Raises:
        IntegrityError: a module does not exist, is not linear, or has other dimensions; or the
            tensors are not those that the configuration targets, as far as this can be decided
            without running a pattern.
    """
    path = peft.folder / WEIGHTS
    for name in sorted(peft.adapted):
        if name not in tree.modules:
            raise _no_such_module(peft, name, tree)
        if name not in tree.linear:
            raise IntegrityError(
                f"{path} adapts {brief_repr(name)}, which is not a linear layer below the head.",
                "Only linear layers below the head can be adapted: leave it out of target_modules.",
            )
        pair = [peft.tensors[f"{PREFIX}{name}.lora_{one}.weight"].shape for one in "AB"]
        if any(len(shape) != 2 for shape in pair):
            raise IntegrityError(
                f"{path} adapts {brief_repr(name)} as a convolution, with the shapes {pair[0]} and "
                f"{pair[1]}; it is a linear layer of the base.",
                _OTHER_BASE,
            )
        inputs, outputs = pair[0][1], pair[1][0]
        expected = tree.linear[name]
        if (inputs, outputs) != expected:
            raise IntegrityError(
                f"{path} adapts {brief_repr(name)} with {inputs} inputs and {outputs} outputs; the "
                f"base's layer has {expected[0]} and {expected[1]}.",
                _OTHER_BASE,
            )
    for name in sorted(tree.linear):
        if lora.adapts(name) and name not in peft.adapted:
            raise IntegrityError(
                f"{path} adapts modules that no list of names separates from {brief_repr(name)}.",
                "Adapt that module too.",
            )
    _check_targets(peft, tree)


def check_head(peft: PeftFolder, tree: ModuleTree, task_type: str) -> None:
    """Compare the head with that of the base.

    Args:
        peft: the folder.
        tree: of the base, with its head if the task has one.
        task_type: PEFT's.

    Raises:
        IntegrityError: it is missing, has another name or other dimensions, or the base's head is
            not a single matrix.
    """
    path = peft.folder / WEIGHTS
    if peft.head is None:
        if task_type == "SEQ_CLS":
            raise _no_head(peft, tree)
        return
    name = next(name for name in peft.tensors if is_head(name))
    expected = tree.head
    if expected is None:
        raise IntegrityError(
            f"{path} has a head, but the head of this base is not a single matrix.",
            "Only a head of one matrix without a bias is supported.",
        )
    if name != f"{PREFIX}{expected[0]}.weight":
        raise IntegrityError(
            f"{path} has the head {brief_repr(name)}; that of this base is called "
            f"{expected[0]!r}, so PEFT ignores it.",
            _OTHER_BASE,
        )
    if peft.head.shape[1:] != (expected[1],):
        raise IntegrityError(
            f"{path} has a head of the shape {brief_repr(peft.head.shape)}; the base has "
            f"{expected[1]} hidden units.",
            _OTHER_BASE,
        )


def target_notes(config: Mapping[str, Any], tree: ModuleTree) -> list[str]:
    """Sentences on targets, exclusions and layers that the base does not have."""
    notes = []
    targets: Any = config.get("target_modules")
    excluded: Any = config.get("exclude_modules")
    if targets is None or isinstance(targets, str):
        notes.append(
            "target_modules is a pattern, which is not evaluated: the modules that have matrices "
            "are adapted."
            if targets
            else "target_modules names no modules: the modules that have matrices are adapted."
        )
    elif lacking := _lacking(targets, tree):
        notes.append(
            f"target_modules names {_listed(lacking)}, which this base does not have; the other "
            "modules are adapted."
        )
    if isinstance(excluded, str) and excluded:
        notes.append(
            "exclude_modules is a pattern, which is not evaluated: the modules that have matrices "
            "are adapted."
        )
    if _is_texts(excluded) and (lacking := _lacking(excluded, tree)):
        notes.append(f"exclude_modules names {_listed(lacking)}, which this base does not have.")
    if _layers(config) and config.get("layers_pattern"):
        notes.append(
            "layers_pattern is a pattern, which is not evaluated: in each layer the modules that "
            "have matrices are adapted."
        )
    beyond = [layer for layer in _layers(config) if not 0 <= layer < tree.layers]
    if tree.layers and beyond:
        notes.append(
            f"layers_to_transform names {_listed(beyond)}, but this base has {_layer_range(tree)}."
        )
    return notes


def _no_head(peft: PeftFolder, tree: ModuleTree) -> IntegrityError:
    head = tree.head[0] if tree.head else HEADS[0]
    needed = f"PEFT needs modules_to_save=[{head!r}]"
    hint = (
        f"Train it again with LoraConfig(task_type='SEQ_CLS', modules_to_save=[{head!r}]); without "
        "the head its outputs are lost. Was it trained to generate text? Then set task_type to "
        "CAUSAL_LM in the file."
    )
    path = peft.folder / WEIGHTS
    saved = f"{PREFIX}{head}.modules_to_save."
    if named := next((name for name in sorted(peft.tensors) if name.startswith(saved)), None):
        reason, hint = tensor_reason(named)
        return IntegrityError(f"{path} {reason}: {brief_repr(named)}.", hint)
    if any(name.rpartition(".")[2] in HEADS for name in peft.adapted):
        return IntegrityError(
            f"{path} adapts the head {head!r} with LoRA, but the head was not saved: {needed}.",
            hint,
        )
    return IntegrityError(
        f"{path} has no head, which a task of the type SEQ_CLS needs: the head was not saved: "
        f"{needed}.",
        hint,
    )


def _no_such_module(peft: PeftFolder, name: str, tree: ModuleTree) -> IntegrityError:
    """Explain a module that the base does not have."""
    path = peft.folder / WEIGHTS
    message = f"{path} adapts {brief_repr(name)}, which this base does not have"
    layer = LAYER.match(name)
    if layer and f"{name[: layer.start(1)]}0{name[layer.end(1) :]}" in tree.modules:
        return IntegrityError(
            f"{message}: it has {_layer_range(tree)}.",
            "It was trained on a larger base: name that one with --base.",
        )
    plain = name
    for part in _WRAPPERS:
        plain = plain.replace(part, "")
    if plain in tree.linear:
        return IntegrityError(
            f"{message}; without the name of a wrapper it is {brief_repr(plain)}.",
            "Unwrap the model (torch.compile, FSDP) before save_pretrained, or rename the tensors.",
        )
    similar = _same_end(name, tree)
    if similar is not None:
        return IntegrityError(
            f"{message}; it has {brief_repr(similar)}.",
            f"If it was trained on the same weights under another model class, rename the tensors. "
            f"Otherwise: {_OTHER_BASE}",
        )
    return IntegrityError(f"{message}.", _OTHER_BASE)


def _same_end(name: str, tree: ModuleTree) -> str | None:
    """The only linear layer with the same last parts, layer number included."""
    parts = name.split(".")
    for start in range(1, len(parts) - 2):
        end = ".".join(parts[start:])
        if not any(part.isdigit() for part in parts[start:-1]):
            return None
        matches = [one for one in tree.linear if one == end or one.endswith(f".{end}")]
        if matches:
            return matches[0] if len(matches) == 1 else None
    return None


def _check_targets(peft: PeftFolder, tree: ModuleTree) -> None:
    """Compare the adapted modules with the configured ones; null leaves the choice to PEFT."""
    path = peft.folder / WEIGHTS
    for key, expected in _TARGET_TYPES.items():
        value = peft.config.get(key)
        if not (value is None or isinstance(value, str) or _is_texts(value)):
            raise IntegrityError(
                f"{peft.folder / CONFIG} has {key} = {brief_repr(value)}.",
                f"It must be {expected}.",
            )
    layers = peft.config.get("layers_to_transform")
    if layers not in (None, []) and not _layers(peft.config):
        raise IntegrityError(
            f"{peft.folder / CONFIG} has layers_to_transform = {brief_repr(layers)}.",
            "It must be a list of layer numbers.",
        )
    named = _named_targets(peft.config, tree)
    if named is None:
        return
    for name in sorted(named - peft.adapted):
        raise IntegrityError(
            f"{path} lacks the matrices of {brief_repr(name)}, which target_modules includes.",
            _INCOMPLETE
            if name in tree.linear
            else "Only linear layers below the head can be adapted: leave it out of "
            "target_modules, or train it again without it.",
        )
    for name in sorted(peft.adapted - named):
        raise IntegrityError(
            f"{path} has matrices of {brief_repr(name)}, which its configuration does not target "
            f"({_reason_not_targeted(name, peft.config)}); PEFT ignores them.",
            "Correct the configuration, or remove the tensors.",
        )


def _reason_not_targeted(name: str, config: Mapping[str, Any]) -> str:
    """The key of the configuration that leaves the module out."""
    if not LoraShape(1, 1.0, False, tuple(config["target_modules"])).adapts(name):
        return "target_modules"
    excluded = tuple(config.get("exclude_modules") or ())
    if LoraShape(1, 1.0, False, excluded).adapts(name):
        return "exclude_modules"
    return "layers_to_transform"


def _named_targets(config: Mapping[str, Any], tree: ModuleTree) -> frozenset[str] | None:
    """The modules that the configuration targets by name, as PEFT would match them.

    None if that depends on a pattern or on PEFT's defaults.
    """
    targets: Any = config.get("target_modules")
    excluded: Any = config.get("exclude_modules") or []
    layers = _layers(config)
    if not (_is_texts(targets) and _is_texts(excluded)):
        return None
    if layers and config.get("layers_pattern"):
        return None
    included = LoraShape(1, 1.0, False, tuple(targets), tuple(layers) or None)
    left_out = LoraShape(1, 1.0, False, tuple(excluded))
    saved: Any = config.get("modules_to_save") or []
    heads = HEADS if config.get("task_type") == "SEQ_CLS" else ()
    full = {*heads, *(saved if _is_texts(saved) else ())}
    return frozenset(
        name
        for name in tree.own
        if included.adapts(name)
        and not left_out.adapts(name)
        and not any(f".{one}." in f".{name}." for one in full)
    )


def _layers(config: Mapping[str, Any]) -> list[int]:
    """``layers_to_transform`` as a list; empty if it is not of integers."""
    value: Any = config.get("layers_to_transform")
    if type(value) is int:
        return [value]
    if isinstance(value, list) and all(type(layer) is int for layer in value):
        return value
    return []


def _lacking(names: list[str], tree: ModuleTree) -> list[str]:
    """The names that match no module of the base, as PEFT matches names."""
    return [
        name
        for name in names
        if not any(module == name or module.endswith(f".{name}") for module in tree.own)
    ]


def _layer_range(tree: ModuleTree) -> str:
    return f"{tree.layers} layers (0 to {tree.layers - 1})"


def _listed(values: list[Any]) -> str:
    shown = ", ".join(brief_repr(value) for value in values[:5])
    return shown if len(values) <= 5 else f"{shown} and {len(values) - 5} more"


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
