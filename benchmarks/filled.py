"""A registry filled with generated rows, written fast.

For V versions there are V runs and evaluations, 10 V scores of runs, 10 V scores, 10 V events and
V requests. One adapter in ten versions is ``d0/busy``; the others have 90 versions each. Hashes are
random: nothing here is verified.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Table, create_engine, insert, text, update

from trunkline.registry import tables
from trunkline.registry.registry import Registry

DOMAINS = 8
METRICS = ("accuracy", "macro_f1", "precision", "recall", "loss")
SPLITS = ("test", "validation")
STEPS = 5
_START = datetime(2026, 1, 1, tzinfo=UTC)
_BATCH = 20_000


def fill(url: str, versions: int) -> None:
    """Migrate the empty database at ``url`` and fill it."""
    Registry.open(url).close()
    engine = create_engine(url)
    with engine.begin() as connection:
        for table, rows in _rows(versions):
            _write(connection, table.__table__, rows)
        for chain, count in (("events", 10 * versions), ("requests", versions)):
            connection.execute(
                update(tables.ChainHead)
                .where(tables.ChainHead.name == chain)
                .values(seq=count, hash=_hex("row", count))
            )
        if engine.dialect.name == "postgresql":
            for table in ("adapters", "versions", "runs", "alias_moves", "evaluations", "tags"):
                connection.execute(
                    text(
                        f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), "
                        f"(SELECT max(id) FROM {table}))"
                    )
                )
    if engine.dialect.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))
    engine.dispose()


def adapters_of(versions: int) -> list[tuple[int, str, str, int]]:
    """id, domain, name and number of versions of each adapter."""
    busy = max(1, versions // 10)
    adapters = [(1, "d0", "busy", busy)]
    left = versions - busy
    while left > 0:
        id = len(adapters) + 1
        adapters.append((id, f"d{id % DOMAINS}", f"adapter-{id}", min(90, left)))
        left -= adapters[-1][3]
    return adapters


def _rows(versions: int) -> Iterator[tuple[Any, Iterator[dict[str, Any]]]]:
    adapters = adapters_of(versions)
    which = [(adapter, number) for adapter in adapters for number in range(1, adapter[3] + 1)]
    # Versions of all adapters are made in turn, so that neighbors are of different adapters.
    which.sort(key=lambda one: (one[1] / one[0][3], one[0][0]))
    yield tables.Base, iter([_base()])
    yield tables.Plugin, iter([_plugin()])
    yield tables.Dataset, (_dataset(id) for id in range(1, 101))
    yield tables.Run, (_run(id, which[id - 1][0]) for id in range(1, versions + 1))
    yield tables.RunMetric, _run_metrics(versions)
    yield tables.Adapter, (_adapter(*one) for one in adapters)
    yield tables.Version, (_version(id, *which[id - 1]) for id in range(1, versions + 1))
    yield tables.Evaluation, (_evaluation(id, which[id - 1][0]) for id in range(1, versions + 1))
    yield tables.Score, _scores(versions)
    yield tables.AliasMove, _moves(which)
    yield tables.Alias, _aliases(which)
    yield tables.Tag, _tags(which)
    yield tables.Event, _events(which)
    yield tables.LoggedRequest, _requests(which)
    yield tables.Server, (_server(id) for id in range(1, 201))
    yield tables.ServerLoad, _loads(which)


def _at(number: int) -> datetime:
    return _START + timedelta(seconds=30 * number)


def _hex(*parts: object) -> str:
    return hashlib.sha256(":".join(map(str, parts)).encode()).hexdigest()


def digest_of(version: int) -> str:
    """The digest of the version with this id."""
    return "sha256:" + _hex("version", version)


def score_of(version: int, metric: str, split: str) -> float:
    """A figure between 0.5 and 1, evenly spread."""
    return 0.5 + int(_hex(version, metric, split)[:8], 16) / 2**33


def _base() -> dict[str, Any]:
    return {
        "id": 1,
        "digest": _hex("base"),
        "name": "tiny",
        "source": "made up",
        "architecture": "LlamaForCausalLM",
        "parameters": 10**9,
        "dtype": "float32",
        "first_seen": _START,
    }


def _plugin() -> dict[str, Any]:
    return {
        "id": 1,
        "distribution": "trunkline-d0",
        "version": "1.0",
        "api": 1,
        "domain": "d0",
        "first_seen": _START,
    }


def _dataset(id: int) -> dict[str, Any]:
    return {
        "id": id,
        "name": f"d{id % DOMAINS}/rows-{id}",
        "fingerprint": _hex("rows", id),
        "split_fingerprint": _hex("split", id),
        "rows": 5000,
        "license": "CC0-1.0",
        "source": "made up",
        "counts": {"parts": {"train": 4000, "validation": 500, "test": 500}},
        "first_seen": _START,
    }


def _run(id: int, adapter: tuple[int, str, str, int]) -> dict[str, Any]:
    return {
        "id": id,
        "recipe": f"{adapter[1]}/{adapter[2]}",
        "status": "finished",
        "base_id": 1,
        "dataset_id": id % 100 + 1,
        "plugin_id": 1,
        "seed": id,
        "settings": {"epochs": 2, "rank": 16, "alpha": 32.0, "learning_rate": 0.001},
        "environment": {"python": "3.11", "device": "cpu", "packages": {"torch": "2.13.0"}},
        "report": {"steps": 150, "seconds": 98.1},
        "error": None,
        "started": _at(id),
        "finished": _at(id),
        "specification": {"dataset": adapter[1], "loss": "default"},
    }


def _run_metrics(versions: int) -> Iterator[dict[str, Any]]:
    for run in range(1, versions + 1):
        for step in range(1, STEPS + 1):
            for name in ("loss", "validation.accuracy"):
                yield {"run_id": run, "step": step, "name": name, "value": 1.0 / step}


def _adapter(id: int, domain: str, name: str, versions: int) -> dict[str, Any]:
    return {
        "id": id,
        "domain": domain,
        "name": name,
        "task": "classification" if id % 5 else "regression",
        "last_number": versions,
    }


def _version(id: int, adapter: tuple[int, str, str, int], number: int) -> dict[str, Any]:
    gone = id % 500 == 0
    return {
        "id": id,
        "adapter_id": adapter[0],
        "number": number,
        "status": "removed" if gone else "visible",
        "digest": digest_of(id),
        "path": f"{adapter[1]}/{adapter[2]}/{number}",
        "bytes": 19_000_000 + id,
        "base_id": 1,
        "dataset_id": id % 100 + 1,
        "run_id": id,
        "created": _at(id),
        "files": {"adapter_model.safetensors": {"bytes": 19_000_000, "sha256": _hex(id)}},
        "template_digest": _hex("template", id % 7),
        "removed": _at(id) if gone else None,
        "removal": "no longer needed" if gone else None,
    }


def _evaluation(id: int, adapter: tuple[int, str, str, int]) -> dict[str, Any]:
    value = score_of(id, "accuracy", "test")
    scores = {
        metric: {"value": score_of(id, metric, "test"), "low": 0.4, "high": 1.0}
        for metric in METRICS
    }
    slices = [
        {"slice": "kind", "value": f"kind {part}", "rows": 40, "score": value} for part in range(8)
    ]
    return {
        "id": id,
        "version_id": id,
        "run_id": id,
        "recipe": f"{adapter[1]}/{adapter[2]}",
        "dataset_id": id % 100 + 1,
        "split": "test",
        "base_id": 1,
        "results": {"metric": "accuracy", "verdict": "ties", "scores": scores, "slices": slices},
        "created": _at(id),
    }


def _scores(versions: int) -> Iterator[dict[str, Any]]:
    for id in range(1, versions + 1):
        for split in SPLITS:
            for metric in METRICS:
                value = score_of(id, metric, split)
                yield {
                    "version_id": id,
                    "split": split,
                    "metric": metric,
                    "value": value,
                    "low": value - 0.05,
                    "high": value + 0.05,
                    "evaluation_id": id,
                }


_Which = Sequence[tuple[tuple[int, str, str, int], int]]


def _moves(which: _Which) -> Iterator[dict[str, Any]]:
    """Every fifth version was champion once; the id of a move is that of its version over five."""
    last: dict[int, tuple[int, int]] = {}
    for id, (adapter, _) in enumerate(which, 1):
        if id % 5 == 0 and id % 500:
            before = last.get(adapter[0])
            last[adapter[0]] = (id // 5, id)
            yield {
                "id": id // 5,
                "adapter_id": adapter[0],
                "alias": "champion",
                "kind": "promoted",
                "version_id": id,
                "old_version_id": before and before[1],
                "back_to": before and before[0],
                "at": _at(id),
                "actor": "system:ada",
                "forced": False,
                "reason": None,
                "gate": [{"name": "beats the baseline", "passed": True, "figures": "+0.1"}],
            }


def _aliases(which: _Which) -> Iterator[dict[str, Any]]:
    champions = {
        adapter[0]: id for id, (adapter, _) in enumerate(which, 1) if id % 5 == 0 and id % 500
    }
    for id, (adapter, version) in enumerate(champions.items(), 1):
        yield {"id": id, "adapter_id": adapter, "alias": "champion", "version_id": version}


def _tags(which: _Which) -> Iterator[dict[str, Any]]:
    for id in range(1, len(which) // 10 + 1):
        adapter, number = which[id * 10 - 1]
        yield {
            "id": id,
            "subject": f"{adapter[1]}/{adapter[2]}@{number}",
            "key": "reviewed",
            "value": "no" if id % 100 == 0 else "yes",
        }


def _events(which: _Which) -> Iterator[dict[str, Any]]:
    seq = 0
    for id, (adapter, number) in enumerate(which, 1):
        name = f"{adapter[1]}/{adapter[2]}"
        events = [
            ("run.started", f"run/{id}", {"recipe": name}),
            ("run.finished", f"run/{id}", {"recipe": name}),
            ("version.published", name, {"number": number, "digest": digest_of(id), "run": id}),
            ("tag.set", f"{name}@{number}", {"key": "reviewed", "value": "yes", "previous": None}),
            ("note.added", f"run/{id}", {"text": "looked at"}),
        ]
        if id % 5 == 0:
            events.append(("alias.moved", name, {"alias": "champion", "old": None, "new": number}))
        events += [("note.added", f"dataset/{id % 100 + 1}", {"text": "seen"})] * (id % 10 == 0)
        while len(events) < 10:
            events.append(("key.used", f"server/{id % 200 + 1}", {"at": id}))
        for kind, subject, detail in events:
            seq += 1
            yield {
                "seq": seq,
                "at": _at(id),
                "actor": "system:ada",
                "kind": kind,
                "subject": subject,
                "detail": detail,
                "previous_hash": _hex("row", seq - 1),
                "hash": _hex("row", seq),
            }


def _requests(which: _Which) -> Iterator[dict[str, Any]]:
    for seq in range(1, len(which) + 1):
        adapter, number = which[seq - 1]
        name = f"{adapter[1]}/{adapter[2]}"
        yield {
            "seq": seq,
            "id": f"req-{seq}",
            "at": _at(seq + 1),
            "key_id": f"{seq % 50:08d}",
            "route": "/v1/classify",
            "model": name,
            "adapter": name,
            "version": f"{name}@{number}",
            "digest": digest_of(seq),
            "prompt_tokens": 14,
            "new_tokens": 0,
            "status": 200,
            "seconds": 0.08,
            "text": None,
            "output": None,
            "previous_hash": _hex("line", seq - 1),
            "hash": _hex("line", seq),
        }


def _server(id: int) -> dict[str, Any]:
    return {
        "id": id,
        "actor": "system:ada",
        "host": "elsewhere",
        "pid": id,
        "url": "http://127.0.0.1:8000",
        "base_id": 1,
        "started": _at(id),
        "last_seen": _at(id),
        "stopped": _at(id + 1),
    }


def _loads(which: _Which) -> Iterator[dict[str, Any]]:
    for id in range(1, len(which) + 1):
        adapter, number = which[id - 1]
        yield {
            "id": id,
            "server_id": id % 200 + 1,
            "version": f"{adapter[1]}/{adapter[2]}@{number}",
            "digest": digest_of(id),
            "loaded": _at(id),
            "unloaded": _at(id + 1),
        }


def _write(connection: Connection, table: Table, rows: Iterator[dict[str, Any]]) -> None:
    if connection.dialect.name == "postgresql":
        _copy(connection, table, rows)
        return
    batch: list[dict[str, Any]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == _BATCH:
            connection.execute(insert(table), batch)
            batch = []
    if batch:
        connection.execute(insert(table), batch)


def _copy(connection: Connection, table: Table, rows: Iterator[dict[str, Any]]) -> None:
    names = [column.name for column in table.columns]
    listed = ", ".join(f'"{name}"' for name in names)
    driver: Any = connection.connection.driver_connection
    with (
        driver.cursor() as cursor,
        cursor.copy(f'COPY "{table.name}" ({listed}) FROM STDIN') as copy,
    ):
        for row in rows:
            copy.write_row([_plain(row.get(name)) for name in names])


def _plain(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, dict | list) else value
