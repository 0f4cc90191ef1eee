"""Check one plugin in this interpreter, which :mod:`trunkline.plugins.check` starts for it."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import asdict, fields
from functools import cache
from importlib.metadata import EntryPoint
from io import StringIO
from pathlib import Path
from typing import Any

from trunkline.contracts import Row
from trunkline.errors import TrunklineError, plugin_call
from trunkline.plugins.catalog import CORE, SPECS, Contribution
from trunkline.plugins.check import Finding
from trunkline.plugins.discovery import GROUP, Candidate, core_candidate
from trunkline.plugins.host import load_core, load_plugin
from trunkline.redaction import redact_source

_HEAVY = ("torch", "transformers", "peft", "pandas", "sklearn")
_SLOW_IMPORT = 2.0


def main(request: Mapping[str, Any]) -> None:
    """Check the plugin of a request and write a line of JSON for each event on stdout.

    Whatever the plugin prints goes to stderr.
    """
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def emit(**event: Any) -> None:
        channel.write(json.dumps(event) + "\n")
        channel.flush()

    domain, module = request["domain"], request["module"]
    candidate = Candidate(
        domain=domain,
        distribution=request["distribution"],
        version=request["version"],
        entry_point=None if module is None else EntryPoint(domain, module, GROUP),
        violation=request["violation"],
        notes=tuple(request["notes"]),
    )
    builtin = core_candidate()
    if (domain, candidate.distribution) == (CORE, builtin.distribution):
        candidate = builtin

    def emit_rows(name: str, rows: Sequence[Row]) -> None:
        emit(rows=name, digest=_digest(rows))

    if request["rows_only"]:
        for name, rows in _read_rows(candidate):
            emit_rows(name, rows)
        emit(done=True)
        return
    root = None if request["root"] is None else Path(request["root"])

    def emit_stage(text: str) -> None:
        emit(stage=text)

    for finding in plugin_findings(candidate, root, emit_stage, emit_rows, request["base"]):
        emit(finding=asdict(finding))
    emit(done=True)


def plugin_findings(
    candidate: Candidate,
    root: Path | None = None,
    on_stage: Callable[[str], None] = lambda text: None,
    on_rows: Callable[[str, Sequence[Row]], None] = lambda name, rows: None,
    base: str | None = None,
) -> Iterator[Finding]:
    """Load one plugin alone, then yield what is wrong with its import, its rows and its specs.

    Args:
        candidate: the plugin.
        root: the folder that its modules must come from, if that is known.
        on_stage: called with a phrase when a stage begins.
        on_rows: called with the name and the rows of each dataset that can be used.
        base: name of the base whose tokenizer counts the lengths of texts; None: not counted.
    """
    _, core = load_core()
    on_stage(f"importing {candidate.module}")
    before, output, started = _ProcessState(), StringIO(), time.monotonic()
    with redirect_stderr(output):
        is_core = candidate is core_candidate()
        info, contribution = load_plugin(candidate, None if is_core else core)
    seconds = time.monotonic() - started
    sys.stderr.write(output.getvalue())
    for note in info.notes:
        yield Finding.warning(candidate.domain, note)
    if contribution is None:
        yield Finding.error(candidate.domain, info.reason or "it failed")
        return
    for text in _import_warnings(output.getvalue(), before, seconds):
        yield Finding.warning(candidate.domain, text)
    yield from _module_findings(candidate, root, contribution)

    from trunkline.data.findings import Examiner
    from trunkline.training.recipe_check import spec_findings

    examiner = Examiner() if base is None else Examiner(_tokenizer(base))
    yield from spec_findings(contribution, core, on_stage, on_rows, examiner)


def _tokenizer(base: str) -> Callable[[], tuple[Any, int] | None]:
    """Loads the tokenizer and the context of a base once, if the base is on this machine."""

    @cache
    def load() -> tuple[Any, int] | None:
        from trunkline.bases import local_tokenizer

        known = local_tokenizer(base)
        if known is None:
            print(
                "The lengths of texts were not checked: "
                f"the base {redact_source(base)!r} is not on this machine.",
                file=sys.stderr,
            )
        return known

    return load


class _ProcessState:
    """What an import may change in the process and is not restored."""

    def __init__(self) -> None:
        self.heavy = {name for name in _HEAVY if name in sys.modules}
        self.threads = set(threading.enumerate())
        self.environment = dict(os.environ)


def _import_warnings(output: str, before: _ProcessState, seconds: float) -> Iterator[str]:
    after = _ProcessState()
    for name in sorted(after.heavy - before.heavy):
        yield f"importing it imports {name}, which slows every command; import inside functions"
    if seconds > _SLOW_IMPORT:
        yield f"importing it takes {seconds:.1f} s, for which every command waits"
    lines = [line for line in output.splitlines() if not line.startswith("trunkline: ")]
    if lines:
        yield f"importing it prints {lines[0]!r:.60}, as every command will"
    for thread in sorted(thread.name for thread in after.threads - before.threads):
        yield f"importing it starts the thread {thread!r}, which may keep a command from ending"
    changed = dict(before.environment.items() ^ after.environment.items())
    for name in sorted(changed):
        yield f"importing it changes the environment variable {name} for all other plugins"


def _module_findings(
    candidate: Candidate, root: Path | None, contribution: Contribution
) -> Iterator[Finding]:
    module = sys.modules.get(candidate.module.partition(":")[0])
    file = getattr(module, "__file__", None)
    if root is not None and file and not Path(file).resolve().is_relative_to(root):
        yield Finding.warning(
            candidate.domain, f"the checked copy is {file}, not the one in {root}"
        )
    if not any(getattr(contribution, kind) for kind in SPECS):
        yield Finding.warning(candidate.domain, "it contributes nothing: no hook yields a spec")


# ------------------------------------------------------------------------- the rows, twice


def _read_rows(candidate: Candidate) -> Iterator[tuple[str, tuple[Row, ...]]]:
    """The rows of each dataset that can be read; no errors are reported."""
    from trunkline.data.prepare import identified_rows

    _, core = load_core()
    _, contribution = load_plugin(candidate, core)
    for dataset in contribution.datasets if contribution else ():
        try:
            with plugin_call("load"):
                rows = identified_rows(dataset)
        except TrunklineError:
            continue
        yield dataset.name, rows


def _digest(rows: Sequence[Row]) -> str:
    """sha256 of the rows in their order."""
    digest = hashlib.sha256()
    for row in rows:
        values = {field.name: getattr(row, field.name) for field in fields(Row)}
        values["slices"] = sorted(row.slices.items())
        digest.update(repr(values).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
