"""The same kills where versions lie in an object store, and where PostgreSQL is the registry."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from faults.cases import Forks, Scene, try_all
from faults.left import Left, visible_artifacts
from faults.postgresql import Postgres
from faults.steps import When
from object_stores import Place, s3_endpoint, s3_place
from trunkline.adapters.artifact import REQUIRED

__all__ = ["s3_endpoint"]

MODES: tuple[When, ...] = ("before", "after", "torn")


def some(count: int) -> Any:
    """A sample of so many faults for the quick suite, and all of them for the whole."""
    return pytest.mark.parametrize(
        "most",
        [
            pytest.param(count, id="some-steps"),
            pytest.param(None, marks=pytest.mark.slow, id="every-step"),
        ],
    )


# ------------------------------------------------------------------------------- object stores


class Bucket:
    """An S3 store that can be set back to what it held once."""

    def __init__(self, place: Place) -> None:
        self._system, self._root = place.open()
        self._kept: dict[str, bytes] = {}
        self._tags: dict[str, str] = {}

    def keep(self) -> None:
        """Remember what it holds now."""
        self._tags = self._tags_now()
        self._kept = {name: self._system.cat_file(name) for name in self._tags}

    def renew(self) -> None:
        """Set it back."""
        now = self._tags_now()
        for name in now.keys() - self._tags.keys():
            self._system.rm_file(name)
        for name, tag in self._tags.items():
            if now.get(name) != tag:
                self._system.pipe_file(name, self._kept[name])

    def below(self) -> list[str]:
        """The names of all its objects, relative to the store's root."""
        return sorted(name.removeprefix(f"{self._root}/") for name in self._tags_now())

    def _tags_now(self) -> dict[str, str]:
        """Name → what S3 tells objects apart by."""
        self._system.invalidate_cache()
        found = self._system.find(self._root, detail=True)
        return {name: entry["ETag"] for name, entry in found.items()}


@pytest.fixture(scope="module")
def bucket_and_scene(
    empty: Scene, heavy: Forks, imports: list[str], s3_endpoint: str
) -> tuple[Bucket, Scene]:
    """A workspace whose two versions of ``toy/animals`` lie in a bucket."""
    place = s3_place(s3_endpoint)
    bucket = Bucket(place)
    scene = replace(empty.reset(), forks=heavy)
    place.configure(scene.workspace)
    for done in scene.commands(imports, imports):
        assert done["status"] == 0, done["output"]
    bucket.keep()
    made = empty.made.with_name("in-a-bucket")
    shutil.copytree(scene.root, made)
    return bucket, replace(scene, made=made, renew=bucket.renew)


@dataclass
class LeftInBucket(Left):
    """The same as of a folder, and nothing in the bucket that no visible version has."""

    bucket: Bucket = field(kw_only=True)

    def artifacts(self) -> Iterator[str]:
        """Of the bucket: what is visible has all its objects."""
        there = self.bucket.below()
        for path, _ in visible_artifacts(self.scene):
            for name in REQUIRED:
                if f"{path}/{name}" not in there:
                    yield f"{path} is visible and has no {name} in the bucket"

    def look(self) -> Iterator[str]:
        yield from super().look()
        known = {path for path, _ in visible_artifacts(self.scene)}
        for name in self.bucket.below():
            if name.rpartition("/")[0] not in known:
                yield f"{name} is left in the bucket after gc"


@some(4)
def test_publish_to_an_object_store_killed_leaves_a_version_absent_or_complete(
    bucket_and_scene: tuple[Bucket, Scene],
    sound: Path,
    base_digest: str,
    imports: list[str],
    most: int | None,
) -> None:
    bucket, scene = bucket_and_scene
    settled = LeftInBucket(
        scene,
        again=imports,
        makes=1,
        litter=(".trunkline/*",),
        allowed=("workspace/.trunkline*",),
        bucket=bucket,
    )
    arguments = {"source": str(sound), "ref": "toy/animals", "base_digest": base_digest}
    try_all(scene, "publish", settled, modes=MODES, most=most, **arguments)


# ---------------------------------------------------------------------------------- PostgreSQL


@pytest.fixture(scope="module")
def on_postgresql(empty: Scene, heavy: Forks, imports: list[str], postgres: Postgres) -> Scene:
    """A workspace with two versions of ``toy/animals``."""
    postgres.template("stocked", lambda url: None)
    settings = {"TRUNKLINE_REGISTRY": postgres.url("stocked")}
    scene = replace(empty, forks=heavy, settings=settings)
    for done in scene.reset().commands(imports, imports):
        assert done["status"] == 0, done["output"]
    folder = empty.made.with_name("on-postgresql")
    shutil.copytree(scene.root, folder)
    return replace(
        scene,
        made=folder,
        settings={"TRUNKLINE_REGISTRY": postgres.url("case")},
        renew=lambda: postgres.renew("case", "stocked"),
    )


@some(3)
def test_publish_under_postgresql_killed_leaves_a_version_absent_or_complete(
    on_postgresql: Scene, sound: Path, base_digest: str, imports: list[str], most: int | None
) -> None:
    settled = Left(on_postgresql, again=imports, makes=1)
    arguments = {"source": str(sound), "ref": "toy/animals", "base_digest": base_digest}
    try_all(on_postgresql, "publish", settled, modes=MODES, most=most, **arguments)


@pytest.mark.slow
def test_rm_under_postgresql_killed_leaves_a_version_whole_or_removed(
    on_postgresql: Scene,
) -> None:
    words = ["adapters", "rm", "toy/animals@1", "--reason", "a test"]
    settled = Left(on_postgresql, again=words, takes=("toy/animals@1",))
    try_all(on_postgresql, "command", settled, modes=MODES, words=words)
