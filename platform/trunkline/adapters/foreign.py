"""A plain PEFT folder from elsewhere, read without trusting it.

Owns: which of its files are opened, and its configuration in the normal form that is served.
Must not know: tasks' meaning, the registry, where it will be kept.

Which modules are adapted is told by the tensors' names. A pattern in the configuration is never
compiled: its place is taken by the names that mean exactly those modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trunkline.adapters.artifact import CONFIG, WEIGHTS
from trunkline.adapters.config import LoraShape, adapted_module, is_head
from trunkline.adapters.reasons import PREFIX
from trunkline.adapters.skeleton import Skeleton
from trunkline.errors import IntegrityError, NotFoundError
from trunkline.files import (
    REPAIR,
    TensorInfo,
    brief_repr,
    read_json_object,
    read_safetensors_header,
)

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_REPLACED = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
_HISTORY = ("auto_mapping", "eva_config", "revision")
_LEAVE_BASE = ("eva", "orthogonal")
"""Ways to begin that draw the matrices otherwise but leave the base as it is."""

_NOTHING = "none"
"""Stands for the targets where no tensor is a LoRA matrix; the check of the tensors tells why."""

_OTHER_BASE = "It was made for another base, or the name of the base is wrong."


@dataclass(frozen=True, slots=True)
class Foreign:
    """What the two files say: the configuration as it stands, and the weights' header."""

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]

    @property
    def adapted(self) -> frozenset[str]:
        """Names of the modules that have a ``lora_A``."""
        return frozenset(
            module for name in self.tensors if (module := adapted_module(name)) is not None
        )

    @property
    def head(self) -> TensorInfo | None:
        """The head's matrix ``[outputs, hidden]``, if there is one."""
        return next((info for name, info in self.tensors.items() if is_head(name)), None)

    @property
    def name(self) -> str:
        """The folder's own name; bytes that are no text are replaced."""
        return self.folder.resolve().name.encode("utf-8", "replace").decode("utf-8")

    @property
    def named_base(self) -> str | None:
        """What the configuration calls its base: a repository, or a path of another machine."""
        said = self.config.get("base_model_name_or_path")
        return said if isinstance(said, str) and said else None

    @property
    def left_out(self) -> dict[str, Any]:
        """Keys of the configuration that the normal form has no place for, unless they are off."""
        keys = (*_REPLACED, *_HISTORY, "init_lora_weights", "peft_version")
        return {key: self.config[key] for key in keys if self.config.get(key)}


def read_foreign(folder: Path) -> Foreign:
    """Read configuration and header; every other file is left unopened.

    Raises:
        NotFoundError: there is no such folder.
        IntegrityError: a file is missing, malformed, or a pickle.
    """
    if not folder.is_dir():
        raise NotFoundError(
            f"There is no folder {brief_repr(str(folder))}.",
            f"Name the folder that holds {CONFIG} and {WEIGHTS}.",
        )
    try:
        if not (folder / CONFIG).is_file():
            raise IntegrityError(
                f"{folder} holds no {CONFIG}, so it is no PEFT adapter.",
                "Name the folder that PEFT's save_pretrained wrote.",
            )
        if not (folder / WEIGHTS).is_file():
            raise _no_weights(folder)
        return Foreign(
            folder, read_json_object(folder / CONFIG), read_safetensors_header(folder / WEIGHTS)
        )
    except OSError as error:
        raise IntegrityError(
            f"The adapter in {folder} can't be read: {error.strerror or error}.", REPAIR
        ) from error


def _no_weights(folder: Path) -> IntegrityError:
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    first = next((name for name in pickles if name.startswith("adapter_model")), None)
    if first or pickles:
        return IntegrityError(
            f"{folder} keeps its weights as a pickle ({first or pickles[0]}), which can run code "
            "when it is read; it was not opened.",
            "Save the adapter again as safetensors, where its origin is trusted.",
        )
    return IntegrityError(
        f"{folder} holds no {WEIGHTS}.", "Name the folder that PEFT's save_pretrained wrote."
    )


def plain_config(foreign: Foreign, skeleton: Skeleton) -> dict[str, Any]:
    """The configuration with its targets as names; what only tells of the training is left out.

    The rest is as it stands, still to be checked.
    """
    out = (*_REPLACED, *_HISTORY)
    config = {key: value for key, value in foreign.config.items() if key not in out}
    config["target_modules"] = skeleton.targets(foreign.adapted) or [_NOTHING]
    if config.get("init_lora_weights") in _LEAVE_BASE:
        config["init_lora_weights"] = True
    return config


def check_fits(foreign: Foreign, lora: LoraShape, skeleton: Skeleton) -> None:
    """Compare every pair, known to be one, with the base's layers.

    Raises:
        IntegrityError: a module is not there, is not linear, or has other measures; its targets are
            neither names nor a pattern; or the tensors are not those that the configuration asks
            for, as far as that can be told without running a pattern.
    """
    path = foreign.folder / WEIGHTS
    for name in sorted(foreign.adapted):
        if name not in skeleton.modules:
            raise IntegrityError(
                f"{path} adapts {brief_repr(name)}, which this base does not have.", _OTHER_BASE
            )
        if name not in skeleton.linear:
            raise IntegrityError(
                f"{path} adapts {brief_repr(name)}, which is no linear layer of the base's trunk.",
                "Only linear layers below the head are adapted.",
            )
        inputs = foreign.tensors[f"{PREFIX}{name}.lora_A.weight"].shape[1]
        outputs = foreign.tensors[f"{PREFIX}{name}.lora_B.weight"].shape[0]
        if (inputs, outputs) != skeleton.linear[name]:
            wanted = skeleton.linear[name]
            raise IntegrityError(
                f"{path} adapts {brief_repr(name)} with {inputs} inputs and {outputs} outputs; the "
                f"base's layer has {wanted[0]} and {wanted[1]}.",
                _OTHER_BASE,
            )
    for name in sorted(skeleton.linear):
        if lora.adapts(name) and name not in foreign.adapted:
            raise IntegrityError(
                f"{path} adapts modules that no list of names tells from {brief_repr(name)}.",
                "Adapt that module too.",
            )
    _check_named(foreign, skeleton, path)


def _check_named(foreign: Foreign, skeleton: Skeleton, path: Path) -> None:
    _check_targets(foreign)
    named = _named_targets(foreign.config, skeleton)
    if named is None:
        return
    for name in sorted(named - foreign.adapted):
        raise IntegrityError(
            f"{path} lacks the matrices of {brief_repr(name)}, though its configuration adapts it.",
            "The file is not complete, or it was made for another base.",
        )
    for name in sorted(foreign.adapted - named):
        raise IntegrityError(
            f"{path} holds matrices of {brief_repr(name)}, which its configuration does not adapt; "
            "PEFT ignores them.",
            "Add the module to target_modules, or take its tensors out.",
        )


def _check_targets(foreign: Foreign) -> None:
    """Absent or null, PEFT chooses them by the architecture."""
    targets = foreign.config.get("target_modules")
    if not (targets is None or isinstance(targets, str) or _texts(targets)):
        raise IntegrityError(
            f"{foreign.folder / CONFIG} has target_modules = {brief_repr(targets)}.",
            "It must be a list of names, or a pattern.",
        )


def check_head(foreign: Foreign, skeleton: Skeleton) -> None:
    """Compare the head, if there is one, with that of the base.

    Raises:
        IntegrityError: it has another name or other measures, or this base's head is no matrix.
    """
    if foreign.head is None:
        return
    path = foreign.folder / WEIGHTS
    name = next(name for name in foreign.tensors if is_head(name))
    wanted = skeleton.head
    if wanted is None:
        raise IntegrityError(
            f"{path} has a head, but the head of this base is not a single matrix.",
            "A head of one matrix without a bias is served.",
        )
    if name != f"{PREFIX}{wanted[0]}.weight":
        raise IntegrityError(
            f"{path} has the head {brief_repr(name)}; that of this base is called {wanted[0]!r}, "
            "so PEFT ignores it.",
            _OTHER_BASE,
        )
    if foreign.head.shape[1:] != (wanted[1],):
        raise IntegrityError(
            f"{path} has a head of the shape {brief_repr(foreign.head.shape)}; the base has "
            f"{wanted[1]} hidden units.",
            _OTHER_BASE,
        )


def check_finite(weights: Path, told: Path) -> None:
    """Read the tensors one after the other; ``told`` is the file's name in an error.

    Raises:
        IntegrityError: one holds NaN or infinity.
    """
    from safetensors import safe_open

    with safe_open(weights, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - no mapping
            if not bool(file.get_tensor(name).isfinite().all()):
                raise IntegrityError(f"{told}: {brief_repr(name)} holds NaN or infinity.", REPAIR)


def _named_targets(config: Mapping[str, Any], skeleton: Skeleton) -> frozenset[str] | None:
    """The linear layers that the configuration names; None where it does not name them.

    That is where a pattern would have to be run, or PEFT's own choice be known.
    """
    targets: Any = config.get("target_modules")
    out: Any = config.get("exclude_modules") or []
    layers: Any = config.get("layers_to_transform")
    layers = [layers] if type(layers) is int else layers or []
    if not (_texts(targets) and _texts(out) and _numbers(layers)):
        return None
    if layers and config.get("layers_pattern"):
        return None
    chosen = LoraShape(1, 1.0, False, tuple(targets), tuple(layers) or None)
    without = LoraShape(1, 1.0, False, tuple(out))
    return frozenset(
        name for name in skeleton.linear if chosen.adapts(name) and not without.adapts(name)
    )


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)
