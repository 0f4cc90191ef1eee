"""Import adapters that plain PEFT saved elsewhere.

The folder is not trusted: only configuration and weights are read, every check runs before anything
is written, and a pattern in the configuration is never compiled. The tensor names determine which
modules are adapted; the imported configuration lists these modules by name. The training can't be
verified, so an imported version has no run and no dataset.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trunkline.adapters.artifact import (
    CARD,
    CONFIG,
    MANIFEST,
    WEIGHTS,
    check_finite,
    read_artifact,
    seal,
    write_json,
)
from trunkline.adapters.card import render_card
from trunkline.adapters.config import (
    PREFIX,
    LoraShape,
    adapted_module,
    check_config,
    check_tensors,
    is_head,
)
from trunkline.adapters.module_tree import ModuleTree, read_module_tree
from trunkline.adapters.peft_task import ImportOptions, build_task, resolve_task_type
from trunkline.adapters.provenance import (
    UNKNOWN,
    BaseSection,
    Provenance,
    VersionSection,
    is_plain_text,
    write_provenance,
)
from trunkline.adapters.store import AdapterStore
from trunkline.contracts import Template
from trunkline.errors import (
    IntegrityError,
    NotFoundError,
    RefusedError,
    RegistryError,
    UsageError,
)
from trunkline.files import (
    REPAIR,
    TensorInfo,
    brief_repr,
    read_json_object,
    read_safetensors_header,
)
from trunkline.refs import Ref
from trunkline.registry.actors import system_actor
from trunkline.registry.records import VersionRecord
from trunkline.registry.registry import Registry
from trunkline.registry.tables import utc_now

if TYPE_CHECKING:
    from trunkline.bases import BaseInfo

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_TARGET_KEYS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
_TRAINING_KEYS = ("auto_mapping", "eva_config", "revision")
_PLAIN_INITS = ("eva", "orthogonal")
"""Initializations of the LoRA matrices that leave the base unchanged."""

_NO_TARGET = "none"
"""The target if no tensor is a LoRA matrix; the check of the tensors reports that."""

_OTHER_BASE = "It was trained on another base, or the name of the base is wrong."
_MAX_TEXT = 1000


@dataclass(frozen=True, slots=True)
class PeftFolder:
    """The configuration as it is in the file, and the header of the weights."""

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
        """The name of the folder; bytes that are not UTF-8 are replaced."""
        return self.folder.resolve().name.encode("utf-8", "replace").decode("utf-8")

    @property
    def named_base(self) -> str | None:
        """The base that the configuration names: a repository, or a path on another machine."""
        name = self.config.get("base_model_name_or_path")
        return name if isinstance(name, str) and name else None

    @property
    def left_out(self) -> dict[str, Any]:
        """Keys of the configuration that are set but that the imported one does not keep."""
        keys = (*_TARGET_KEYS, *_TRAINING_KEYS, "init_lora_weights", "peft_version")
        return {key: self.config[key] for key in keys if self.config.get(key)}


@dataclass(frozen=True, slots=True)
class ImportedAdapter:
    """A published import: version, task, LoRA, number of adapted modules, and the assumptions."""

    version: VersionRecord
    task: Mapping[str, Any]
    lora: LoraShape
    modules: int
    notes: tuple[str, ...]


def import_adapter(
    store: AdapterStore,
    registry: Registry,
    base: BaseInfo,
    folder: Path,
    ref: Ref,
    options: ImportOptions,
    *,
    source: Mapping[str, str] | None = None,
    actor: str | None = None,
) -> ImportedAdapter:
    """Check a plain PEFT folder and publish it as the next version of ``ref``.

    Args:
        store, registry: of the workspace.
        base: that the adapter was trained on, according to the user.
        folder: has ``adapter_config.json`` and ``adapter_model.safetensors``; other files are
            neither opened nor copied.
        ref: ``domain/name`` without a selector.
        options: of the user.
        source: recorded as the origin; by default the name of the folder.
        actor: who imports; by default the system's user.

    Raises:
        UsageError: the options contradict the adapter or each other.
        IntegrityError: the adapter is malformed, does not fit the base, or is not plain LoRA.
        RefusedError: the adapter exists for another task.
        RegistryError: it can't be written; nothing is left behind.
    """
    _check_no_selector(ref)
    actor = actor or system_actor()
    peft = read_peft_folder(folder)
    origin = {
        **(source or {"folder": _safe_text(peft.name)}),
        "named_base": None if peft.named_base is None else _safe_text(peft.named_base),
    }
    notes: list[str] = []
    tree = read_module_tree(base.folder, with_head=peft.head is not None)
    config = explicit_config(peft, tree)
    config["task_type"] = resolve_task_type(config, options, folder / CONFIG)
    lora = check_config(config, folder / CONFIG)
    check_head(peft, tree)
    task = build_task(config["task_type"], peft.head, options, base.context, notes)
    check_tensors(peft.tensors, lora, task, folder / WEIGHTS)
    check_fits_base(peft, lora, tree)
    check_import_target(registry, ref, task["kind"])
    _note_origin(peft, base, notes)
    try:
        with tempfile.TemporaryDirectory(prefix="trunkline-import-") as staging:
            target = Path(staging)
            _write_artifact(
                target, peft, config, task, base, ref, options.template, {**origin, "by": actor}
            )
            registry.sources.record_base(
                digest=base.digest,
                name=base.name,
                source=base.source,
                architecture=base.architecture,
                parameters=base.parameters,
                dtype=base.dtype,
            )
            version = store.publish(
                target,
                ref,
                task=task["kind"],
                run=None,
                base_digest=base.digest,
                imported=origin,
                actor=actor,
            )
    except OSError as error:
        raise RegistryError(
            f"The adapter in {folder} can't be copied: {error.strerror or error}.",
            "Free space in the folder for temporary files, or choose another with TMPDIR.",
        ) from error
    return ImportedAdapter(version, task, lora, len(peft.adapted), tuple(notes))


def check_import_target(registry: Registry, ref: Ref, kind: str) -> None:
    """Check that an import may publish under ``ref``: a new name, or one for the same task.

    Raises:
        UsageError: the ref names a version.
        RefusedError: the adapter exists for another task.
    """
    _check_no_selector(ref)
    try:
        adapter = registry.adapters.get(ref.domain, ref.name)
    except NotFoundError:
        return
    if adapter.task != kind:
        raise RefusedError(
            f"The adapter '{ref}' is for {adapter.task}, not for {kind}.",
            "Import it under another name.",
        )


def read_peft_folder(folder: Path) -> PeftFolder:
    """Read the configuration and the header of the weights; other files are not opened.

    Raises:
        NotFoundError: the folder does not exist.
        IntegrityError: a file is missing, malformed, or a pickle.
    """
    if not folder.is_dir():
        raise NotFoundError(
            f"There is no folder {brief_repr(str(folder))}.",
            f"Name the folder that has {CONFIG} and {WEIGHTS}.",
        )
    try:
        if not (folder / CONFIG).is_file():
            raise IntegrityError(
                f"{folder} has no {CONFIG}, so it is not a PEFT adapter.",
                "Name the folder that PEFT's save_pretrained wrote.",
            )
        if not (folder / WEIGHTS).is_file():
            raise _no_weights(folder)
        config = read_json_object(folder / CONFIG)
        return PeftFolder(folder, config, read_safetensors_header(folder / WEIGHTS))
    except OSError as error:
        raise IntegrityError(
            f"The adapter in {folder} can't be read: {error.strerror or error}.", REPAIR
        ) from error


def explicit_config(peft: PeftFolder, tree: ModuleTree) -> dict[str, Any]:
    """Return the configuration with the adapted modules listed by name.

    Keys that only describe the training are left out. The other keys are not checked yet.
    """
    out = (*_TARGET_KEYS, *_TRAINING_KEYS)
    config = {key: value for key, value in peft.config.items() if key not in out}
    config["target_modules"] = tree.targets(peft.adapted) or [_NO_TARGET]
    if config.get("init_lora_weights") in _PLAIN_INITS:
        config["init_lora_weights"] = True
    return config


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
            raise IntegrityError(
                f"{path} adapts {brief_repr(name)}, which this base does not have.", _OTHER_BASE
            )
        if name not in tree.linear:
            raise IntegrityError(
                f"{path} adapts {brief_repr(name)}, which is not a linear layer below the head.",
                "Only linear layers below the head can be adapted.",
            )
        inputs = peft.tensors[f"{PREFIX}{name}.lora_A.weight"].shape[1]
        outputs = peft.tensors[f"{PREFIX}{name}.lora_B.weight"].shape[0]
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
    _check_targets(peft, tree, path)


def check_head(peft: PeftFolder, tree: ModuleTree) -> None:
    """Compare the head, if there is one, with that of the base.

    Raises:
        IntegrityError: it has another name or other dimensions, or the base's head is not a single
            matrix.
    """
    if peft.head is None:
        return
    path = peft.folder / WEIGHTS
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


def _no_weights(folder: Path) -> IntegrityError:
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    first = next((name for name in pickles if name.startswith("adapter_model")), None)
    if first or pickles:
        return IntegrityError(
            f"{folder} has its weights as a pickle ({first or pickles[0]}), which can run code "
            "when it is read; it was not opened.",
            "Save the adapter as safetensors on a machine where you trust its origin.",
        )
    return IntegrityError(
        f"{folder} has no {WEIGHTS}.", "Name the folder that PEFT's save_pretrained wrote."
    )


def _check_targets(peft: PeftFolder, tree: ModuleTree, path: Path) -> None:
    """Compare the adapted modules with the configured ones; null leaves the choice to PEFT."""
    targets = peft.config.get("target_modules")
    if not (targets is None or isinstance(targets, str) or _is_texts(targets)):
        raise IntegrityError(
            f"{peft.folder / CONFIG} has target_modules = {brief_repr(targets)}.",
            "It must be a list of names, or a pattern.",
        )
    named = _named_targets(peft.config, tree)
    if named is None:
        return
    for name in sorted(named - peft.adapted):
        raise IntegrityError(
            f"{path} lacks the matrices of {brief_repr(name)}, which the configuration targets.",
            "The file is incomplete, or it was made for another base.",
        )
    for name in sorted(peft.adapted - named):
        raise IntegrityError(
            f"{path} has matrices of {brief_repr(name)}, which its configuration does not target; "
            "PEFT ignores them.",
            "Add the module to target_modules, or remove its tensors.",
        )


def _named_targets(config: Mapping[str, Any], tree: ModuleTree) -> frozenset[str] | None:
    """The linear layers that the configuration targets by name.

    None if that depends on a pattern or on PEFT's defaults.
    """
    targets: Any = config.get("target_modules")
    out: Any = config.get("exclude_modules") or []
    layers: Any = config.get("layers_to_transform")
    layers = [layers] if type(layers) is int else layers or []
    if not (_is_texts(targets) and _is_texts(out) and _is_integers(layers)):
        return None
    if layers and config.get("layers_pattern"):
        return None
    included = LoraShape(1, 1.0, False, tuple(targets), tuple(layers) or None)
    excluded = LoraShape(1, 1.0, False, tuple(out))
    return frozenset(
        name for name in tree.linear if included.adapts(name) and not excluded.adapts(name)
    )


def _check_no_selector(ref: Ref) -> None:
    if ref.selector is not None:
        raise UsageError(
            f"{str(ref)!r} names a version, but an import publishes the next one.",
            f"Use {ref.adapter}.",
        )


def _note_origin(peft: PeftFolder, base: BaseInfo, notes: list[str]) -> None:
    named = peft.named_base
    repo = base.name.removeprefix("hf:").partition("@")[0]
    if named is not None and named not in (base.name, Path(base.name).name, repo):
        notes.append(
            f"{CONFIG} names the base {brief_repr(named)}; that this is {base.name} can't be "
            "verified."
        )
    if (peft.folder / MANIFEST).exists():
        notes.append(
            f"{MANIFEST} in the folder was not read: task and template come from your options."
        )


def _write_artifact(
    target: Path,
    peft: PeftFolder,
    config: Mapping[str, Any],
    task: Mapping[str, Any],
    base: BaseInfo,
    ref: Ref,
    template: Template,
    origin: Mapping[str, Any],
) -> None:
    """Copy the weights and write the other files; the copy is checked, not the original."""
    source = peft.folder / WEIGHTS
    shutil.copyfile(source, target / WEIGHTS)
    if read_safetensors_header(target / WEIGHTS) != peft.tensors:
        raise IntegrityError(f"{source} changed while it was read.", "Import it again.")
    check_finite(target / WEIGHTS, source)
    write_json(target / CONFIG, config)
    name = Path(base.name).name if Path(base.name).is_absolute() else base.name
    seal(
        target,
        base={"name": name, "digest": base.digest},
        task=task,
        template=template,
        data={"dataset": UNKNOWN, "fingerprint": UNKNOWN, "split": UNKNOWN},
    )
    now = utc_now()
    left_out = {key: ascii(value)[:_MAX_TEXT] for key, value in peft.left_out.items()}
    provenance = Provenance(
        version=VersionSection(adapter=ref.adapter, task=task["kind"], created=now),
        base=BaseSection(
            digest=base.digest,
            name=name,
            source=base.source,
            architecture=base.architecture,
            parameters=base.parameters,
            dtype=base.dtype,
        ),
        imported={**origin, "at": now.isoformat(), "left_out": left_out},
    )
    write_provenance(target, provenance)
    card = render_card(read_artifact(target), provenance, str(ref))
    (target / CARD).write_text(card, encoding="utf-8")


def _safe_text(text: str) -> str:
    """A text from outside, escaped if it has control characters or is too long."""
    return text if is_plain_text(text) else ascii(text)[:_MAX_TEXT]


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_integers(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)
