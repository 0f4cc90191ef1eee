"""No page of a listing costs more when the registry grows, counted in SQLite's steps."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from trunkline.registry import search
from trunkline.registry.registry import Registry

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SIZES = (1000, 4000)
STEP = 100
"""Instructions of SQLite's virtual machine per counted step."""

GROWS = {
    "adapters list",  # counts the versions of each adapter on the page, the busy one's too
    "adapters list, a later page",  # pages end earlier in the smaller registry
    "adapters history, of its version",  # looks through the events of its one adapter
    "lineage of the busy one's",  # the same
    "lineage of a digest",  # the same
    "lineage of a request",  # the same
}
"""Pages that cost more where one adapter has more versions, not where there are more adapters."""


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[int]]]:
    """Page → its steps in a registry of each size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        patch.setattr(search, "SCAN_LIMIT", 500)
        patch.setattr(search, "PREFETCH_LIMIT", 60)
        import bench_registry
        import filled

        counted: dict[str, list[int]] = {}
        for size in SIZES:
            url = f"sqlite:///{tmp_path_factory.mktemp('growth') / 'registry.db'}"
            filled.fill(url, size)
            with Registry.open(url) as registry:
                for page, call in bench_registry.pages(registry, size).items():
                    counted.setdefault(page, []).append(steps(registry, call))
        yield counted
        for name in ("bench_registry", "filled"):
            sys.modules.pop(name, None)


def steps(registry: Registry, call: Callable[[], Any]) -> int:
    """How many steps of SQLite's virtual machine a call takes."""
    count = 0

    def one_more() -> int:
        nonlocal count
        count += 1
        return 0

    def listen(cursor_connection: Any, *_: Any) -> None:
        driver = cursor_connection.connection.driver_connection
        driver.set_progress_handler(one_more, STEP)

    engine = registry.sessions.engines.reading
    event.listen(engine, "before_cursor_execute", listen)
    try:
        call()
    finally:
        event.remove(engine, "before_cursor_execute", listen)
    return count


def test_no_page_costs_more_in_a_larger_registry(counted: dict[str, list[int]]) -> None:
    small, large = SIZES
    grown = {
        page: (before, after)
        for page, (before, after) in counted.items()
        if page not in GROWS and after > 1.5 * before + 50
    }
    assert not grown, f"steps at {small} and {large} versions"


def test_cost_grows_with_one_adapter_at_most_linearly(counted: dict[str, list[int]]) -> None:
    small, large = SIZES
    for page in GROWS:
        before, after = counted[page]
        assert after <= 1.5 * before * large / small + 50, page
