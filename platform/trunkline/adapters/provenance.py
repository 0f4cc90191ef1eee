"""``provenance.json``: where a version comes from, as one model with one reader and one writer.

A version's digest does not cover this file, so its content is a claim, not a proof. The reader
validates it strictly and compares it with the manifest, which the digest does cover: the base, the
dataset's fingerprints and the task must agree.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from trunkline.adapters.artifact import MANIFEST, PROVENANCE, Artifact, Manifest
from trunkline.adapters.fusion import Fusion
from trunkline.contracts import DatasetSpec, FusionMethod, Reads
from trunkline.errors import IntegrityError, UsageError, one_line, reason_of
from trunkline.files import indented_json, read_json_object, validation_problem
from trunkline.refs import Ref
from trunkline.registry.records import VersionRecord
from trunkline.registry.registry import Registry
from trunkline.registry.tables import utc_now

UNKNOWN = "unknown"
"""The value of a text that was not recorded."""

MAX_TEXT = 1_000_000
MAX_ITEMS = 100_000
MAX_DEPTH = 30
MAX_PARENTS = 16
"""A version is merged from at most this many."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_HINT = f"The version itself is unaffected: delete {PROVENANCE} to continue without provenance."


def _utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("it is out of range") from None


def _adapter_name(text: str) -> str:
    try:
        ref = Ref.parse(text)
    except UsageError as error:
        raise ValueError("it is not of the form domain/name") from error
    if ref.selector is not None:
        raise ValueError("it must not have a selector")
    return text


AdapterName = Annotated[str, AfterValidator(_adapter_name)]
Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
Number = Annotated[int, Field(ge=1, le=2**31 - 1)]
Score = Annotated[float, Field(gt=-1e300, lt=1e300, allow_inf_nan=False)]
Time = Annotated[AwareDatetime, AfterValidator(_utc)]


class _Section(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class _Estimate(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    value: Score | None = None
    low: Score | None = None
    high: Score | None = None


class _Slice(_Section):
    slice: str
    value: str
    rows: Count
    score: Score


class _Results(BaseModel):
    """The fields of an evaluation's results that the card reads; all others are free."""

    model_config = ConfigDict(strict=True, extra="allow")

    metric: str | None = None
    rows: Count | None = None
    groups: Count | None = None
    scores: dict[str, _Estimate] | None = None
    baselines: dict[str, dict[str, _Estimate]] | None = None
    best_baseline: str | None = None
    difference: _Estimate | None = None
    verdict: str | None = None
    slices: list[_Slice] | None = Field(default=None, max_length=MAX_ITEMS)


def _check_results(results: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        _Results.model_validate_json(json.dumps(plain_value(results)))
    except ValidationError as error:
        raise ValueError(validation_problem(error)) from None
    return results


class VersionSection(_Section):
    """The version: ``adapter`` is ``domain/name`` under which it was made, None if unknown."""

    adapter: AdapterName | None = None
    task: str
    created: Time


class BaseSection(_Section):
    """The base; ``parameters`` is 0 if their number is unknown."""

    digest: str
    name: str
    source: str = UNKNOWN
    architecture: str = UNKNOWN
    parameters: int = Field(default=0, ge=0, le=2**63 - 1)
    dtype: str = UNKNOWN
    modality: Reads = "text"


class DatasetSection(_Section):
    """The rows that were used; ``counts`` is the data report."""

    name: AdapterName
    fingerprint: str
    split_fingerprint: str
    rows: Count
    license: str = UNKNOWN
    source: str = UNKNOWN
    counts: Mapping[str, Any] = Field(default_factory=dict)
    description: str | None = None
    grouping: str | None = None
    restrictions: str | None = None


class PluginSection(_Section):
    """The release of the plugin that contributed the recipe."""

    distribution: str
    version: str
    api: Count
    domain: str


class RunSection(_Section):
    """The training run; ``number`` is its number in the workspace that holds the version."""

    number: Number
    recipe: AdapterName
    status: Literal["running", "finished", "failed", "interrupted"]
    seed: Count
    settings: Mapping[str, Any]
    environment: Mapping[str, Any]
    specification: Mapping[str, Any] | None = None
    report: Mapping[str, Any] | None = None
    started: Time
    finished: Time | None = None
    plugin: PluginSection | None = None
    actor: str | None = None


class EvaluationSection(_Section):
    """Scores on one split."""

    split: str
    results: Annotated[Mapping[str, Any], AfterValidator(_check_results)]
    created: Time


_SPEC_FIELDS = ("description", "grouping", "restrictions")
"""What the document takes from the specification of the dataset, and the registry does not hold."""

_METHODS = {
    "linear": "weighted sum of the updates",
    "svd": "weighted sum of the updates, cut to the rank by SVD",
    "ties": "TIES of the updates (Yadav et al. 2023), cut to the rank by SVD",
    "dare": "DARE of the updates (Yu et al. 2023), cut to the rank by SVD",
    "average": "fusion of the answers: weighted average of the probabilities",
    "stacked": "fusion of the answers: logistic regression on the log probabilities",
}

MergeMethod = Literal["linear", "ties", "dare", "svd"]


class MergeParent(_Section):
    """A version that was merged: its ref at that time, its digest, and its weight.

    The weight of a fusion by stacking is 1; the coefficients are in its manifest.
    """

    ref: str
    digest: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}\z")]
    weight: Annotated[float, Field(gt=-1e6, lt=1e6, allow_inf_nan=False)]


class MergeSection(_Section):
    """How a version was merged from others; ``density`` and ``seed`` where the method has them."""

    method: MergeMethod | FusionMethod
    density: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Count | None = None
    parents: tuple[MergeParent, ...] = Field(min_length=2, max_length=MAX_PARENTS)

    @property
    def text(self) -> str:
        """The method with its settings, for people."""
        density = "" if self.density is None else f", density {self.density:g}"
        return (
            _METHODS[self.method] + density + ("" if self.seed is None else f", seed {self.seed}")
        )


def fusion_section(fusion: Fusion) -> MergeSection:
    """How a fusion was made, from its manifest."""
    weights = (1.0, 1.0) if fusion.weight is None else (fusion.weight, 1 - fusion.weight)
    return MergeSection(
        method=fusion.method,
        parents=tuple(
            MergeParent(ref=one.ref, digest=one.digest, weight=weight)
            for one, weight in zip(fusion.parents, weights, strict=True)
        ),
    )


class Transfer(_Section):
    """A move between workspaces: the ref and the run's number at the origin, who, and when."""

    origin: str
    run: Number | None = None
    by: str
    at: Time


class Provenance(_Section):
    """The content of ``provenance.json``.

    Attributes:
        dataset, run: None for a version that was made elsewhere.
        evaluations: oldest first.
        imported: for a version made elsewhere, what is known about its origin.
        merge: for a version that was merged from others; it has no run.
        transfers: from workspace to workspace, oldest first.
    """

    format: Literal[1] = 1
    version: VersionSection
    base: BaseSection
    dataset: DatasetSection | None = None
    run: RunSection | None = None
    evaluations: tuple[EvaluationSection, ...] = Field(default=(), max_length=MAX_ITEMS)
    imported: Mapping[str, Any] | None = None
    merge: MergeSection | None = None
    transfers: tuple[Transfer, ...] = Field(default=(), max_length=MAX_ITEMS)

    @model_validator(mode="after")
    def _check_references(self) -> Self:
        if self.run is not None and self.dataset is None:
            raise ValueError("it has a run without a dataset")
        if self.evaluations and self.run is None and self.merge is None:
            raise ValueError("it has evaluations without a run")
        if self.evaluations and self.dataset is None:
            raise ValueError("it has evaluations without a dataset")
        return self

    def to_json(self) -> dict[str, Any]:
        """The JSON object of the file; NaN and infinities become null."""
        value: dict[str, Any] = plain_value(self.model_dump())
        return value

    def with_transfer(self, *, run: int | None, origin: str, by: str, at: datetime) -> Self:
        """A copy after a move to another workspace, where the run has the number ``run``.

        Args:
            run: the number in the new workspace; None if no run is known.
            origin: the ref in the workspace that it comes from.
            by: who moved it.
            at: when; timezone-aware.
        """
        here = None
        if self.run is not None and run is not None:
            here = self.run.model_copy(update={"number": run})
        number = None if self.run is None else self.run.number
        transfer = Transfer(origin=origin, run=number, by=by, at=at)
        return self.model_copy(update={"run": here, "transfers": (*self.transfers, transfer)})


def provenance_bytes(provenance: Provenance) -> bytes:
    """The content of the file: indented, keys sorted."""
    return indented_json(provenance.to_json())


def write_provenance(folder: Path, provenance: Provenance) -> None:
    """Write a folder's ``provenance.json``."""
    (folder / PROVENANCE).write_bytes(provenance_bytes(provenance))


def read_provenance(artifact: Artifact) -> Provenance:
    """Read an artifact's ``provenance.json``; without the file, use the manifest alone.

    Raises:
        IntegrityError: the file is malformed or contradicts the manifest.
    """
    path = artifact.folder / PROVENANCE
    if not path.exists():
        return manifest_provenance(artifact)
    try:
        value = read_json_object(path)
    except OSError as error:
        raise IntegrityError(f"{path} can't be read: {reason_of(error)}.", _HINT) from error
    except IntegrityError as error:
        raise IntegrityError(error.message, _HINT) from error
    return parse_provenance(value, artifact.manifest, str(path))


def stored_provenance(artifact: Artifact) -> Provenance:
    """The provenance in the artifact's file; if it is unusable, that of its manifest."""
    try:
        return read_provenance(artifact)
    except IntegrityError:
        return manifest_provenance(artifact)


def manifest_provenance(artifact: Artifact) -> Provenance:
    """The provenance that the manifest alone contains; the time is that of its file.

    Raises:
        IntegrityError: the manifest names a dataset that is not well-formed.
    """
    path, manifest = artifact.folder / MANIFEST, artifact.manifest
    dataset = None
    if manifest.data.get("dataset", UNKNOWN) != UNKNOWN:
        dataset = {
            "name": manifest.data["dataset"],
            "fingerprint": manifest.data.get("fingerprint"),
            "split_fingerprint": manifest.data.get("split"),
            "rows": 0,
        }
    created = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    value = {
        "version": {"task": manifest.task["kind"], "created": created.isoformat()},
        "base": {
            "digest": manifest.base["digest"],
            "name": manifest.base["name"],
            "modality": manifest.reads,
        },
        "dataset": dataset,
        "merge": manifest.fusion and fusion_section(manifest.fusion).model_dump(),
    }
    return parse_provenance(value, manifest, str(path))


def parse_provenance(value: Mapping[str, Any], manifest: Manifest, source: str) -> Provenance:
    """Validate a JSON object in the form of the file.

    Args:
        value: the object.
        manifest: of the same version.
        source: where the object comes from, for error messages.

    Raises:
        IntegrityError: it is malformed or contradicts the manifest.
    """
    try:
        _check_texts(value)
        provenance = Provenance.model_validate_json(json.dumps(value))
        _check_manifest(provenance, manifest)
    except ValidationError as error:
        raise IntegrityError(f"{source} is invalid: {validation_problem(error)}.", _HINT) from None
    except ValueError as error:
        raise IntegrityError(f"{source} is invalid: {one_line(error)}.", _HINT) from error
    return provenance


def version_provenance(
    registry: Registry, version: VersionRecord, artifact: Artifact
) -> Provenance:
    """A version's provenance as the registry has it now, completed from the artifact's file.

    Args:
        registry: of the workspace.
        version: a visible one.
        artifact: its verified files.
    """
    stored = stored_provenance(artifact)
    recorded = registry.provenance.of_version(version.ref)
    if recorded["run"] is None and recorded["merge"] is None:
        recorded["evaluations"] = []
    if recorded["dataset"] is not None and stored.dataset is not None:
        recorded["dataset"] |= {name: getattr(stored.dataset, name) for name in _SPEC_FIELDS}
    value = {
        **stored.to_json(),
        "version": _version(version.ref, version.created, artifact),
        **recorded,
    }
    provenance = _parse_recorded(value, artifact)
    if provenance.evaluations:
        return provenance
    return provenance.model_copy(update={"evaluations": stored.evaluations})


def run_provenance(
    registry: Registry,
    number: int,
    artifact: Artifact,
    *,
    dataset: DatasetSpec,
    report: Mapping[str, Any],
) -> Provenance:
    """The provenance of an artifact that a run is about to publish; the run counts as finished.

    Args:
        registry: of the workspace; it already has the run's evaluations.
        number: of the run.
        artifact: sealed.
        dataset: the run's.
        report: the run's; the registry receives it when the run finishes.
    """
    now = utc_now()
    recorded = registry.provenance.of_run(number)
    recorded["run"] |= {"status": "finished", "finished": now.isoformat(), "report": report}
    recorded["dataset"] |= {name: getattr(dataset, name) or None for name in _SPEC_FIELDS}
    ref = Ref.parse(recorded["run"]["recipe"])
    return _parse_recorded({"version": _version(ref, now, artifact), **recorded}, artifact)


def plain_value(value: Any) -> Any:
    """``value`` as JSON: NaN and infinities become null, control characters U+FFFD, times ISO
    8601, and other objects their text."""
    if isinstance(value, str):
        return _CONTROL.sub("\ufffd", value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {plain_value(str(key)): plain_value(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [plain_value(item) for item in value]
    return plain_value(str(value))


def is_plain_text(text: str) -> bool:
    """Whether a text has no control characters and a reasonable length."""
    return len(text) <= MAX_TEXT and _CONTROL.search(text) is None


def _version(ref: Ref, created: datetime, artifact: Artifact) -> dict[str, Any]:
    task = artifact.manifest.task["kind"]
    return {"adapter": ref.adapter, "task": task, "created": created.isoformat()}


def _parse_recorded(value: Mapping[str, Any], artifact: Artifact) -> Provenance:
    source = f"The registry's provenance of {artifact.digest}"
    return parse_provenance(plain_value(value), artifact.manifest, source)


def _check_manifest(provenance: Provenance, manifest: Manifest) -> None:
    """Raise ValueError where the provenance contradicts what the version's digest covers."""
    claims: list[tuple[str, object, object]] = [
        ("base.digest", provenance.base.digest, manifest.base["digest"]),
        ("base.modality", provenance.base.modality, manifest.reads),
        ("version.task", provenance.version.task, manifest.task["kind"]),
    ]
    if (dataset := provenance.dataset) is not None:
        claims += [
            ("dataset.name", dataset.name, manifest.data.get("dataset")),
            ("dataset.fingerprint", dataset.fingerprint, manifest.data.get("fingerprint")),
            ("dataset.split_fingerprint", dataset.split_fingerprint, manifest.data.get("split")),
        ]
    if manifest.fusion is not None:
        parents = () if provenance.merge is None else provenance.merge.parents
        expected = [one.digest for one in manifest.fusion.parents]
        claims.append(("merge.parents", [one.digest for one in parents], expected))
    for field, claim, covered in claims:
        if claim != covered:
            raise ValueError(f"{field} is {_quoted(claim)}, but {MANIFEST} has {covered!r}")


def _check_texts(value: Any, field: str = "", depth: int = 0) -> None:
    """Raise ValueError at a text that could harm a terminal, or at deep nesting."""
    if depth > MAX_DEPTH:
        raise ValueError(f"{_quoted(field)} is nested too deeply")
    if isinstance(value, str) and not is_plain_text(value):
        raise ValueError(f"{field} is {_quoted(value)}: it holds control characters or is too long")
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not is_plain_text(key):
                raise ValueError(f"the key {_quoted(key)} holds control characters or is too long")
            _check_texts(item, f"{field}.{key}".strip("."), depth + 1)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_texts(item, f"{field}.{index}", depth + 1)


def _quoted(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
