"""The memory of reading a big file."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

pytestmark = pytest.mark.slow

ROWS = 400_000
TEXT = "a text of some length, " * 24
BYTES = 64 << 20
PROGRAM = """
import resource, sys
from pathlib import Path
from trunkline.data.readers import open_texts
import pyarrow.parquet
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
file = open_texts(Path(sys.argv[1]), "text", skip_empty=False)
rows = sum(len(batch) for batch in file.batches())
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(rows, (after - before) * 1024)
"""


def _lines(kind: str) -> Iterator[str]:
    if kind == "csv":
        yield "id,text\n"
        yield from (f'{number},"{TEXT}"\n' for number in range(ROWS))
    elif kind == "tsv":
        yield "id\ttext\n"
        yield from (f"{number}\t{TEXT}\n" for number in range(ROWS))
    elif kind == "jsonl":
        yield from (f'{{"id": {number}, "text": "{TEXT}"}}\n' for number in range(ROWS))
    else:
        yield "["
        yield from (f'{{"id": {number}, "text": "{TEXT}"}},' for number in range(ROWS - 1))
        yield f'{{"id": 0, "text": "{TEXT}"}}]'


def _write(path: Path, kind: str) -> None:
    if kind != "parquet":
        with path.open("w", encoding="utf-8") as file:
            file.writelines(_lines(kind))
        return
    schema = pyarrow.schema([("text", pyarrow.string())])
    with pyarrow.parquet.ParquetWriter(
        path, schema, compression="none", use_dictionary=False
    ) as writer:
        for start in range(0, ROWS, 100_000):
            texts = [f"{number} {TEXT}" for number in range(start, start + 100_000)]
            writer.write_table(pyarrow.table({"text": texts}, schema), row_group_size=100_000)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"rows.{kind}"
    _write(path, kind)
    assert path.stat().st_size > 3 * BYTES
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path)], check=True, capture_output=True, text=True
    )
    path.unlink()
    rows, grown = map(int, done.stdout.split())

    assert rows == ROWS
    assert grown < BYTES


def test_quote_that_is_never_closed_does_not_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    with path.open("w", encoding="utf-8") as file:
        file.write('id,text\n1,"open\n')
        file.writelines(f"{number},{TEXT}\n" for number in range(ROWS))
    program = PROGRAM.replace("file = open", "try:\n    open").partition("rows =")[0] + (
        "except Exception as error:\n    print(error)\n"
        "after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print((after - before) * 1024)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], check=True, capture_output=True, text=True
    )
    message, grown = done.stdout.splitlines()

    assert "The row that begins in line 2" in message
    assert int(grown) < 4 * BYTES
