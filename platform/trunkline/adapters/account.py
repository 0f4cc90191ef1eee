"""A version's provenance and card as they are known now, and their keeping beside its files.

Owns: putting together what the registry knows with what only the artifact says. Must not know:
how either is stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

from trunkline.adapters.artifact import CARD, CONFIG, CROISSANT, PROVENANCE, Artifact
from trunkline.adapters.card import model_card
from trunkline.adapters.claims import plain_value
from trunkline.adapters.origin import FORM, Provenance
from trunkline.adapters.provenance import (
    provenance_bytes,
    provenance_from,
    read_provenance,
    unknown_origin,
)
from trunkline.adapters.safetensors_io import read_json
from trunkline.adapters.store import AdapterStore
from trunkline.contracts import DatasetSpec
from trunkline.errors import IntegrityError
from trunkline.refs import Ref
from trunkline.registry.records import VersionRecord
from trunkline.registry.registry import Registry
from trunkline.registry.session import utc_now


def provenance_of(registry: Registry, version: VersionRecord, artifact: Artifact) -> Provenance:
    """Where a version comes from: the registry's word, completed by the artifact's own.

    Args:
        registry: of the workspace.
        version: a visible one.
        artifact: its files, verified.
    """
    kept = kept_provenance(artifact)
    known = registry.versions.provenance(version.ref)
    if known["run"] is None:
        known["evaluations"] = []
    if known["dataset"] is not None:
        described = kept.dataset
        known["dataset"] |= {
            "description": None if described is None else described.description,
            "grouping": None if described is None else described.grouping,
        }
    said = {**kept.to_json(), "version": _version(version.ref, version.created, artifact), **known}
    found = provenance_from(plain_value(said), asdict(artifact.manifest))
    return found if found.evaluations else replace(found, evaluations=kept.evaluations)


def provenance_of_run(
    registry: Registry,
    number: int,
    artifact: Artifact,
    *,
    dataset: DatasetSpec,
    report: Mapping[str, Any],
) -> Provenance:
    """Where an artifact comes from that a run is about to publish, the run told as finished.

    Args:
        registry: of the workspace; the artifact's evaluations stand under the run.
        number: of the run.
        artifact: sealed.
        dataset: the run's.
        report: the run's, which the registry gets with its end.
    """
    now = utc_now()
    known = registry.runs.provenance(number)
    known["run"] |= {"status": "finished", "finished": now.isoformat(), "report": report}
    known["dataset"] |= {"description": dataset.description, "grouping": dataset.grouping}
    ref = Ref.parse(known["run"]["recipe"])
    said = {
        "format": FORM,
        "version": _version(ref, now, artifact),
        **known,
        "imported": None,
        "moved": [],
    }
    return provenance_from(plain_value(said), asdict(artifact.manifest))


def kept_provenance(artifact: Artifact) -> Provenance:
    """What the artifact's own file says; where that can't be used, what its manifest says."""
    try:
        return read_provenance(artifact.folder)
    except IntegrityError:
        return unknown_origin(artifact.folder)


def card_text(artifact: Artifact, provenance: Provenance, name: str) -> str:
    """The model card; ``name`` is the adapter's, with the version's number where it is known."""
    return model_card(
        name,
        artifact.manifest,
        read_json(artifact.folder / CONFIG),
        provenance,
        croissant=(artifact.folder / CROISSANT).exists(),
    )


def card_of(store: AdapterStore, version: VersionRecord) -> str:
    """A version's card as it is known now."""
    artifact = store.fetch(version)
    return card_text(artifact, provenance_of(store.registry, version, artifact), str(version.ref))


def keep_account(store: AdapterStore, version: VersionRecord) -> VersionRecord:
    """Write ``provenance.json`` and ``README.md`` of a version anew, as they are known now.

    Raises:
        RegistryError: the store can't be written; each file is the earlier one or the new one.
    """
    artifact = store.fetch(version)
    provenance = provenance_of(store.registry, version, artifact)
    card = card_text(artifact, provenance, str(version.ref))
    version = store.write_file(version, PROVENANCE, provenance_bytes(provenance))
    return store.write_file(version, CARD, card.encode())


def _version(ref: Ref, created: datetime, artifact: Artifact) -> dict[str, Any]:
    task = artifact.manifest.task["kind"]
    return {"adapter": ref.adapter, "task": task, "created": created.isoformat()}
