"""An adapter that was made elsewhere becomes the next version of an adapter here.

Owns: the order of checks, what is asked of it (task, labels, template), and its publication. Must
not know: the command line, how a base is found.

Everything is refused before anything is written. What was trained on what can't be verified: the
version has no run and no dataset, and its card says so.
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
    read_artifact,
    seal,
    write_json,
)
from trunkline.adapters.card import render_card
from trunkline.adapters.config import LoraShape, check_config, check_tensors
from trunkline.adapters.foreign import (
    Foreign,
    check_finite,
    check_fits,
    check_head,
    plain_config,
    read_foreign,
)
from trunkline.adapters.imported_task import Wishes, imported_task, task_type
from trunkline.adapters.provenance import (
    BaseSection,
    Provenance,
    VersionSection,
    is_plain_text,
    write_provenance,
)
from trunkline.adapters.skeleton import read_skeleton
from trunkline.adapters.store import AdapterStore
from trunkline.errors import (
    IntegrityError,
    NotFoundError,
    RefusedError,
    RegistryError,
    UsageError,
)
from trunkline.files import brief_repr, read_safetensors_header
from trunkline.refs import Ref
from trunkline.registry.actors import system_actor
from trunkline.registry.records import VersionRecord
from trunkline.registry.registry import Registry
from trunkline.registry.tables import utc_now

if TYPE_CHECKING:
    from trunkline.bases import BaseInfo

_SHOWN = 1000
UNKNOWN = {"dataset": "unknown", "fingerprint": "unknown", "split": "unknown"}


@dataclass(frozen=True, slots=True)
class Imported:
    """The version that was published, its LoRA, and what was taken for granted, in sentences."""

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
    wishes: Wishes,
    *,
    source: Mapping[str, str] | None = None,
    actor: str | None = None,
) -> Imported:
    """Check a plain PEFT folder and publish it as the next version of ``ref``.

    Args:
        store, registry: of the workspace.
        base: that the adapter was trained on, as the user says.
        folder: ``adapter_config.json`` and ``adapter_model.safetensors``; anything else in it is
            neither opened nor copied.
        ref: ``domain/name`` without a selector.
        wishes: what the user says of it.
        source: what is told of where the folder came from; by default its name.
        actor: who imports; by default the system's user.

    Raises:
        UsageError: the wishes contradict the adapter or each other.
        IntegrityError: it is malformed, does not fit the base, or is more than plain LoRA.
        RefusedError: the adapter exists for another task.
        RegistryError: it can't be written; nothing is left behind.
    """
    _check_no_selector(ref)
    actor = actor or system_actor()
    foreign = read_foreign(folder)
    named = foreign.named_base
    origin = {
        **(source or {"folder": _harmless(foreign.name)}),
        "named_base": None if named is None else _harmless(named),
    }
    notes: list[str] = []
    skeleton = read_skeleton(base.folder, headed=foreign.head is not None)
    config = plain_config(foreign, skeleton)
    config["task_type"] = task_type(config, wishes, folder / CONFIG)
    lora = check_config(config, folder / CONFIG)
    check_head(foreign, skeleton)
    task = imported_task(config["task_type"], foreign.head, wishes, base.context, notes)
    check_tensors(foreign.tensors, lora, task, folder / WEIGHTS)
    check_fits(foreign, lora, skeleton)
    check_name(registry, ref, task["kind"])
    _tell_origin(foreign, base, notes)
    try:
        with tempfile.TemporaryDirectory(prefix="trunkline-import-") as staging:
            made = Path(staging)
            _make(made, foreign, config, task, base, ref, wishes, {**origin, "by": actor})
            registry.sources.record_base(
                digest=base.digest,
                name=base.name,
                source=base.source,
                architecture=base.architecture,
                parameters=base.parameters,
                dtype=base.dtype,
            )
            version = store.publish(
                made,
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
            "Make room in the folder for temporary files, or name another with TMPDIR.",
        ) from error
    return Imported(version, task, lora, len(foreign.adapted), tuple(notes))


def check_name(registry: Registry, ref: Ref, kind: str) -> None:
    """A version may come in under a name that is new, or is of an adapter of the same task.

    Raises:
        UsageError: it names a version.
        RefusedError: the adapter exists for another task.
    """
    _check_no_selector(ref)
    try:
        known = registry.adapters.get(ref.domain, ref.name)
    except NotFoundError:
        return
    if known.task != kind:
        raise RefusedError(
            f"The adapter '{ref}' is for {known.task}, not for {kind}.",
            "Import it under another name.",
        )


def _check_no_selector(ref: Ref) -> None:
    if ref.selector is not None:
        raise UsageError(
            f"{str(ref)!r} names a version; an import makes the next one.", f"Use {ref.adapter}."
        )


def _tell_origin(foreign: Foreign, base: BaseInfo, notes: list[str]) -> None:
    said = foreign.named_base
    repo = base.name.removeprefix("hf:").partition("@")[0]
    if said is not None and said not in (base.name, Path(base.name).name, repo):
        notes.append(
            f"{CONFIG} says that it was trained on {brief_repr(said)}; that this is {base.name} "
            "can't be verified."
        )
    if (foreign.folder / MANIFEST).exists():
        notes.append(f"{MANIFEST} beside it was not read: task and template are as you say.")


def _make(
    made: Path,
    foreign: Foreign,
    config: Mapping[str, Any],
    task: Mapping[str, Any],
    base: BaseInfo,
    ref: Ref,
    wishes: Wishes,
    origin: Mapping[str, Any],
) -> None:
    """Write the artifact; the weights are checked as they were copied."""
    source = foreign.folder / WEIGHTS
    shutil.copyfile(source, made / WEIGHTS)
    if read_safetensors_header(made / WEIGHTS) != foreign.tensors:
        raise IntegrityError(f"{source} was changed while it was read.", "Import it again.")
    check_finite(made / WEIGHTS, source)
    write_json(made / CONFIG, config)
    name = Path(base.name).name if Path(base.name).is_absolute() else base.name
    seal(
        made,
        base={"name": name, "digest": base.digest},
        task=task,
        template=wishes.template,
        data=UNKNOWN,
    )
    now = utc_now()
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
        imported={**origin, "at": now.isoformat(), "left_out": _told(foreign.left_out)},
    )
    write_provenance(made, provenance)
    card = render_card(read_artifact(made), provenance, str(ref))
    (made / CARD).write_text(card, encoding="utf-8")


def _told(values: Mapping[str, Any]) -> dict[str, str]:
    """Foreign values as short texts; whoever reads the provenance again finds them harmless."""
    return {key: ascii(value)[:_SHOWN] for key, value in values.items()}


def _harmless(text: str) -> str:
    """A foreign text as it stands, or escaped where it holds control characters."""
    return text if is_plain_text(text) else ascii(text)[:_SHOWN]
