"""``provenance.json`` is read without trust: what it claims is well-formed, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from origins import provenance, written
from trunkline.adapters.account import card_text
from trunkline.adapters.artifact import read_artifact
from trunkline.adapters.provenance import read_provenance, unknown_origin, write_provenance
from trunkline.errors import IntegrityError

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def sealed(artifact: Path) -> Path:
    """A sound artifact with its provenance."""
    write_provenance(artifact, provenance(artifact))
    return artifact


def rewrite(folder: Path, change: Change) -> None:
    path = folder / "provenance.json"
    said = json.loads(path.read_text())
    change(said)
    path.write_text(json.dumps(said))


def test_what_was_written_is_read_back(sealed: Path) -> None:
    assert read_provenance(sealed) == provenance(sealed)


def test_file_lies_outside_of_the_identity(sealed: Path) -> None:
    before = read_artifact(sealed).digest
    rewrite(sealed, lambda said: said["run"].update(seed=3))
    assert read_artifact(sealed).digest == before


def test_without_a_file_the_manifest_says_what_is_known(artifact: Path) -> None:
    found = read_provenance(artifact)
    assert found.run is None
    assert found.dataset is not None
    assert (found.dataset.name, found.dataset.license) == ("toy/animals", "unknown")
    assert found.base.name == "tiny"


def test_first_form_is_read_with_what_it_has(artifact: Path) -> None:
    (artifact / "provenance.json").write_text(json.dumps(written()))
    found = read_provenance(artifact)
    assert found.run is not None
    assert (found.run.number, found.run.seed, found.run.status) == (7, 2, "finished")
    assert found.dataset is not None
    assert found.dataset.rows == 63
    assert found.evaluations[0].results["scores"]["accuracy"]["value"] == 0.5


def test_first_form_makes_no_times_up(artifact: Path) -> None:
    (artifact / "provenance.json").write_text(json.dumps(written()))
    found = read_provenance(artifact)
    assert found.run is not None
    assert found.run.started is None
    file = datetime.fromtimestamp((artifact / "trunkline.json").stat().st_mtime, UTC)
    assert found.created == file


def test_first_form_of_an_import_keeps_what_is_known(artifact: Path) -> None:
    said = {"run": None, "dataset": None, "imported": {"folder": "x", "named_base": None}}
    (artifact / "provenance.json").write_text(json.dumps(said))
    found = read_provenance(artifact)
    assert found.imported == said["imported"]
    assert found.run is None


def test_a_move_keeps_the_number_that_the_run_had(artifact: Path) -> None:
    at = datetime(2026, 1, 2, tzinfo=UTC)
    before = provenance(artifact)
    moved = before.moved_here(run=40, origin="toy/animals@1", by="system:ada", at=at)
    assert moved.run is not None
    assert moved.run.number == 40
    assert before.run is not None
    assert [(move.origin, move.run) for move in moved.moved] == [("toy/animals@1", 7)]


def test_what_is_no_json_becomes_it(artifact: Path) -> None:
    before = provenance(artifact)
    assert before.run is not None
    run = replace(before.run, settings={"a": float("nan"), "b": ("x\x1b[2J",), "c": Path("p")})
    write_provenance(artifact, replace(before, run=run))
    found = read_provenance(artifact)
    assert found.run is not None
    assert found.run.settings == {"a": None, "b": ["x\ufffd[2J"], "c": "p"}


REFUSED: dict[str, Change] = {
    "a later form": lambda said: said.update(format=3),
    "a key too many": lambda said: said.update(extra=1),
    "a key too many in a part": lambda said: said["base"].update(extra=1),
    "no version": lambda said: said.pop("version"),
    "another base": lambda said: said["base"].update(digest="sha256:" + "0" * 64),
    "another task": lambda said: said["version"].update(task="regression"),
    "other rows": lambda said: said["dataset"].update(fingerprint="other"),
    "a run without data": lambda said: said.update(dataset=None),
    "evaluations without a run": lambda said: said.update(run=None),
    "a number that is true": lambda said: said["run"].update(number=True),
    "a number below one": lambda said: said["run"].update(number=0),
    "a number too large": lambda said: said["run"].update(number=2**31),
    "a seed in words": lambda said: said["run"].update(seed="1"),
    "a status of its own": lambda said: said["run"].update(status="great"),
    "a recipe that is a path": lambda said: said["run"].update(recipe="../../etc/passwd"),
    "a recipe with a selector": lambda said: said["run"].update(recipe="toy/animals@1"),
    "a time without a zone": lambda said: said["run"].update(started="2026-01-01T00:00:00"),
    "a time that is none": lambda said: said["version"].update(created="soon"),
    "a time out of range": lambda said: said["version"].update(created="0001-01-01T00:00:00+14:00"),
    "a NUL": lambda said: said["dataset"].update(license="MIT\0"),
    "an escape sequence": lambda said: said["run"]["settings"].update(x="\x1b[2J"),
    "an escape sequence as a key": lambda said: said["run"]["report"].update({"\x1b[2J": 1}),
    "a turned text": lambda said: said["base"].update(name="a\u202eb"),
    "settings that are a list": lambda said: said["run"].update(settings=[]),
    "evaluations that are none": lambda said: said.update(evaluations={}),
    "a score in words": lambda said: said["evaluations"][0]["results"]["scores"].update(
        accuracy={"value": "1"}
    ),
    "a score too large": lambda said: said["evaluations"][0]["results"]["scores"].update(
        accuracy={"value": 10**400}
    ),
    "a slice without a score": lambda said: said["evaluations"][0]["results"].update(
        slices=[{"slice": "a", "value": "b", "rows": 1}]
    ),
    "a verdict that is none": lambda said: said["evaluations"][0]["results"].update(verdict=[]),
    "a part nested too deeply": lambda said: said["run"]["settings"].update(
        x=json.loads("[" * 40 + "]" * 40)
    ),
}


@pytest.mark.parametrize("change", REFUSED.values(), ids=REFUSED)
def test_claim_that_is_malformed_is_refused_with_the_way_out(sealed: Path, change: Change) -> None:
    rewrite(sealed, change)
    with pytest.raises(IntegrityError) as caught:
        read_provenance(sealed)
    assert "provenance.json" in (caught.value.hint or "")
    assert "\x1b" not in caught.value.message


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": NaN}', '{"format": 2, "format": 2}'])
def test_file_that_is_no_json_object_is_refused(sealed: Path, text: str) -> None:
    (sealed / "provenance.json").write_text(text)
    with pytest.raises(IntegrityError):
        read_provenance(sealed)


def test_refused_file_leaves_the_manifest_s_word(sealed: Path) -> None:
    (sealed / "provenance.json").write_text("{")
    assert unknown_origin(sealed).base == read_provenance(_without(sealed)).base


def _without(folder: Path) -> Path:
    (folder / "provenance.json").unlink()
    return folder


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner,
                                                                max_size=2),
    max_leaves=4,
)  # fmt: skip


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_change_is_refused_or_makes_a_card(sealed: Path, data: st.DataObject) -> None:
    said = provenance(sealed).to_json()
    place: Any = said
    for _ in range(data.draw(st.integers(1, 6))):
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else [0]))
        below = place[key]
        if not isinstance(below, dict | list) or not below or data.draw(st.booleans()):
            break
        place = below
    place[key if isinstance(place, dict) else 0] = data.draw(ANY)
    (sealed / "provenance.json").write_text(json.dumps(said))
    artifact = read_artifact(sealed)
    try:
        found = read_provenance(sealed)
    except IntegrityError:
        return
    assert card_text(artifact, found, "toy/animals@1").startswith("---\n")
