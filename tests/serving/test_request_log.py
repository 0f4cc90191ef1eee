"""A line is kept when it is said to be, and no line takes another one with it."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from trunkline.errors import RegistryError
from trunkline.registry.records import RequestLine
from trunkline.registry.registry import Registry
from trunkline.serving.request_log import RequestLog


def line(id: str) -> RequestLine:
    now = datetime.now(UTC)
    return RequestLine(id, now, None, "/v1/classify", "a/b", "a/b@1", "d", 3, 0, 200, 0.1)


@pytest.fixture
def log(registry: Registry) -> Iterator[RequestLog]:
    made = RequestLog(registry.requests.log)
    made.start()
    yield made
    made.stop()


def test_a_line_is_there_as_soon_as_it_is_kept(registry: Registry, log: RequestLog) -> None:
    asyncio.run(log.keep(line("one")))
    assert registry.requests.get("one").version == "a/b@1"


def test_lines_that_come_together_are_written_together(registry: Registry) -> None:
    groups: list[int] = []

    def write(lines: Sequence[RequestLine]) -> None:
        groups.append(len(lines))
        registry.requests.log(lines)

    async def all_of_them(log: RequestLog) -> None:
        keeping = [asyncio.ensure_future(log.keep(line(str(number)))) for number in range(50)]
        await asyncio.sleep(0)
        log.start()
        await asyncio.gather(*keeping)

    log = RequestLog(write)
    asyncio.run(all_of_them(log))
    log.stop()
    assert (len(registry.requests.list()), len(groups)) == (50, 1)


def test_a_taken_id_falls_alone(registry: Registry, log: RequestLog) -> None:
    async def three() -> list[BaseException | None]:
        await log.keep(line("theirs"))
        return await asyncio.gather(
            log.keep(line("a")),
            log.keep(line("theirs"), alone=True),
            log.keep(line("b")),
            return_exceptions=True,
        )

    told = asyncio.run(three())
    assert [type(one) for one in told] == [type(None), RegistryError, type(None)]
    assert len(registry.requests.list()) == 3


def test_a_locked_registry_is_told_and_passes(
    tmp_path: Path, registry: Registry, log: RequestLog
) -> None:
    with closing(sqlite3.connect(tmp_path / "registry.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(RegistryError, match="locked"):
            asyncio.run(log.keep(line("one")))
        other.execute("ROLLBACK")
    asyncio.run(log.keep(line("two")))
    assert [one.id for one in registry.requests.list()] == ["two"]


def test_what_waits_is_written_before_the_end(registry: Registry) -> None:
    async def one(log: RequestLog) -> None:
        keeping = asyncio.ensure_future(log.keep(line("one")))
        await asyncio.sleep(0)
        log.start()
        await asyncio.to_thread(log.stop)
        await keeping

    asyncio.run(one(RequestLog(registry.requests.log)))
    assert registry.requests.get("one").status == 200
