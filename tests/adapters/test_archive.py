"""Export a version and import it in another workspace: what is transferred, and what is refused."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hostile import contents, record_base
from made_keys import make_key
from trunkline.adapters.archive import ImportResult, pack, unpack
from trunkline.adapters.artifact import read_artifact
from trunkline.adapters.provenance import read_provenance
from trunkline.adapters.signing import key_fingerprint
from trunkline.adapters.storage import LocalStorage
from trunkline.api import Platform, open
from trunkline.errors import (
    BaseMismatchError,
    IntegrityError,
    NotFoundError,
    RefusedError,
    RegistryError,
    TrunklineError,
    UsageError,
)
from trunkline.promotion import GateRefusedError
from trunkline.refs import Ref
from trunkline.registry.records import PredictionRecord
from workbench import make_artifact

RESULTS = {
    "metric": "accuracy",
    "scores": {"accuracy": {"value": 0.8, "low": 0.7, "high": 0.9}},
    "baselines": {"majority": {"accuracy": {"value": 0.4, "low": 0.3, "high": 0.5}}},
    "verdict": "beats",
}
NOON = "2026-01-01T12:00:00+00:00"
_SURE = {"value": 0.5, "low": 0.4, "high": 0.6}
COMPLETE_RESULTS = {
    "metric": "accuracy",
    "higher_is_better": True,
    "rows": 100,
    "groups": 50,
    "scores": {"accuracy": {"value": 0.9, "low": 0.8, "high": 1.0}},
    "baselines": {"majority": {"accuracy": {"value": 0.4, "low": 0.3, "high": 0.5}}},
    "baseline_details": {"majority": "the commonest label"},
    "best_baseline": "majority",
    "difference": _SURE,
    "verdict": "beats",
    "slices": [],
    "gate": {"metric": "accuracy"},
}
SPECIFICATION = {"description": "Kinds of animals", "transforms": [], "loss": {"name": "default"}}


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, sound: Path) -> Path:
    """A workspace with ``toy/animals@1`` of run 2, evaluated twice; tests copy it."""
    folder = tmp_path_factory.mktemp("there") / "workspace"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TRUNKLINE_REGISTRY", raising=False)
        platform = open(folder, no_plugins=True)
        registry = platform.registry
        base = read_artifact(sound).manifest.base["digest"]
        record_base(registry, base)
        rows = registry.sources.record_dataset(
            name="toy/animals", fingerprint="f", split_fingerprint="s", rows=12,
            license="CC0-1.0", source="made by hand", counts={"kept": 12, "parts": {"test": 2}},
        )  # fmt: skip
        plugin = registry.sources.record_plugin(
            distribution="trunkline-toy", version="1.2", api=1, domain="toy"
        )
        for _ in range(2):
            run = registry.runs.start(
                recipe="toy/animals", base_digest=base, dataset_id=rows, plugin_id=plugin, seed=7,
                settings={"rank": 4}, environment={"python": "3.11"},
                specification=SPECIFICATION, actor="system:ada",
            )  # fmt: skip
        evaluate = {"recipe": "toy/animals", "base_digest": base, "dataset_id": rows}
        registry.evaluations.record(
            **evaluate, split="test", results=RESULTS, run=run,
            predictions=[PredictionRecord(row_id="1", group="g", target="a", prediction="a")],
        )  # fmt: skip
        platform.store.publish(sound, Ref("toy", "animals"), task="classification", run=run)
        registry.runs.finish(run, "finished", report={"steps": 3, "train_seconds": 1.5})
        registry.evaluations.record(
            **evaluate, split="validation", results=RESULTS, version=Ref("toy", "animals", "1")
        )
        registry.close()
    return folder


@dataclass(frozen=True)
class WorkspacePair:
    """Two workspaces and the archive between them."""

    source: Platform
    target: Platform
    archive: Path

    def transfer(self, name: str | None = None, **options: Any) -> ImportResult:
        self.source.files.export_adapter("toy/animals@1", self.archive, overwrite=True)
        return self.target.files.import_archive(self.archive, name, **options)


@pytest.fixture
def pair(trained: Path, tmp_path: Path) -> Iterator[WorkspacePair]:
    source = open(shutil.copytree(trained, tmp_path / "there"), no_plugins=True)
    (tmp_path / "here").mkdir()
    target = open(tmp_path / "here", no_plugins=True)
    yield WorkspacePair(source, target, tmp_path / "animals.tar")
    source.registry.close()
    target.registry.close()


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("moving-keys")
    make_key(folder, "release")
    make_key(folder, "other")
    return folder


def require_signatures(platform: Platform, *keys: Path, required: bool = True) -> None:
    """Configure a workspace to trust these keys."""
    lines = ["[signatures]", f"required = {json.dumps(required)}"]
    lines.append(f"keys = {json.dumps([str(key) for key in keys])}")
    (platform.workspace.root / "trunkline.toml").write_text("\n".join(lines))


def rewritten(pair: WorkspacePair, change: Callable[[Path], Any], tmp_path: Path) -> Path:
    """The archive with one change to its files; digests are not updated."""
    pair.source.files.export_adapter("toy/animals@1", pair.archive, overwrite=True)
    folder = tmp_path / "rewritten"
    folder.mkdir()
    unpack(pair.archive, folder)
    change(folder)
    pack(folder, pair.archive, overwrite=True)
    return pair.archive


# ------------------------------------------------------------------------------------ valid imports


def test_version_arrives_under_its_name_with_its_digest(pair: WorkspacePair, sound: Path) -> None:
    version = pair.transfer().version
    assert (str(version.ref), version.digest) == ("toy/animals@1", read_artifact(sound).digest)


def test_files_arrive_byte_for_byte(pair: WorkspacePair, sound: Path) -> None:
    version = pair.transfer().version
    folder = pair.target.store.fetch(version).folder
    for path in sound.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", ["README.md", "croissant.json"])
def test_card_and_croissant_arrive_as_they_were(pair: WorkspacePair, name: str) -> None:
    version = pair.source.resolve("toy/animals@1").version
    pair.source.store.write_file(version, name, b'{"a": "\xc3\xbc"}')
    folder = pair.target.store.fetch(pair.transfer().version).folder
    assert (folder / name).read_bytes() == b'{"a": "\xc3\xbc"}'


def test_dataset_arrives_with_fingerprints_and_license(pair: WorkspacePair) -> None:
    version = pair.transfer().version
    [dataset] = pair.target.registry.sources.list_datasets()
    assert (dataset.fingerprint, dataset.split_fingerprint) == ("f", "s")
    assert (dataset.license, dataset.source, dataset.rows) == ("CC0-1.0", "made by hand", 12)
    assert (version.dataset, version.dataset_fingerprint) == ("toy/animals", "f")


def test_run_arrives_with_everything_but_its_number(pair: WorkspacePair) -> None:
    version = pair.transfer().version
    assert version.run == 1
    source, target = pair.source.registry.runs.get(2), pair.target.registry.runs.get(1)
    for field in (
        "recipe", "status", "base_digest", "dataset", "plugin", "seed", "settings", "environment",
        "specification", "report", "started", "finished",
    ):  # fmt: skip
        assert getattr(target, field) == getattr(source, field), field


def test_evaluations_arrive_also_those_made_after_the_publication(pair: WorkspacePair) -> None:
    version = pair.transfer().version
    evaluations = pair.target.registry.evaluations.list(version=version.ref)
    assert {one.split for one in evaluations} == {"test", "validation"}
    assert evaluations[0].results["scores"] == RESULTS["scores"]


def test_base_arrives(pair: WorkspacePair) -> None:
    pair.transfer()
    source, target = (one.registry.sources.list_bases()[0] for one in (pair.source, pair.target))
    assert (target.digest, target.name, target.parameters) == (
        source.digest,
        source.name,
        source.parameters,
    )


def test_provenance_records_the_transfer_and_the_new_run_number(pair: WorkspacePair) -> None:
    pair.target.registry.keys.create("me", ())
    version = pair.transfer(actor="key/1 grace").version
    provenance = read_provenance(pair.target.store.fetch(version))
    assert provenance.run is not None
    assert provenance.run.number == 1
    [move] = provenance.transfers
    assert (move.origin, move.run, move.by) == ("toy/animals", 2, "key/1 grace")


def test_second_transfer_is_added_to_the_first(pair: WorkspacePair, tmp_path: Path) -> None:
    pair.transfer("toy/second")
    (tmp_path / "third").mkdir()
    third = open(tmp_path / "third", no_plugins=True)
    pair.target.files.export_adapter("toy/second", tmp_path / "again.tar")
    done = third.files.import_archive(tmp_path / "again.tar")
    assert str(done.version.ref) == "toy/second@1"
    assert [move.origin for move in done.provenance.transfers] == ["toy/animals", "toy/second"]
    third.registry.close()


def test_another_name_can_be_given(pair: WorkspacePair) -> None:
    assert str(pair.transfer("shop/beasts").version.ref) == "shop/beasts@1"


def test_duplicate_gets_the_next_number_and_a_note(pair: WorkspacePair) -> None:
    pair.transfer()
    done = pair.transfer()
    assert done.version.number == 2
    assert any("already exists as toy/animals@1" in one for one in done.notes)


def test_runs_number_here_is_the_next(pair: WorkspacePair) -> None:
    assert [pair.transfer().version.run for _ in range(2)] == [1, 2]


def test_evaluations_are_noted_as_claims_of_the_archive(pair: WorkspacePair) -> None:
    assert any("claims of the archive" in one for one in pair.transfer().notes)


@pytest.mark.parametrize("results", [RESULTS, COMPLETE_RESULTS], ids=["partial", "complete"])
def test_scores_of_the_archive_do_not_pass_the_gate(
    pair: WorkspacePair, tmp_path: Path, results: dict[str, Any]
) -> None:
    def claim(folder: Path) -> None:
        data = json.loads((folder / "provenance.json").read_text())
        data["evaluations"] = [{"split": "test", "results": results, "created": NOON}]
        (folder / "provenance.json").write_text(json.dumps(data))

    pair.target.files.import_archive(rewritten(pair, claim, tmp_path))
    with pytest.raises(GateRefusedError) as refused:
        pair.target.promote("toy/animals")
    failed = [check.name for check in refused.value.checks if not check.passed]
    assert failed == (
        ["was evaluated here"] if results is COMPLETE_RESULTS else ["has been evaluated"]
    )


def test_imported_adapter_moves_on_without_a_run(
    pair: WorkspacePair, sound: Path, tiny: Path
) -> None:
    pair.source.files.import_adapter(sound, "toy/foreign", base=str(tiny))
    pair.source.files.export_adapter("toy/foreign", pair.archive)
    done = pair.target.files.import_archive(pair.archive)
    assert (done.version.run, done.version.dataset) == (None, None)
    assert done.provenance.imported is not None
    assert done.provenance.imported["folder"] == sound.name


def test_exporting_twice_gives_the_same_archive(pair: WorkspacePair, tmp_path: Path) -> None:
    for name in ("a.tar", "b.tar"):
        pair.source.files.export_adapter("toy/animals@1", tmp_path / name)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_export_and_import_leave_events(pair: WorkspacePair) -> None:
    version = pair.transfer(actor="key/1 grace").version
    out = pair.source.registry.events.list(subject="toy/animals")[0]
    came = {one.kind: one for one in pair.target.registry.events.list(subject="toy/animals")}
    assert (out.kind, out.detail["archive"]) == ("version.exported", "animals.tar")
    assert came["version.imported"].actor == "key/1 grace"
    assert came["version.imported"].detail["archive_sha256"] == out.detail["archive_sha256"]
    assert came["version.published"].detail["imported"]["from"] == "toy/animals"
    assert came["version.published"].detail["digest"] == version.digest == out.detail["digest"]


# ---------------------------------------------------------------------------------- refused imports


def refused(
    pair: WorkspacePair, kind: type[TrunklineError], name: str | None = None, **options: Any
) -> str:
    """A refused import leaves nothing behind."""
    pair.target.registry.adapters.list()
    before = contents(pair.target.workspace.root)
    with pytest.raises(kind) as caught:
        pair.target.files.import_archive(pair.archive, name, **options)
    assert contents(pair.target.workspace.root) == before
    return str(caught.value)


def test_expected_digest_is_checked(pair: WorkspacePair) -> None:
    digest = pair.source.resolve("toy/animals@1").digest
    assert pair.transfer(digest=digest).version.digest == digest
    assert "holds sha256:" in refused(pair, IntegrityError, digest="sha256:" + "0" * 64)


def test_malformed_digest_is_a_usage_error(pair: WorkspacePair) -> None:
    with pytest.raises(UsageError, match="not a digest"):
        pair.transfer(digest="5f0c")


def test_archive_of_another_base_is_refused_where_a_base_is_named(
    pair: WorkspacePair, tmp_path: Path
) -> None:
    from tiny_base import make_tiny_base

    pair.source.files.export_adapter("toy/animals@1", pair.archive)
    other = make_tiny_base(tmp_path / "other", seed=5)
    assert "was trained on tiny" in refused(pair, BaseMismatchError, base=str(other))


def test_archive_is_accepted_for_its_own_base(pair: WorkspacePair, tiny: Path) -> None:
    assert pair.transfer(base=str(tiny)).version.number == 1


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_changed_file_is_refused(pair: WorkspacePair, tmp_path: Path, name: str) -> None:
    def change(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[-3] ^= 1
        (folder / name).write_bytes(data)

    rewritten(pair, change, tmp_path)
    assert f"{pair.archive}/{name}" in refused(pair, IntegrityError)


def test_missing_file_is_refused(pair: WorkspacePair, tmp_path: Path) -> None:
    rewritten(pair, lambda folder: (folder / "trunkline.json").unlink(), tmp_path)
    assert "trunkline.json is missing" in refused(pair, IntegrityError)


def edit_provenance(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "provenance.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


FORGERIES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another base": lambda data: data["base"].update(digest="sha256:" + "0" * 64),
    "other rows": lambda data: data["dataset"].update(fingerprint="other"),
    "another task": lambda data: data["version"].update(task="generation"),
    "a climbing name": lambda data: data["version"].update(adapter="../x"),
    "a run of text": lambda data: data["run"].update(number="1"),
    "a run of zero": lambda data: data["run"].update(number=0),
    "a status of its own": lambda data: data["run"].update(status="blessed"),
    "a score of text": lambda data: data["evaluations"][0]["results"]["scores"].update(accuracy=1),
    "an unknown key": lambda data: data.update(sql="DROP TABLE runs"),
    "a later form": lambda data: data.update(format=99),
    "a time without zone": lambda data: data["run"].update(started="2026-01-01T00:00:00"),
    "a control character": lambda data: data["dataset"].update(source="\x1b[2J"),
    "no run": lambda data: data.pop("run"),
}


@pytest.mark.parametrize("what", FORGERIES)
def test_lineage_that_is_malformed_or_contradicts_the_manifest_is_refused(
    pair: WorkspacePair, tmp_path: Path, what: str
) -> None:
    rewritten(pair, lambda folder: edit_provenance(folder, FORGERIES[what]), tmp_path)
    refused(pair, IntegrityError)


def test_archive_without_lineage_needs_a_name(pair: WorkspacePair, tmp_path: Path) -> None:
    rewritten(pair, lambda folder: (folder / "provenance.json").unlink(), tmp_path)
    assert "does not name its adapter" in refused(pair, UsageError)
    version = pair.target.files.import_archive(pair.archive, "toy/unknown").version
    assert (version.run, version.dataset) == (None, "toy/animals")


def test_name_of_an_adapter_for_another_task_is_refused(
    pair: WorkspacePair, tiny: Path, tmp_path: Path
) -> None:
    make_artifact(tmp_path / "plurals", tiny, "generation", target_modules=["q_proj"])
    pair.target.files.import_adapter(tmp_path / "plurals", "toy/plurals", base=str(tiny))
    pair.source.files.export_adapter("toy/animals@1", pair.archive)
    assert "is for generation" in refused(pair, RefusedError, "toy/plurals")


def test_name_with_a_version_is_refused(pair: WorkspacePair) -> None:
    pair.source.files.export_adapter("toy/animals@1", pair.archive)
    assert "names a version" in refused(pair, UsageError, "toy/animals@3")


def test_missing_archive_is_an_error(pair: WorkspacePair) -> None:
    refused(pair, NotFoundError)


def test_forged_weights_that_are_not_finite_are_refused(
    pair: WorkspacePair, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    from workbench import reseal

    def change(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        tensors = load_file(path)
        next(iter(tensors.values())).fill_(float("nan"))
        save_file(tensors, path, metadata={"format": "pt"})
        reseal(folder)

    rewritten(pair, change, tmp_path)
    assert "NaN" in refused(pair, IntegrityError)


def test_full_store_leaves_no_version_run_or_file(
    pair: WorkspacePair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: LocalStorage, *args: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "add", full)
        with pytest.raises(RegistryError, match="No space left"):
            pair.transfer()
    registry = pair.target.registry
    assert (registry.adapters.list(), registry.runs.list(), registry.evaluations.list()) == (
        [],
        [],
        [],
    )
    assert not list((pair.target.workspace.root / "adapters").rglob("*.json"))
    assert pair.transfer().version.number == 2


def test_damaged_version_is_not_exported(pair: WorkspacePair) -> None:
    folder = Path(pair.source.store.location(pair.source.resolve("toy/animals").version))
    (folder / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(IntegrityError):
        pair.source.files.export_adapter("toy/animals", pair.archive)
    assert not pair.archive.exists()


# --------------------------------------------------------------------------------------- signatures


def test_signed_version_arrives_signed(pair: WorkspacePair, keys: Path) -> None:
    fingerprint = pair.source.files.sign_adapter("toy/animals", keys / "release.pem")
    require_signatures(pair.target, keys / "release.pub")
    done = pair.transfer()
    assert fingerprint == key_fingerprint(keys / "release.pub")
    assert pair.target.store.fetch(done.version, signed=True)


def test_unsigned_archive_is_refused_if_signatures_are_required(
    pair: WorkspacePair, keys: Path
) -> None:
    pair.source.files.export_adapter("toy/animals", pair.archive)
    require_signatures(pair.target, keys / "release.pub")
    assert "is not signed" in refused(pair, IntegrityError)


@pytest.mark.parametrize("required", [True, False])
def test_signature_of_an_untrusted_key_is_refused(
    pair: WorkspacePair, keys: Path, required: bool
) -> None:
    pair.source.files.sign_adapter("toy/animals", keys / "other.pem")
    pair.source.files.export_adapter("toy/animals", pair.archive)
    require_signatures(pair.target, keys / "release.pub", required=required)
    assert "is not trusted here" in refused(pair, IntegrityError)


def test_signature_by_an_unknown_key_is_noted(pair: WorkspacePair, keys: Path) -> None:
    pair.source.files.sign_adapter("toy/animals", keys / "other.pem")
    assert any("was not verified" in one for one in pair.transfer().notes)


def test_unsigned_version_is_not_fetched_if_signatures_are_required(
    pair: WorkspacePair, keys: Path
) -> None:
    require_signatures(pair.source, keys / "release.pub")
    version = pair.source.resolve("toy/animals").version
    with pytest.raises(IntegrityError, match="is not signed"):
        pair.source.store.fetch(version)


def test_unsigned_version_can_be_signed_if_signatures_are_required(
    pair: WorkspacePair, keys: Path
) -> None:
    require_signatures(pair.source, keys / "release.pub")
    pair.source.files.sign_adapter("toy/animals", keys / "release.pem")
    assert pair.source.store.fetch(pair.source.resolve("toy/animals").version)


def test_signing_leaves_an_event_with_the_key(pair: WorkspacePair, keys: Path) -> None:
    key = keys / "release.pem"
    fingerprint = pair.source.files.sign_adapter("toy/animals", key, actor="key/1 grace")
    event = pair.source.registry.events.list(subject="toy/animals")[0]
    assert (event.kind, event.actor) == ("version.signed", "key/1 grace")
    assert event.detail["signed_by"] == fingerprint


def test_signature_does_not_change_the_identity(pair: WorkspacePair, keys: Path) -> None:
    before = pair.source.resolve("toy/animals").digest
    pair.source.files.sign_adapter("toy/animals", keys / "release.pem")
    after = pair.source.resolve("toy/animals").version
    assert after.digest == before
    assert after.files is not None
    assert "model.sig" in after.files


def test_damaged_version_is_not_signed(pair: WorkspacePair, keys: Path) -> None:
    folder = Path(pair.source.store.location(pair.source.resolve("toy/animals").version))
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(IntegrityError):
        pair.source.files.sign_adapter("toy/animals", keys / "release.pem")
    assert not (folder / "model.sig").exists()


def test_version_in_an_object_store_is_signed_and_exported(
    pair: WorkspacePair, keys: Path, tmp_path: Path
) -> None:
    (pair.target.workspace.root / "trunkline.toml").write_text(
        '[store]\nurl = "memory://moving-test"\n'
    )
    version = pair.transfer().version
    pair.target.files.sign_adapter(str(version.ref), keys / "release.pem")
    assert pair.target.files.export_adapter(str(version.ref), tmp_path / "out.tar").signed_by


def test_archive_without_a_recorded_event_does_not_appear(
    pair: WorkspacePair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RegistryError("The registry is read-only.")

    monkeypatch.setattr(type(pair.source.registry.events), "append", fail)
    with pytest.raises(RegistryError, match="read-only"):
        pair.source.files.export_adapter("toy/animals@1", pair.archive)
    assert list(pair.archive.parent.glob("*.tar")) == []
    assert list(pair.archive.parent.glob(".*.part")) == []
