"""The same kills with versions in an object store, and with a PostgreSQL registry."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from faults.cases import Forks, Scene, try_faults
from faults.postgresql import Postgres
from faults.recovery import RecoveryCheck, visible_artifacts
from faults.steps import When
from object_stores import Place, s3_endpoint, s3_place
from trunkline.adapters.artifact import REQUIRED

pytestmark = pytest.mark.merge

__all__ = ["s3_endpoint"]

MODES: tuple[When, ...] = ("before", "after", "torn")


def some(count: int) -> Any:
    """Run with a sample of faults, and in the slow tier with all of them."""
    return pytest.mark.parametrize(
        "most",
        [
            pytest.param(count, id="some-steps"),
            pytest.param(None, marks=pytest.mark.slow, id="every-step"),
        ],
    )


# ------------------------------------------------------------------------------- object stores


class Bucket:
    """An S3 store that can be reset to an earlier state."""

    def __init__(self, place: Place) -> None:
        self._system, self._root = place.open()
        self._kept: dict[str, bytes] = {}
        self._tags: dict[str, str] = {}

    def keep(self) -> None:
        """Remember the current state."""
        self._tags = self._tags_now()
        self._kept = {name: self._system.cat_file(name) for name in self._tags}

    def renew(self) -> None:
        """Reset to the remembered state."""
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
        """Name → ETag."""
        self._system.invalidate_cache()
        entries = self._system.find(self._root, detail=True)
        return {name: entry["ETag"] for name, entry in entries.items()}


@pytest.fixture(scope="module")
def bucket_and_scene(
    empty: Scene, heavy: Forks, imports: list[str], s3_endpoint: str
) -> tuple[Bucket, Scene]:
    """A workspace with two versions of ``toy/animals`` in a bucket."""
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
class RecoveryCheckInBucket(RecoveryCheck):
    """Checks like those of a folder, and that the bucket holds visible versions only."""

    bucket: Bucket = field(kw_only=True)

    def artifacts(self) -> Iterator[str]:
        """Report visible versions that lack objects in the bucket."""
        objects = self.bucket.below()
        for path, _ in visible_artifacts(self.scene):
            for name in REQUIRED:
                if f"{path}/{name}" not in objects:
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
    settled = RecoveryCheckInBucket(
        scene,
        again=imports,
        makes=1,
        litter=(".trunkline/*",),
        allowed=("workspace/.trunkline*",),
        bucket=bucket,
    )
    arguments = {"source": str(sound), "ref": "toy/animals", "base_digest": base_digest}
    try_faults(scene, "publish", settled, modes=MODES, most=most, **arguments)


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
    settled = RecoveryCheck(on_postgresql, again=imports, makes=1)
    arguments = {"source": str(sound), "ref": "toy/animals", "base_digest": base_digest}
    try_faults(on_postgresql, "publish", settled, modes=MODES, most=most, **arguments)


@pytest.mark.slow
def test_rm_under_postgresql_killed_leaves_a_version_complete_or_removed(
    on_postgresql: Scene,
) -> None:
    args = ["adapters", "rm", "toy/animals@1", "--reason", "a test"]
    settled = RecoveryCheck(on_postgresql, again=args, takes=("toy/animals@1",))
    try_faults(on_postgresql, "command", settled, modes=MODES, args=args)
