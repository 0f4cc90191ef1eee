"""``provenance.json`` on the disk: written, and read without trust.

Owns: what may stand in the file, and the form of earlier releases. Must not know: the registry.

The file lies outside of the version's identity, so it is a claim, not a proof. What can be held
against the manifest, whose digest is the identity, is: the base, the dataset's fingerprints, the
task.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trunkline.adapters.artifact import MANIFEST, PROVENANCE
from trunkline.adapters.claims import Claim, plain_text
from trunkline.adapters.origin import (
    FORM,
    RUN_STATUSES,
    UNKNOWN,
    BaseOrigin,
    DatasetOrigin,
    EvaluationOrigin,
    Move,
    PluginOrigin,
    RunOrigin,
)
from trunkline.adapters.origin import Provenance as Provenance
from trunkline.adapters.safetensors_io import read_json
from trunkline.errors import IntegrityError, TrunklineError
from trunkline.refs import Ref

_MOST = 2**31 - 1
_ESTIMATE = ("value", "low", "high")


def provenance_bytes(provenance: Provenance) -> bytes:
    """The file's content: indented, keys sorted."""
    text = json.dumps(provenance.to_json(), indent=2, sort_keys=True, ensure_ascii=False)
    return f"{text}\n".encode()


def write_provenance(folder: Path, provenance: Provenance) -> None:
    """Write a folder's ``provenance.json``."""
    (folder / PROVENANCE).write_bytes(provenance_bytes(provenance))


def read_provenance(folder: Path) -> Provenance:
    """Read a folder's ``provenance.json``, of this form or of the first; without one, the origin is
    what the manifest says.

    Args:
        folder: an artifact that :func:`~trunkline.adapters.artifact.read_artifact` found sound.

    Raises:
        IntegrityError: it is malformed, or contradicts the manifest.
    """
    path = folder / PROVENANCE
    manifest, written = _manifest(folder)
    with _told(f"{path}"):
        if not path.exists():
            return _read_first(Claim({}), manifest, written)
        said = read_json(path)
        if "format" not in said:
            return _read_first(Claim(said), manifest, written)
        return provenance_from(said, manifest)


def unknown_origin(folder: Path) -> Provenance:
    """What the manifest alone says, of an artifact whose ``provenance.json`` can't be used.

    Raises:
        IntegrityError: the manifest can't be used either.
    """
    manifest, written = _manifest(folder)
    with _told(f"{folder / MANIFEST}"):
        return _read_first(Claim({}), manifest, written)


def provenance_from(said: Mapping[str, Any], manifest: Mapping[str, Any]) -> Provenance:
    """An object in the form of the file, checked as a file is.

    Args:
        said: the object.
        manifest: that of the version, as it stands in ``trunkline.json``.

    Raises:
        IntegrityError: it is malformed, or contradicts the manifest.
    """
    with _told("The account of the version"):
        found = _read(Claim(said))
        _check_against(found, manifest)
        return found


def _manifest(folder: Path) -> tuple[dict[str, Any], datetime]:
    """What ``trunkline.json`` says, and when it was written."""
    path = folder / MANIFEST
    with _told(f"{path}"):
        return read_json(path), datetime.fromtimestamp(path.stat().st_mtime, UTC)


@contextmanager
def _told(what: str) -> Iterator[None]:
    try:
        yield
    except IntegrityError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, OSError, TrunklineError) as error:
        reason = getattr(error, "message", None) or error
        if isinstance(error, KeyError):
            reason = f"{error} is missing."
        raise IntegrityError(
            f"{what} does not say where the version comes from: {reason}",
            f"The version stays what it is: take {PROVENANCE} away to go on without its origin.",
        ) from error


def _read(said: Claim) -> Provenance:
    if said.whole("format", FORM, FORM) != FORM:
        raise ValueError("of a later form.")
    said.expect("format", "version", "base", "dataset", "run", "evaluations", "imported", "moved")
    version = said.part("version")
    version.expect("adapter", "task", "created")
    adapter = version.text_or_none("adapter")
    dataset, run, imported = (said.part_or_none(key) for key in ("dataset", "run", "imported"))
    found = Provenance(
        adapter=None if adapter is None else _adapter(adapter),
        task=version.text("task"),
        created=version.time("created"),
        base=_base(said.part("base")),
        dataset=None if dataset is None else _dataset(dataset),
        run=None if run is None else _run(run),
        evaluations=tuple(_evaluation(one) for one in said.parts("evaluations")),
        imported=None if imported is None else imported.free(),
        moved=tuple(_move(one) for one in said.parts("moved")),
    )
    if found.run is not None and found.dataset is None:
        raise ValueError("a run without a dataset.")
    if found.evaluations and found.run is None:
        raise ValueError("evaluations without a run.")
    return found


def _base(said: Claim) -> BaseOrigin:
    said.expect(*_names(BaseOrigin))
    return BaseOrigin(
        **{key: said.text(key) for key in ("digest", "name", "source", "architecture", "dtype")},
        parameters=said.whole("parameters", 0, 2**63 - 1),
    )


def _dataset(said: Claim) -> DatasetOrigin:
    said.expect(*_names(DatasetOrigin))
    texts = ("fingerprint", "split_fingerprint", "license", "source")
    return DatasetOrigin(
        name=_adapter(said.text("name")),
        **{key: said.text(key) for key in texts},
        rows=said.whole("rows", 0, _MOST),
        counts=said.part("counts").free(),
        description=said.text_or_none("description"),
        grouping=said.text_or_none("grouping"),
    )


def _run(said: Claim) -> RunOrigin:
    said.expect(*_names(RunOrigin))
    plugin, report = said.part_or_none("plugin"), said.part_or_none("report")
    specification = said.part_or_none("specification")
    status = said.text("status")
    if status not in RUN_STATUSES:
        raise ValueError(f"the run's status {plain_text(status)!r}.")
    return RunOrigin(
        number=said.whole("number", 1, _MOST),
        recipe=_adapter(said.text("recipe")),
        status=status,
        seed=said.whole("seed", 0, _MOST),
        settings=said.part("settings").free(),
        environment=said.part("environment").free(),
        specification=None if specification is None else specification.free(),
        report=None if report is None else report.free(),
        started=said.time_or_none("started"),
        finished=said.time_or_none("finished"),
        plugin=None if plugin is None else _plugin(plugin),
        actor=said.text_or_none("actor"),
    )


def _plugin(said: Claim) -> PluginOrigin:
    said.expect(*_names(PluginOrigin))
    return PluginOrigin(
        **{key: said.text(key) for key in ("distribution", "version", "domain")},
        api=said.whole("api", 0, _MOST),
    )


def _evaluation(said: Claim) -> EvaluationOrigin:
    said.expect(*_names(EvaluationOrigin))
    results = said.part("results")
    _check_results(results)
    return EvaluationOrigin(
        split=said.text("split"), results=results.free(), created=said.time("created")
    )


def _check_results(results: Claim) -> None:
    """What is there of a evaluation must be of its kind; nothing has to be there."""
    if (scores := results.part_or_none("scores")) is not None:
        _check_scores(scores)
    if (baselines := results.part_or_none("baselines")) is not None:
        for name in baselines.said:
            _check_scores(baselines.part(name))
    if (difference := results.part_or_none("difference")) is not None:
        difference.figures(*_ESTIMATE)
    for name in ("metric", "best_baseline", "verdict"):
        results.text_or_none(name)
    for name in ("rows", "groups"):
        if results.get(name) is not None:
            results.whole(name, 0, _MOST)
    for one in results.parts("slices") if results.get("slices") else ():
        one.expect("slice", "value", "rows", "score")
        for name in ("slice", "value"):
            one.text(name)
        one.whole("rows", 0, _MOST)
        one.figures("score")
        if one.get("score") is None:
            raise ValueError("a slice without a score.")


def _check_scores(said: Claim) -> None:
    for metric in said.said:
        said.part(metric).figures(*_ESTIMATE)


def _move(said: Claim) -> Move:
    said.expect("from", "run", "by", "at")
    run = None if said.get("run") is None else said.whole("run", 1, _MOST)
    return Move(origin=said.text("from"), run=run, by=said.text("by"), at=said.time("at"))


def _read_first(said: Claim, manifest: Mapping[str, Any], written: datetime) -> Provenance:
    """The form of the first releases, completed from the manifest; an empty one says nothing."""
    named, base = manifest["data"], manifest["base"]
    task = str(manifest["task"]["kind"])
    origin = BaseOrigin(digest=base["digest"], name=base["name"])
    imported = said.part_or_none("imported")
    dataset = None
    if named.get("dataset", UNKNOWN) != UNKNOWN:
        report = said.part_or_none("report")
        counts = (None if report is None else report.part_or_none("data")) or Claim({})
        dataset = DatasetOrigin(
            name=_adapter(named["dataset"]),
            fingerprint=named["fingerprint"],
            split_fingerprint=named["split"],
            rows=counts.whole("kept", 0, _MOST) if counts.get("kept") is not None else 0,
            counts=counts.free(),
        )
    number = said.get("run")
    if number is None or dataset is None:
        return Provenance(
            adapter=None, task=task, created=written, base=origin, dataset=dataset,
            imported=None if imported is None else imported.free(),
        )  # fmt: skip
    settings, recipe = said.part("settings"), _adapter(said.text("recipe"))
    report = said.part("report")
    run = RunOrigin(
        number=said.whole("run", 1, _MOST),
        recipe=recipe,
        status="finished",
        seed=settings.whole("seed", 0, _MOST),
        settings=settings.free(),
        environment=said.part("environment").free(),
        report=report.free(),
    )
    evaluated = _evaluation(
        Claim({"split": "test", "results": said.get("evaluation"), "created": written.isoformat()})
    )
    return Provenance(
        adapter=recipe, task=task, created=written, base=origin, dataset=dataset, run=run,
        evaluations=(evaluated,),
    )  # fmt: skip


def _check_against(found: Provenance, manifest: Mapping[str, Any]) -> None:
    """The file may not contradict what the version's identity covers."""
    if found.base.digest != manifest["base"]["digest"]:
        raise ValueError("it names another base than the manifest.")
    if found.task != manifest["task"]["kind"]:
        raise ValueError("it names another task than the manifest.")
    named = manifest["data"]
    ours = ("dataset", "fingerprint", "split")
    if named.get("dataset", UNKNOWN) == UNKNOWN:
        if found.dataset is not None:
            raise ValueError("it names a dataset, the manifest none.")
    elif found.dataset is not None:
        said = (found.dataset.name, found.dataset.fingerprint, found.dataset.split_fingerprint)
        if said != tuple(named.get(key) for key in ours):
            raise ValueError("it names other data than the manifest.")


def _adapter(text: str) -> str:
    """``text`` if it is ``domain/name``."""
    if Ref.parse(text).selector is not None:
        raise ValueError(f"{text!r} where a name without a selector was expected.")
    return text


def _names(kind: type) -> list[str]:
    return [one.name for one in fields(kind)]
