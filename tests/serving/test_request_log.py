"""The request log: lines are committed when ``write`` returns, and fail independently."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from trunkline.errors import RegistryError
from trunkline.registry.records import RequestEntry
from trunkline.registry.registry import Registry
from trunkline.serving.request_log import RequestLog


def line(id: str) -> RequestEntry:
    now = datetime.now(UTC)
    return RequestEntry(id, now, None, "/v1/classify", "a/b", "a/b@1", "d", 3, 0, 200, 0.1)


@pytest.fixture
def log(registry: Registry) -> Iterator[RequestLog]:
    log = RequestLog(registry.requests.log)
    log.start()
    yield log
    log.stop()


def test_line_is_committed_when_write_returns(registry: Registry, log: RequestLog) -> None:
    asyncio.run(log.write(line("one")))
    assert registry.requests.get("one").version == "a/b@1"


def test_simultaneous_lines_share_a_transaction(registry: Registry) -> None:
    groups: list[int] = []

    def commit(lines: Sequence[RequestEntry]) -> None:
        groups.append(len(lines))
        registry.requests.log(lines)

    async def write_all(log: RequestLog) -> None:
        writes = [asyncio.ensure_future(log.write(line(str(number)))) for number in range(50)]
        await asyncio.sleep(0)
        log.start()
        await asyncio.gather(*writes)

    log = RequestLog(commit)
    asyncio.run(write_all(log))
    log.stop()
    assert (len(registry.requests.list()), len(groups)) == (50, 1)


def test_duplicate_id_does_not_fail_other_lines(registry: Registry, log: RequestLog) -> None:
    async def write_three() -> Sequence[BaseException | None]:
        await log.write(line("theirs"))
        return await asyncio.gather(
            log.write(line("a")),
            log.write(line("theirs"), alone=True),
            log.write(line("b")),
            return_exceptions=True,
        )

    results = asyncio.run(write_three())
    assert [type(result) for result in results] == [type(None), RegistryError, type(None)]
    assert len(registry.requests.list()) == 3


def test_locked_registry_fails_one_line_and_not_the_next(
    tmp_path: Path, registry: Registry, log: RequestLog
) -> None:
    with closing(sqlite3.connect(tmp_path / "registry.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(RegistryError, match="locked"):
            asyncio.run(log.write(line("one")))
        other.execute("ROLLBACK")
    asyncio.run(log.write(line("two")))
    assert [record.id for record in registry.requests.list()] == ["two"]


def test_stop_writes_the_remaining_lines(registry: Registry) -> None:
    async def write_and_stop(log: RequestLog) -> None:
        writing = asyncio.ensure_future(log.write(line("one")))
        await asyncio.sleep(0)
        log.start()
        await asyncio.to_thread(log.stop)
        await writing

    asyncio.run(write_and_stop(RequestLog(registry.requests.log)))
    assert registry.requests.get("one").status == 200
