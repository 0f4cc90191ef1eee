"""A changed base: every adapter is refused because of the digest, with a hint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hostile import record_base
from tiny_base import make_tiny_base
from trunkline.adapters.artifact import read_artifact
from trunkline.api import Platform, open
from trunkline.bases import describe, release
from trunkline.errors import BaseMismatchError, IntegrityError
from trunkline.refs import Ref

TEXTS = ["a text"]


@pytest.fixture
def base(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny base that a test may change."""
    return Path(shutil.copytree(tiny, tmp_path / "tiny"))


@pytest.fixture
def workspace(tmp_path: Path, artifacts: dict[str, Path]) -> Path:
    """``toy/animals``, trained, and ``toy/others``, imported, both on the base as it was."""
    folder = tmp_path / "workspace"
    folder.mkdir()
    platform = open(folder, no_plugins=True)
    registry = platform.registry
    for name, made in (("animals", "sound"), ("others", "other")):
        digest = read_artifact(artifacts[made]).manifest.base["digest"]
        record_base(registry, digest)
        rows = registry.sources.record_dataset(
            name="toy/animals", fingerprint="f", split_fingerprint="s", rows=1, license="none",
            source="made", counts={},
        )  # fmt: skip
        run = None
        if name == "animals":
            run = registry.runs.start(
                recipe="toy/animals", base_digest=digest, dataset_id=rows, seed=1, settings={},
                environment={},
            )  # fmt: skip
        platform.store.publish(
            artifacts[made], Ref("toy", name), task="classification", run=run, base_digest=digest
        )
    platform.registry.close()
    return folder


def on(base: Path, workspace: Path) -> Iterator[Platform]:
    """A platform on a base, after releasing the one that this process holds."""
    release()
    platform = open(workspace, base=str(base), no_plugins=True)
    yield platform
    platform.registry.close()
    release()


def change_weight(base: Path) -> None:
    """Flip the last bit of one number."""
    data = bytearray((base / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (base / "model.safetensors").write_bytes(data)


def change_template(base: Path) -> None:
    for path in base.iterdir():
        if path.name == "chat_template.jinja":
            path.write_text(path.read_text() + "{# changed #}")
        elif path.name == "tokenizer_config.json":
            config = json.loads(path.read_text())
            if "chat_template" in config:
                config["chat_template"] += "{# changed #}"
                path.write_text(json.dumps(config))


def change_tokenizer(base: Path) -> None:
    tokenizer: dict[str, Any] = json.loads((base / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[10:12]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (base / "tokenizer.json").write_text(json.dumps(tokenizer))


def change_seed(base: Path) -> None:
    shutil.rmtree(base)
    make_tiny_base(base, seed=1)


CHANGES = {
    "one bit of one weight": change_weight,
    "the chat template": change_template,
    "two tokens of the tokenizer": change_tokenizer,
    "all weights, same shapes": change_seed,
}


@pytest.mark.parametrize("what", CHANGES)
def test_digest_of_a_changed_base_differs(base: Path, tiny: Path, what: str) -> None:
    CHANGES[what](base)
    assert describe(str(base)).digest != describe(str(tiny)).digest


@pytest.mark.parametrize("what", CHANGES)
def test_every_adapter_is_refused_on_a_changed_base(base: Path, workspace: Path, what: str) -> None:
    CHANGES[what](base)
    for platform in on(base, workspace):
        digest = describe(str(base)).digest
        for name in ("toy/animals", "toy/others"):
            with pytest.raises(BaseMismatchError) as caught:
                platform.predict(name, TEXTS)
            assert digest[:12] in caught.value.message


def test_hint_gives_the_command_that_retrains(base: Path, workspace: Path) -> None:
    change_weight(base)
    for platform in on(base, workspace):
        with pytest.raises(BaseMismatchError) as caught:
            platform.predict("toy/animals", TEXTS)
        assert f"`trunkline --base {base} train toy/animals`" in str(caught.value.hint)


def test_hint_for_an_imported_adapter_is_another_import(base: Path, workspace: Path) -> None:
    change_weight(base)
    for platform in on(base, workspace):
        with pytest.raises(BaseMismatchError) as caught:
            platform.predict("toy/others", TEXTS)
        assert "import one" in str(caught.value.hint)


def test_changed_base_itself_still_answers(base: Path, workspace: Path) -> None:
    change_weight(base)
    for platform in on(base, workspace):
        with pytest.raises(BaseMismatchError):
            platform.predict("toy/animals", TEXTS)
        assert platform.generate([(None, "a text")], max_new_tokens=2)


def test_adapter_is_served_again_on_its_own_base(base: Path, workspace: Path, tiny: Path) -> None:
    for platform in on(tiny, workspace):
        assert platform.predict("toy/animals", TEXTS)


def test_archive_for_another_base_is_refused_if_the_base_is_given(
    base: Path, workspace: Path, tmp_path: Path
) -> None:
    change_weight(base)
    platform = open(workspace, no_plugins=True)
    platform.files.export_adapter("toy/animals", tmp_path / "a.tar")
    with pytest.raises(BaseMismatchError, match="trained on tiny"):
        platform.files.import_archive(tmp_path / "a.tar", "toy/moved", base=str(base))
    assert [str(one.ref) for one in platform.registry.adapters.list()] == [
        "toy/animals",
        "toy/others",
    ]
    platform.registry.close()


def test_forged_base_digest_changes_the_version_digest(
    base: Path, workspace: Path, artifact: Path
) -> None:
    """The digest of the base is part of the manifest."""
    change_weight(base)
    platform = open(workspace, no_plugins=True)
    place = Path(platform.store.location(platform.resolve("toy/animals").version))
    manifest = json.loads((place / "trunkline.json").read_text())
    manifest["base"]["digest"] = describe(str(base)).digest
    (place / "trunkline.json").write_text(json.dumps(manifest))
    with pytest.raises(IntegrityError, match="is not the version's"):
        platform.store.fetch(platform.resolve("toy/animals").version)
    platform.registry.close()
