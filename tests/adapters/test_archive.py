"""Versions on their way from one workspace to another: what arrives, and what does not."""

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
WHOLE = {
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
    """A workspace in which run 2 made ``toy/animals@1``, evaluated twice; to copy."""
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
class Places:
    """Two workspaces and the archive between them."""

    there: Platform
    here: Platform
    archive: Path

    def move(self, name: str | None = None, **asked: Any) -> ImportResult:
        self.there.export_adapter("toy/animals@1", self.archive, overwrite=True)
        return self.here.import_archive(self.archive, name, **asked)


@pytest.fixture
def places(trained: Path, tmp_path: Path) -> Iterator[Places]:
    there = open(shutil.copytree(trained, tmp_path / "there"), no_plugins=True)
    (tmp_path / "here").mkdir()
    here = open(tmp_path / "here", no_plugins=True)
    yield Places(there, here, tmp_path / "animals.tar")
    there.registry.close()
    here.registry.close()


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("moving-keys")
    make_key(folder, "release")
    make_key(folder, "other")
    return folder


def demand(platform: Platform, *keys: Path, required: bool = True) -> None:
    """Let a workspace ask for signatures of these keys."""
    lines = ["[signatures]", f"required = {json.dumps(required)}"]
    lines.append(f"keys = {json.dumps([str(key) for key in keys])}")
    (platform.workspace.root / "trunkline.toml").write_text("\n".join(lines))


def rewritten(places: Places, change: Callable[[Path], Any], tmp_path: Path) -> Path:
    """The archive with something in it changed, digests and all else as they were."""
    places.there.export_adapter("toy/animals@1", places.archive, overwrite=True)
    folder = tmp_path / "rewritten"
    folder.mkdir()
    unpack(places.archive, folder)
    change(folder)
    pack(folder, places.archive, overwrite=True)
    return places.archive


# ------------------------------------------------------------------------------------ what arrives


def test_version_arrives_under_its_name_with_its_digest(places: Places, sound: Path) -> None:
    version = places.move().version
    assert (str(version.ref), version.digest) == ("toy/animals@1", read_artifact(sound).digest)


def test_files_arrive_byte_for_byte(places: Places, sound: Path) -> None:
    version = places.move().version
    folder = places.here.store.fetch(version).folder
    for path in sound.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", ["README.md", "croissant.json"])
def test_card_and_croissant_arrive_as_they_were(places: Places, name: str) -> None:
    version = places.there.resolve("toy/animals@1").version
    places.there.store.write_file(version, name, b'{"a": "\xc3\xbc"}')
    folder = places.here.store.fetch(places.move().version).folder
    assert (folder / name).read_bytes() == b'{"a": "\xc3\xbc"}'


def test_dataset_arrives_with_fingerprints_and_license(places: Places) -> None:
    version = places.move().version
    [dataset] = places.here.registry.sources.list_datasets()
    assert (dataset.fingerprint, dataset.split_fingerprint) == ("f", "s")
    assert (dataset.license, dataset.source, dataset.rows) == ("CC0-1.0", "made by hand", 12)
    assert (version.dataset, version.dataset_fingerprint) == ("toy/animals", "f")


def test_run_arrives_with_everything_but_its_number(places: Places) -> None:
    version = places.move().version
    assert version.run == 1
    there, here = places.there.registry.runs.get(2), places.here.registry.runs.get(1)
    for field in (
        "recipe", "status", "base_digest", "dataset", "plugin", "seed", "settings", "environment",
        "specification", "report", "started", "finished",
    ):  # fmt: skip
        assert getattr(here, field) == getattr(there, field), field


def test_evaluations_arrive_also_those_made_after_the_publication(places: Places) -> None:
    version = places.move().version
    found = places.here.registry.evaluations.list(version=version.ref)
    assert {one.split for one in found} == {"test", "validation"}
    assert found[0].results["scores"] == RESULTS["scores"]


def test_base_arrives(places: Places) -> None:
    places.move()
    there, here = (one.registry.sources.list_bases()[0] for one in (places.there, places.here))
    assert (here.digest, here.name, here.parameters) == (there.digest, there.name, there.parameters)


def test_provenance_tells_the_way_and_the_runs_number_here(places: Places) -> None:
    places.here.registry.keys.create("me", ())
    version = places.move(actor="key/1 grace").version
    provenance = read_provenance(places.here.store.fetch(version))
    assert provenance.run is not None
    assert provenance.run.number == 1
    [move] = provenance.transfers
    assert (move.origin, move.run, move.by) == ("toy/animals", 2, "key/1 grace")


def test_second_move_adds_to_the_first(places: Places, tmp_path: Path) -> None:
    places.move("toy/second")
    (tmp_path / "third").mkdir()
    third = open(tmp_path / "third", no_plugins=True)
    places.here.export_adapter("toy/second", tmp_path / "again.tar")
    done = third.import_archive(tmp_path / "again.tar")
    assert str(done.version.ref) == "toy/second@1"
    assert [move.origin for move in done.provenance.transfers] == ["toy/animals", "toy/second"]
    third.registry.close()


def test_another_name_is_taken(places: Places) -> None:
    assert str(places.move("shop/beasts").version.ref) == "shop/beasts@1"


def test_next_number_is_taken_and_the_twin_is_told(places: Places) -> None:
    places.move()
    done = places.move()
    assert done.version.number == 2
    assert any("already exists as toy/animals@1" in one for one in done.notes)


def test_runs_number_here_is_the_next(places: Places) -> None:
    assert [places.move().version.run for _ in range(2)] == [1, 2]


def test_evaluations_are_said_to_be_the_archives_word(places: Places) -> None:
    assert any("claims of the archive" in one for one in places.move().notes)


@pytest.mark.parametrize("results", [RESULTS, WHOLE], ids=["partial", "whole"])
def test_figures_of_the_archive_let_nothing_go_live(
    places: Places, tmp_path: Path, results: dict[str, Any]
) -> None:
    def claim(folder: Path) -> None:
        said = json.loads((folder / "provenance.json").read_text())
        said["evaluations"] = [{"split": "test", "results": results, "created": NOON}]
        (folder / "provenance.json").write_text(json.dumps(said))

    places.here.import_archive(rewritten(places, claim, tmp_path))
    with pytest.raises(GateRefusedError) as refused:
        places.here.promote("toy/animals")
    failed = [check.name for check in refused.value.checks if not check.passed]
    assert failed == (["was evaluated here"] if results is WHOLE else ["has been evaluated"])


def test_imported_adapter_moves_on_without_a_run(places: Places, sound: Path, tiny: Path) -> None:
    places.there.import_adapter(sound, "toy/foreign", base=str(tiny))
    places.there.export_adapter("toy/foreign", places.archive)
    done = places.here.import_archive(places.archive)
    assert (done.version.run, done.version.dataset) == (None, None)
    assert done.provenance.imported is not None
    assert done.provenance.imported["folder"] == sound.name


def test_exporting_twice_gives_the_same_archive(places: Places, tmp_path: Path) -> None:
    for name in ("a.tar", "b.tar"):
        places.there.export_adapter("toy/animals@1", tmp_path / name)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_export_and_import_leave_events(places: Places) -> None:
    version = places.move(actor="key/1 grace").version
    out = places.there.registry.events.list(subject="toy/animals")[0]
    came = {one.kind: one for one in places.here.registry.events.list(subject="toy/animals")}
    assert (out.kind, out.detail["archive"]) == ("version.exported", "animals.tar")
    assert came["version.imported"].actor == "key/1 grace"
    assert came["version.imported"].detail["archive_sha256"] == out.detail["archive_sha256"]
    assert came["version.published"].detail["imported"]["from"] == "toy/animals"
    assert came["version.published"].detail["digest"] == version.digest == out.detail["digest"]


# -------------------------------------------------------------------------------- what does not


def refused(
    places: Places, kind: type[TrunklineError], name: str | None = None, **asked: Any
) -> str:
    """A refused import leaves nothing behind."""
    places.here.registry.adapters.list()
    before = contents(places.here.workspace.root)
    with pytest.raises(kind) as caught:
        places.here.import_archive(places.archive, name, **asked)
    assert contents(places.here.workspace.root) == before
    return str(caught.value)


def test_digest_that_was_told_is_held_against_it(places: Places) -> None:
    digest = places.there.resolve("toy/animals@1").digest
    assert places.move(digest=digest).version.digest == digest
    assert "holds sha256:" in refused(places, IntegrityError, digest="sha256:" + "0" * 64)


def test_word_that_is_no_digest_is_wrong_use(places: Places) -> None:
    with pytest.raises(UsageError, match="not a digest"):
        places.move(digest="5f0c")


def test_archive_of_another_base_is_refused_where_a_base_is_named(
    places: Places, tmp_path: Path
) -> None:
    from tiny_base import make_tiny_base

    places.there.export_adapter("toy/animals@1", places.archive)
    other = make_tiny_base(tmp_path / "other", seed=5)
    assert "was trained on tiny" in refused(places, BaseMismatchError, base=str(other))


def test_archive_is_taken_for_its_own_base(places: Places, tiny: Path) -> None:
    assert places.move(base=str(tiny)).version.number == 1


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_changed_file_is_refused(places: Places, tmp_path: Path, name: str) -> None:
    def change(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[-3] ^= 1
        (folder / name).write_bytes(data)

    rewritten(places, change, tmp_path)
    assert f"{places.archive}/{name}" in refused(places, IntegrityError)


def test_missing_file_is_refused(places: Places, tmp_path: Path) -> None:
    rewritten(places, lambda folder: (folder / "trunkline.json").unlink(), tmp_path)
    assert "trunkline.json is missing" in refused(places, IntegrityError)


def said(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "provenance.json"
    told = json.loads(path.read_text())
    change(told)
    path.write_text(json.dumps(told))


LIES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another base": lambda told: told["base"].update(digest="sha256:" + "0" * 64),
    "other rows": lambda told: told["dataset"].update(fingerprint="other"),
    "another task": lambda told: told["version"].update(task="generation"),
    "a climbing name": lambda told: told["version"].update(adapter="../x"),
    "a run of text": lambda told: told["run"].update(number="1"),
    "a run of zero": lambda told: told["run"].update(number=0),
    "a status of its own": lambda told: told["run"].update(status="blessed"),
    "a score of text": lambda told: told["evaluations"][0]["results"]["scores"].update(accuracy=1),
    "an unknown key": lambda told: told.update(sql="DROP TABLE runs"),
    "a later form": lambda told: told.update(format=99),
    "a time without zone": lambda told: told["run"].update(started="2026-01-01T00:00:00"),
    "a control character": lambda told: told["dataset"].update(source="\x1b[2J"),
    "no run": lambda told: told.pop("run"),
}


@pytest.mark.parametrize("what", LIES)
def test_lineage_that_is_malformed_or_contradicts_the_manifest_is_refused(
    places: Places, tmp_path: Path, what: str
) -> None:
    rewritten(places, lambda folder: said(folder, LIES[what]), tmp_path)
    refused(places, IntegrityError)


def test_archive_without_lineage_needs_a_name(places: Places, tmp_path: Path) -> None:
    rewritten(places, lambda folder: (folder / "provenance.json").unlink(), tmp_path)
    assert "does not name its adapter" in refused(places, UsageError)
    version = places.here.import_archive(places.archive, "toy/unknown").version
    assert (version.run, version.dataset) == (None, "toy/animals")


def test_name_of_an_adapter_for_another_task_is_refused(
    places: Places, tiny: Path, tmp_path: Path
) -> None:
    make_artifact(tmp_path / "plurals", tiny, "generation", target_modules=["q_proj"])
    places.here.import_adapter(tmp_path / "plurals", "toy/plurals", base=str(tiny))
    places.there.export_adapter("toy/animals@1", places.archive)
    assert "is for generation" in refused(places, RefusedError, "toy/plurals")


def test_version_is_no_name(places: Places) -> None:
    places.there.export_adapter("toy/animals@1", places.archive)
    assert "names a version" in refused(places, UsageError, "toy/animals@3")


def test_missing_archive_is_told(places: Places) -> None:
    refused(places, NotFoundError)


def test_forged_weights_that_are_not_finite_are_refused(places: Places, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from workbench import reseal

    def change(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        tensors = load_file(path)
        next(iter(tensors.values())).fill_(float("nan"))
        save_file(tensors, path, metadata={"format": "pt"})
        reseal(folder)

    rewritten(places, change, tmp_path)
    assert "NaN" in refused(places, IntegrityError)


def test_full_store_leaves_no_version_run_or_file(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: LocalStorage, *words: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "add", full)
        with pytest.raises(RegistryError, match="No space left"):
            places.move()
    registry = places.here.registry
    assert (registry.adapters.list(), registry.runs.list(), registry.evaluations.list()) == (
        [],
        [],
        [],
    )
    assert not list((places.here.workspace.root / "adapters").rglob("*.json"))
    assert places.move().version.number == 2


def test_damaged_version_is_not_exported(places: Places) -> None:
    folder = Path(places.there.store.location(places.there.resolve("toy/animals").version))
    (folder / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(IntegrityError):
        places.there.export_adapter("toy/animals", places.archive)
    assert not places.archive.exists()


# -------------------------------------------------------------------------------------- signatures


def test_signed_version_arrives_signed(places: Places, keys: Path) -> None:
    fingerprint = places.there.sign_adapter("toy/animals", keys / "release.pem")
    demand(places.here, keys / "release.pub")
    done = places.move()
    assert fingerprint == key_fingerprint(keys / "release.pub")
    assert places.here.store.fetch(done.version, signed=True)


def test_unsigned_archive_is_refused_where_signatures_are_demanded(
    places: Places, keys: Path
) -> None:
    places.there.export_adapter("toy/animals", places.archive)
    demand(places.here, keys / "release.pub")
    assert "is not signed" in refused(places, IntegrityError)


@pytest.mark.parametrize("required", [True, False])
def test_signature_of_a_key_that_does_not_count_is_refused(
    places: Places, keys: Path, required: bool
) -> None:
    places.there.sign_adapter("toy/animals", keys / "other.pem")
    places.there.export_adapter("toy/animals", places.archive)
    demand(places.here, keys / "release.pub", required=required)
    assert "is not trusted here" in refused(places, IntegrityError)


def test_signature_that_nobody_can_verify_is_told(places: Places, keys: Path) -> None:
    places.there.sign_adapter("toy/animals", keys / "other.pem")
    assert any("was not verified" in one for one in places.move().notes)


def test_unsigned_version_is_not_served_where_signatures_are_demanded(
    places: Places, keys: Path
) -> None:
    demand(places.there, keys / "release.pub")
    version = places.there.resolve("toy/animals").version
    with pytest.raises(IntegrityError, match="is not signed"):
        places.there.store.fetch(version)


def test_unsigned_version_can_be_signed_where_signatures_are_demanded(
    places: Places, keys: Path
) -> None:
    demand(places.there, keys / "release.pub")
    places.there.sign_adapter("toy/animals", keys / "release.pem")
    assert places.there.store.fetch(places.there.resolve("toy/animals").version)


def test_signing_leaves_an_event_with_the_key(places: Places, keys: Path) -> None:
    fingerprint = places.there.sign_adapter(
        "toy/animals", keys / "release.pem", actor="key/1 grace"
    )
    event = places.there.registry.events.list(subject="toy/animals")[0]
    assert (event.kind, event.actor) == ("version.signed", "key/1 grace")
    assert event.detail["signed_by"] == fingerprint


def test_signature_does_not_change_the_identity(places: Places, keys: Path) -> None:
    before = places.there.resolve("toy/animals").digest
    places.there.sign_adapter("toy/animals", keys / "release.pem")
    after = places.there.resolve("toy/animals").version
    assert after.digest == before
    assert after.files is not None
    assert "model.sig" in after.files


def test_damaged_version_is_not_signed(places: Places, keys: Path) -> None:
    folder = Path(places.there.store.location(places.there.resolve("toy/animals").version))
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(IntegrityError):
        places.there.sign_adapter("toy/animals", keys / "release.pem")
    assert not (folder / "model.sig").exists()


def test_version_in_an_object_store_is_signed_and_moved(
    places: Places, keys: Path, tmp_path: Path
) -> None:
    (places.here.workspace.root / "trunkline.toml").write_text(
        '[store]\nurl = "memory://moving-test"\n'
    )
    version = places.move().version
    places.here.sign_adapter(str(version.ref), keys / "release.pem")
    assert places.here.export_adapter(str(version.ref), tmp_path / "out.tar").signed_by


def test_archive_that_can_not_be_recorded_does_not_appear(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RegistryError("The registry is read-only.")

    monkeypatch.setattr(type(places.there.registry.events), "append", fail)
    with pytest.raises(RegistryError, match="read-only"):
        places.there.export_adapter("toy/animals@1", places.archive)
    assert list(places.archive.parent.glob("*.tar")) == []
    assert list(places.archive.parent.glob(".*.part")) == []
