"""Test cases that people collect for a dataset: ``cases/<domain>/<name>.jsonl`` in the workspace.

``trunkline predict ADAPTER --file`` reads them; no training does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trunkline.errors import BusyError, RefusedError, UsageError
from trunkline.files import write_atomically
from trunkline.labels import is_blank
from trunkline.refs import Ref
from trunkline.registry.actors import system_actor
from trunkline.workspace import Workspace

MAX_CHARACTERS = 100_000
MAX_CASES = 10_000


def cases_path(workspace: Workspace, dataset: str) -> Path:
    """The file of a dataset's test cases; it may not exist.

    Raises:
        UsageError: the name is not ``domain/name``.
    """
    ref = Ref.parse(dataset)
    return workspace.root / "cases" / ref.domain / f"{ref.name}.jsonl"


def read_cases(workspace: Workspace, dataset: str) -> list[dict[str, Any]]:
    """The test cases of a dataset, the oldest first; lines that are none are left out."""
    try:
        lines = cases_path(workspace, dataset).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError):
        return []
    cases = []
    for line in lines:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict) and isinstance(value.get("text"), str):
            cases.append(value)
    return cases


def add_case(
    workspace: Workspace,
    dataset: str,
    text: str,
    target: str,
    *,
    prediction: Mapping[str, Any],
    actor: str | None = None,
) -> int:
    """Add a test case; returns how many there are now.

    Args:
        target: the right answer, as a file of rows has it.
        prediction: what a version answered: ``version`` and ``output``.
        actor: who adds it; by default the system's user.

    Raises:
        UsageError: the text or the target is empty or too long.
        RefusedError: the dataset has this text already, or too many cases.
    """
    if is_blank(text) or is_blank(target):
        raise UsageError("A test case needs a text and the right answer.", "Fill in both.")
    if len(text) + len(target) > MAX_CHARACTERS:
        raise UsageError(
            f"The test case has more than {MAX_CHARACTERS:,} characters.", "Shorten it."
        )
    from filelock import FileLock, Timeout

    file = cases_path(workspace, dataset)
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(file.with_suffix(".lock"), timeout=10):
            cases = read_cases(workspace, dataset)
            if any(one["text"] == text for one in cases):
                raise RefusedError(
                    f"{dataset} has a test case with this text.", f"Change it in {file.name}."
                )
            if len(cases) >= MAX_CASES:
                raise RefusedError(f"{dataset} has {MAX_CASES:,} test cases.", "Remove some.")
            before = file.read_bytes() if file.exists() else b""
            case = {
                "text": text,
                "target": target,
                **prediction,
                "actor": actor or system_actor(),
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            line = json.dumps(case, ensure_ascii=False)
            separator = b"" if not before or before.endswith(b"\n") else b"\n"
            write_atomically(file, before + separator + line.encode() + b"\n")
    except Timeout:
        raise BusyError("Another test case is being written.", "Retry.") from None
    return len(cases) + 1
