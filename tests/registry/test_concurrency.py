"""Eight processes at once on one registry, on each engine."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from forks import Child, together
from trunkline.registry.records import VersionRecord
from trunkline.registry.registry import Registry

pytestmark = pytest.mark.dialect
"""Locking differs between the engines."""

PROCESSES = 8

BEGIN = """
import sys
from trunkline.errors import RefusedError
from trunkline.refs import Ref
from trunkline.registry.registry import Registry
registry = Registry.open(sys.argv[1], busy_seconds=60)
me = int(sys.argv[2])
"""

OPEN = "registry.sources.record_plugin(distribution='p', version=str(me), api=1, domain='d')"

PUBLISH = """
digest = registry.sources.list_bases()[0].digest
number = registry.versions.reserve("medical", "icd10", task="classification")
registry.versions.publish(
    "medical", "icd10", number, digest="sha256:" + "a" * 64, path=f"medical/icd10/{number}",
    bytes=1, base_digest=digest,
)
print(number)
"""

START = """
print(registry.runs.start(
    recipe="medical/icd10", base_digest=registry.sources.list_bases()[0].digest,
    dataset_id=registry.sources.list_datasets()[0].id, seed=0, settings={}, environment={},
))
"""

COMPARE_AND_MOVE = """
try:
    ref = Ref.parse(f"medical/icd10@{me + 1}")
    registry.aliases.move(ref, "champion", expected=None, actor=f"person-{me}")
    print(f"won {me + 1}")
except RefusedError as error:
    print(error.message)
"""

MOVE = """
old, new = registry.aliases.set(Ref.parse(f"medical/icd10@{me + 1}"), "champion")
print(old, new)
"""


def eight(url: str, script: str) -> list[str]:
    """Run the script in eight processes that start together; return what each printed."""
    ended = together(BEGIN + script, [Child((url, str(me))) for me in range(PROCESSES)])
    assert [(one.code, one.error) for one in ended] == [(0, "")] * PROCESSES
    return [one.out for one in ended]


def test_concurrent_first_opens_create_one_schema(empty_url: str) -> None:
    eight(empty_url, OPEN)
    with Registry.open(empty_url) as registry:
        new = registry.sources.record_plugin(distribution="p", version="9", api=1, domain="d")
    assert new == PROCESSES + 1


@pytest.mark.usefixtures("dataset")
def test_concurrent_publications_get_consecutive_numbers(url: str, registry: Registry) -> None:
    printed = eight(url, PUBLISH)
    assert sorted(map(int, printed)) == list(range(1, PROCESSES + 1))
    assert registry.adapters.get("medical", "icd10").versions == PROCESSES


@pytest.mark.usefixtures("dataset")
def test_concurrent_events_form_one_chain(url: str, registry: Registry) -> None:
    eight(url, PUBLISH)
    assert [event.seq for event in registry.events.list()] == list(range(PROCESSES, 0, -1))
    assert all(report.intact for report in registry.audit.verify())


@pytest.mark.usefixtures("dataset")
def test_concurrent_runs_get_consecutive_numbers(url: str, registry: Registry) -> None:
    printed = eight(url, START)
    assert sorted(map(int, printed)) == list(range(1, PROCESSES + 1))


def test_one_of_eight_concurrent_moves_wins_and_the_others_conflict(
    url: str, registry: Registry, publish: Callable[..., VersionRecord]
) -> None:
    for _ in range(PROCESSES):
        publish()
    printed = eight(url, COMPARE_AND_MOVE)
    (won,) = [line for line in printed if line.startswith("won ")]
    winner = int(won.split()[1])
    lost = [line for line in printed if line != won]
    conflict = f"person-{winner - 1} moved it to version {winner} at "
    assert all(conflict in line for line in lost)
    assert registry.adapters.get("medical", "icd10").aliases == {"champion": winner}
    assert len(registry.aliases.moves("medical", "icd10")) == 1


def test_concurrent_unconditional_moves_form_one_sequence(
    url: str, publish: Callable[..., VersionRecord]
) -> None:
    for _ in range(PROCESSES):
        publish()
    moves = dict(line.split() for line in eight(url, MOVE))
    seen = ["None"]
    while seen[-1] in moves:
        seen.append(moves[seen[-1]])
    assert len(seen) == PROCESSES + 1
