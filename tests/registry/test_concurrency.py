"""Eight processes at once on one registry."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from trunkline.registry.store import Registry

PROCESSES = 8

WAIT = """
import sys, time
from pathlib import Path
from trunkline.refs import Ref
from trunkline.registry.store import Registry
folder = Path(sys.argv[1])
me = sys.argv[2]
(folder / f"ready-{me}").touch()
while not (folder / "go").exists():
    time.sleep(0.005)
registry = Registry.open(f"sqlite:///{folder}/registry.db", busy_seconds=60)
"""

OPEN = "registry.record_plugin(distribution='p', version=me, api=1, domain='d')"

PUBLISH = """
digest = registry.bases()[0].digest
number = registry.reserve_version("medical", "icd10", task="classification")
registry.publish_version(
    "medical", "icd10", number, digest="sha256:" + "a" * 64, path=f"medical/icd10/{number}",
    bytes=1, base_digest=digest,
)
print(number)
"""

START = """
print(registry.start_run(
    recipe="medical/icd10", base_digest=registry.bases()[0].digest,
    dataset_id=registry.datasets()[0].id, seed=0, settings={}, environment={},
))
"""

MOVE = """
old, new = registry.set_alias(Ref.parse(f"medical/icd10@{int(me) + 1}"), "champion")
print(old, new)
"""


def together(folder: Path, script: str) -> list[str]:
    """Run the script in eight processes that begin at once; gives what each printed."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WAIT + script, str(folder), str(me)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for me in range(PROCESSES)
    ]
    deadline = time.monotonic() + 60
    while len(list(folder.glob("ready-*"))) < PROCESSES and time.monotonic() < deadline:
        time.sleep(0.02)
    (folder / "go").touch()
    results = [process.communicate(timeout=120) for process in processes]
    assert [error for _, error in results] == [""] * PROCESSES
    return [out.strip() for out, _ in results]


def test_a_new_registry_opened_by_all_at_once_is_made_once(tmp_path: Path) -> None:
    together(tmp_path, OPEN)
    with Registry.open(f"sqlite:///{tmp_path}/registry.db") as registry:
        new = registry.record_plugin(distribution="p", version="9", api=1, domain="d")
    assert new == PROCESSES + 1


@pytest.mark.usefixtures("dataset")
def test_versions_published_at_once_get_the_numbers_from_one_to_eight(
    tmp_path: Path, registry: Registry
) -> None:
    printed = together(tmp_path, PUBLISH)
    assert sorted(map(int, printed)) == list(range(1, PROCESSES + 1))
    assert registry.adapter("medical", "icd10").versions == PROCESSES


@pytest.mark.usefixtures("dataset")
def test_runs_started_at_once_get_the_numbers_from_one_to_eight(
    tmp_path: Path, registry: Registry
) -> None:
    printed = together(tmp_path, START)
    assert sorted(map(int, printed)) == list(range(1, PROCESSES + 1))


def test_an_alias_moved_by_all_at_once_moves_from_hand_to_hand(
    tmp_path: Path, registry: Registry, publish: object
) -> None:
    for _ in range(PROCESSES):
        publish()  # type: ignore[operator]
    moves = dict(line.split() for line in together(tmp_path, MOVE))
    seen = ["None"]
    while seen[-1] in moves:
        seen.append(moves[seen[-1]])
    assert len(seen) == PROCESSES + 1
