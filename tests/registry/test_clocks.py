"""Clocks that go back, time zones and daylight saving: order is by number, times are in UTC."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from forks import Child, alone, together
from trunkline.refs import Ref
from trunkline.registry.records import RequestEntry, VersionRecord
from trunkline.registry.registry import Registry

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
NEW_YORK = ZoneInfo("America/New_York")

LOG = """
import sys
from datetime import datetime
from trunkline.registry.records import RequestEntry
from trunkline.registry.registry import Registry
with Registry.open(sys.argv[1], busy_seconds=60) as registry:
    at = datetime.fromtimestamp(1_790_000_000).astimezone()
    registry.requests.log([
        RequestEntry(sys.argv[2], at, None, "/v1", "base", "base", None, 1, 1, 200, 0.1)
    ])
    print(at.utcoffset(), registry.requests.get(sys.argv[2]).at)
"""


@pytest.fixture
def backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes back an hour at each call."""
    passed = iter(range(1000))
    for name, module in list(sys.modules.items()):
        if name.startswith("trunkline.registry.") and hasattr(module, "utc_now"):
            monkeypatch.setattr(module, "utc_now", lambda: NOON - timedelta(hours=next(passed)))


def line(id: str, at: datetime) -> RequestEntry:
    return RequestEntry(
        id=id,
        at=at,
        key=None,
        route="/v1",
        model="base",
        version=None,
        digest=None,
        prompt_tokens=1,
        new_tokens=1,
        status=200,
        seconds=0.1,
    )


@pytest.mark.usefixtures("backwards")
def test_events_are_in_the_order_of_their_commits(registry: Registry) -> None:
    for owner in ("a", "b", "c"):
        registry.keys.create(owner)
    events = registry.events.list()
    assert [event.detail["owner"] for event in events] == ["c", "b", "a"]
    assert [event.at for event in events] == sorted(event.at for event in events)


@pytest.mark.usefixtures("backwards")
def test_the_newest_version_is_the_one_with_the_highest_number(
    registry: Registry, publish: Callable[..., VersionRecord]
) -> None:
    first, second = publish(), publish()
    assert second.created < first.created
    assert registry.versions.resolve(Ref.parse("medical/icd10"))[0].number == 2
    assert [one.number for one in registry.versions.list("medical", "icd10")] == [2, 1]


@pytest.mark.usefixtures("backwards")
def test_an_alias_points_where_it_was_moved_last(
    registry: Registry, publish: Callable[..., VersionRecord]
) -> None:
    for _ in range(2):
        publish()
    for number in (1, 2):
        registry.aliases.set(Ref.parse(f"medical/icd10@{number}"), "champion")
    assert [move.new for move in registry.aliases.moves("medical", "icd10")] == [2, 1]
    registry.aliases.rollback(Ref.parse("medical/icd10"), "champion")
    assert registry.adapters.get("medical", "icd10").aliases == {"champion": 1}


@pytest.mark.usefixtures("backwards")
def test_a_chain_is_intact_whatever_its_times(registry: Registry) -> None:
    for owner in ("a", "b"):
        registry.keys.create(owner)
    assert all(report.intact for report in registry.audit.verify())


@pytest.mark.dialect
def test_the_repeated_hour_is_two_hours(registry: Registry) -> None:
    """On 2026-11-01 New York's clocks showed 01:30 twice."""
    twice = [datetime(2026, 11, 1, 1, 30, fold=fold, tzinfo=NEW_YORK) for fold in (0, 1)]
    registry.requests.log([line(f"r{n}", at) for n, at in enumerate(twice)])
    assert [registry.requests.get(f"r{n}").at for n in (0, 1)] == [
        datetime(2026, 11, 1, 5, 30, tzinfo=UTC),
        datetime(2026, 11, 1, 6, 30, tzinfo=UTC),
    ]
    assert all(report.intact for report in registry.audit.verify())


@pytest.mark.dialect
def test_processes_in_two_time_zones_store_the_same_time(registry: Registry, url: str) -> None:
    done = together(
        LOG,
        [
            Child((url, "west"), {"TZ": "America/New_York", "PGTZ": "America/New_York"}),
            Child((url, "east"), {"TZ": "Asia/Tokyo", "PGTZ": "Asia/Tokyo"}),
        ],
    )
    assert [(one.code, one.error) for one in done] == [(0, ""), (0, "")]
    offsets, shown = zip(*(one.out.split(" 2026", 1) for one in done), strict=True)
    assert offsets == ("-1 day, 20:00:00", "9:00:00")
    assert shown[0] == shown[1]
    assert registry.requests.get("west").at == registry.requests.get("east").at
    assert registry.requests.get("west").at.tzinfo is UTC


@pytest.mark.dialect
def test_a_chain_is_intact_in_every_time_zone(registry: Registry, url: str) -> None:
    registry.keys.create("ada", expires=datetime(2099, 7, 1, tzinfo=NEW_YORK))
    registry.requests.log([line("r1", datetime(2026, 3, 8, 3, 0, tzinfo=NEW_YORK))])
    check = (
        "import sys\n"
        "from trunkline.registry.registry import Registry\n"
        "with Registry.open(sys.argv[1]) as registry:\n"
        "    print([report.intact for report in registry.audit.verify()])\n"
    )
    done = alone(check, url, TZ="Australia/Lord_Howe", PGTZ="Australia/Lord_Howe")
    assert (done.out, done.error) == ("[True, True]", "")


def test_a_time_without_a_zone_is_refused(registry: Registry) -> None:
    with pytest.raises(Exception, match="no time zone"):
        registry.requests.log([line("r1", datetime(2026, 1, 1))])
    assert registry.requests.list() == []
