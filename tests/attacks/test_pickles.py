"""Pickles with a payload: refused unopened everywhere, so the payload never runs."""

from __future__ import annotations

import ast
import os
import pickle
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trunkline.adapters.archive import unpack
from trunkline.adapters.artifact import read_artifact
from trunkline.adapters.peft_import import ImportOptions, import_adapter
from trunkline.adapters.store import AdapterStore
from trunkline.api import open
from trunkline.bases import describe
from trunkline.errors import IntegrityError, TrunklineError
from trunkline.refs import Ref
from trunkline.registry.records import VersionRecord

PICKLES = (
    "adapter_model.bin",
    "adapter_model.pt",
    "pytorch_model.bin",
    "training_args.bin",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "model.ckpt",
    "data.pkl",
    "extra.pickle",
    "weights.npy",
    "weights.npz",
    "model.joblib",
)
FORMS = ("plain", "protocol 0", "torch zip")


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A path that the payload creates if it runs."""
    return tmp_path / "payload-ran"


class Payload:
    """Creates a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def write_pickle(path: Path, marker: Path, form: str = "plain") -> None:
    data = pickle.dumps(Payload(marker), protocol=0 if form == "protocol 0" else None)
    if form != "torch zip":
        path.write_bytes(data)
        return
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("archive/data.pkl", data)
        made.writestr("archive/version", "3\n")


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """Paths that were opened, from the interpreter's audit events."""
    paths: list[str] = []
    active = True

    def record(event: str, args: tuple[Any, ...]) -> None:
        if active and event == "open" and isinstance(args[0], str | bytes):
            paths.append(os.fsdecode(args[0]))

    sys.addaudithook(record)
    yield paths
    active = False


def test_payload_runs_when_it_is_unpickled(marker: Path, tmp_path: Path) -> None:
    """The other tests check for this marker."""
    write_pickle(tmp_path / "x.bin", marker)
    with (tmp_path / "x.bin").open("rb") as file:
        pickle.load(file)
    assert marker.exists()


@pytest.mark.parametrize("name", PICKLES)
def test_pickle_beside_a_sound_artifact_is_refused_unopened(
    artifact: Path, marker: Path, opened: list[str], name: str
) -> None:
    write_pickle(artifact / name, marker)
    opened.clear()
    with pytest.raises(IntegrityError, match="nothing was opened"):
        read_artifact(artifact)
    assert not [path for path in opened if path.startswith(str(artifact))]
    assert not marker.exists()


@pytest.mark.parametrize("form", FORMS)
def test_pickle_instead_of_the_weights_is_refused(artifact: Path, marker: Path, form: str) -> None:
    write_pickle(artifact / "adapter_model.safetensors", marker, form)
    with pytest.raises(IntegrityError):
        read_artifact(artifact)
    assert not marker.exists()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["provenance.json", "README.md", "croissant.json", "model.sig"])
def test_pickle_under_the_name_of_a_text_is_never_unpickled(
    artifact: Path, marker: Path, name: str, form: str, store: AdapterStore,
    publish: Callable[[Path, str], VersionRecord], tmp_path: Path,
) -> None:  # fmt: skip
    """These files are outside the digest: the version is served and the file is read as text."""
    from trunkline.adapters.archive import export_version

    write_pickle(artifact / name, marker, form)
    version = publish(artifact, "toy/animals")
    store.fetch(version)
    try:
        export_version(store, version, tmp_path / "out.tar")
    except IntegrityError:
        assert name == "model.sig"
    assert not marker.exists()


def test_pickle_added_to_a_published_version_is_refused(
    artifact: Path,
    marker: Path,
    store: AdapterStore,
    publish: Callable[[Path, str], VersionRecord],
) -> None:
    version = publish(artifact, "toy/animals")
    write_pickle(Path(store.location(version)) / "training_args.bin", marker)
    with pytest.raises(IntegrityError, match="may not hold"):
        store.fetch(version)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt", "model.ckpt"])
@pytest.mark.parametrize("form", FORMS)
def test_folder_whose_weights_are_a_pickle_is_not_imported(
    artifact: Path, marker: Path, opened: list[str], store: AdapterStore, tiny: Path,
    name: str, form: str,
) -> None:  # fmt: skip
    (artifact / "adapter_model.safetensors").unlink()
    write_pickle(artifact / name, marker, form)
    opened.clear()
    info = describe(str(tiny))
    with pytest.raises(IntegrityError, match="can run code"):
        import_adapter(store, store.registry, info, artifact, Ref("toy", "x"), ImportOptions())
    assert str(artifact / name) not in opened
    assert not marker.exists()


def test_import_neither_opens_nor_copies_pickles(
    artifact: Path, marker: Path, opened: list[str], store: AdapterStore, tiny: Path
) -> None:
    for name in PICKLES:
        write_pickle(artifact / name, marker)
    opened.clear()
    info = describe(str(tiny))
    imported = import_adapter(
        store, store.registry, info, artifact, Ref("toy", "x"), ImportOptions()
    )
    assert not [path for path in opened if Path(path).name in PICKLES]
    assert not set(PICKLES) & {path.name for path in store.fetch(imported.version).folder.iterdir()}
    assert not marker.exists()


@pytest.mark.parametrize("name", ["adapter_model.bin", "training_args.bin"])
def test_archive_with_a_pickle_is_refused_before_it_is_unpacked(
    artifact: Path, marker: Path, tmp_path: Path, name: str
) -> None:
    import tarfile

    write_pickle(artifact / name, marker)
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.USTAR_FORMAT) as made:
        for path in sorted(artifact.iterdir()):
            made.add(path, path.name)
    (tmp_path / "unpacked").mkdir()
    with pytest.raises(IntegrityError, match="may not hold"):
        unpack(tmp_path / "a.tar", tmp_path / "unpacked")
    assert list((tmp_path / "unpacked").iterdir()) == []


def test_hub_repository_of_pickles_is_not_imported(
    artifact: Path, marker: Path, tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program may have fetched pickles into the hub library's cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "hub" / "models--acme--evil"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    (artifact / "adapter_model.safetensors").unlink()
    write_pickle(artifact / "adapter_model.bin", marker)
    shutil.copytree(artifact, repo / "snapshots" / commit)
    (tmp_path / "workspace").mkdir(exist_ok=True)
    platform = open(tmp_path / "workspace", base=str(tiny), no_plugins=True)
    with pytest.raises(TrunklineError):
        platform.files.import_adapter("hf:acme/evil", "toy/x")
    platform.registry.close()
    assert not marker.exists()


@pytest.mark.parametrize("form", FORMS)
def test_base_whose_weights_are_a_pickle_is_refused(
    tiny: Path, tmp_path: Path, marker: Path, form: str
) -> None:
    base = Path(shutil.copytree(tiny, tmp_path / "base"))
    (base / "model.safetensors").unlink()
    write_pickle(base / "pytorch_model.bin", marker, form)
    with pytest.raises(TrunklineError):
        describe(str(base))
    assert not marker.exists()


def test_platform_never_unpickles() -> None:
    """The platform imports no pickle reader, and calls torch.load only with weights_only."""
    import trunkline

    for path in Path(trunkline.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            assert not {"pickle", "joblib", "dill", "cloudpickle"} & set(names), path
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                keywords = {one.arg: ast.unparse(one.value) for one in node.keywords}
                assert keywords.get("weights_only") == "True", path
