"""``provenance.json`` is validated on every read: it is well-formed, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from origins import provenance
from trunkline.adapters.artifact import read_artifact
from trunkline.adapters.card import render_card
from trunkline.adapters.provenance import (
    Provenance,
    manifest_provenance,
    read_provenance,
    write_provenance,
)
from trunkline.errors import IntegrityError

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def sealed(artifact: Path) -> Path:
    """A valid artifact with its provenance."""
    write_provenance(artifact, provenance(artifact))
    return artifact


def read(folder: Path) -> Provenance:
    return read_provenance(read_artifact(folder))


def rewrite(folder: Path, change: Change) -> None:
    path = folder / "provenance.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_written_provenance_is_read_back(sealed: Path) -> None:
    assert read(sealed) == provenance(sealed)


def test_file_is_not_part_of_the_identity(sealed: Path) -> None:
    before = read_artifact(sealed).digest
    rewrite(sealed, lambda data: data["run"].update(seed=3))
    assert read_artifact(sealed).digest == before


def test_manifest_is_used_when_there_is_no_file(artifact: Path) -> None:
    read_back = read(artifact)
    assert read_back.run is None
    assert read_back.dataset is not None
    assert (read_back.dataset.name, read_back.dataset.license) == ("toy/animals", "unknown")
    assert read_back.base.name == "tiny"
    modified = datetime.fromtimestamp((artifact / "trunkline.json").stat().st_mtime, UTC)
    assert read_back.version.created == modified


def test_transfer_keeps_the_original_number_of_the_run(artifact: Path) -> None:
    at = datetime(2026, 1, 2, tzinfo=UTC)
    before = provenance(artifact)
    after = before.with_transfer(run=40, origin="toy/animals@1", by="system:ada", at=at)
    assert after.run is not None
    assert after.run.number == 40
    assert before.run is not None
    transfers = [(transfer.origin, transfer.run) for transfer in after.transfers]
    assert transfers == [("toy/animals@1", 7)]


def test_transfers_are_read_back(artifact: Path) -> None:
    at = datetime(2026, 1, 2, tzinfo=UTC)
    moved = provenance(artifact).with_transfer(run=4, origin="toy/animals", by="system:ada", at=at)
    write_provenance(artifact, moved)
    assert read(artifact) == moved


def test_values_that_json_lacks_are_converted(artifact: Path) -> None:
    before = provenance(artifact)
    assert before.run is not None
    odd = {"a": float("nan"), "b": ("x\x1b[2J",), "c": Path("p")}
    run = before.run.model_copy(update={"settings": odd})
    write_provenance(artifact, before.model_copy(update={"run": run}))
    read_back = read(artifact)
    assert read_back.run is not None
    assert read_back.run.settings == {"a": None, "b": ["x\ufffd[2J"], "c": "p"}


REFUSED: dict[str, Change] = {
    "a later format": lambda data: data.update(format=2),
    "an unknown key": lambda data: data.update(extra=1),
    "an unknown key in a section": lambda data: data["base"].update(extra=1),
    "no version": lambda data: data.pop("version"),
    "another base": lambda data: data["base"].update(digest="sha256:" + "0" * 64),
    "another task": lambda data: data["version"].update(task="regression"),
    "another dataset fingerprint": lambda data: data["dataset"].update(fingerprint="other"),
    "a run without data": lambda data: data.update(dataset=None),
    "evaluations without a run": lambda data: data.update(run=None),
    "a number that is true": lambda data: data["run"].update(number=True),
    "a number below one": lambda data: data["run"].update(number=0),
    "a number too large": lambda data: data["run"].update(number=2**31),
    "a seed that is text": lambda data: data["run"].update(seed="1"),
    "an unknown status": lambda data: data["run"].update(status="great"),
    "a recipe that is a path": lambda data: data["run"].update(recipe="../../etc/passwd"),
    "a recipe with a selector": lambda data: data["run"].update(recipe="toy/animals@1"),
    "a time without a zone": lambda data: data["run"].update(started="2026-01-01T00:00:00"),
    "a time that is no time": lambda data: data["version"].update(created="soon"),
    "a time out of range": lambda data: data["version"].update(created="0001-01-01T00:00:00+14:00"),
    "a NUL": lambda data: data["dataset"].update(license="MIT\0"),
    "an escape sequence": lambda data: data["run"]["settings"].update(x="\x1b[2J"),
    "an escape sequence as a key": lambda data: data["run"]["report"].update({"\x1b[2J": 1}),
    "a text with a direction override": lambda data: data["base"].update(name="a\u202eb"),
    "settings that are a list": lambda data: data["run"].update(settings=[]),
    "evaluations that are no list": lambda data: data.update(evaluations={}),
    "a score that is text": lambda data: data["evaluations"][0]["results"]["scores"].update(
        accuracy={"value": "1"}
    ),
    "a score too large": lambda data: data["evaluations"][0]["results"]["scores"].update(
        accuracy={"value": 10**400}
    ),
    "a slice without a score": lambda data: data["evaluations"][0]["results"].update(
        slices=[{"slice": "a", "value": "b", "rows": 1}]
    ),
    "a verdict that is no text": lambda data: data["evaluations"][0]["results"].update(verdict=[]),
    "settings nested too deeply": lambda data: data["run"]["settings"].update(
        x=json.loads("[" * 40 + "]" * 40)
    ),
}


@pytest.mark.parametrize("change", REFUSED.values(), ids=REFUSED)
def test_malformed_provenance_is_refused_with_a_hint(sealed: Path, change: Change) -> None:
    rewrite(sealed, change)
    with pytest.raises(IntegrityError) as caught:
        read(sealed)
    assert str(sealed / "provenance.json") in caught.value.message
    assert "provenance.json" in (caught.value.hint or "")
    assert "\x1b" not in caught.value.message
    assert "\n" not in caught.value.message


def test_error_names_the_field_and_its_value(sealed: Path) -> None:
    rewrite(sealed, lambda data: data["run"].update(number="1"))
    with pytest.raises(IntegrityError, match=r"run\.number is '1': input should be a valid int"):
        read(sealed)


def test_error_names_a_score_within_the_results(sealed: Path) -> None:
    rewrite(sealed, REFUSED["a score that is text"])
    with pytest.raises(IntegrityError, match=r"evaluations\.0\.results.*scores\.accuracy\.value"):
        read(sealed)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": NaN}', '{"format": 1, "format": 1}'])
def test_file_without_a_json_object_is_refused(sealed: Path, text: str) -> None:
    (sealed / "provenance.json").write_text(text)
    with pytest.raises(IntegrityError):
        read(sealed)


def test_manifest_can_be_used_when_the_file_is_refused(sealed: Path) -> None:
    (sealed / "provenance.json").write_text("{")
    fallback = manifest_provenance(read_artifact(sealed))
    (sealed / "provenance.json").unlink()
    assert fallback == read(sealed)


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
def test_any_change_is_refused_or_yields_a_card(sealed: Path, data: st.DataObject) -> None:
    content = provenance(sealed).to_json()
    place: Any = content
    for _ in range(data.draw(st.integers(1, 6))):
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else [0]))
        child = place[key]
        if not isinstance(child, dict | list) or not child or data.draw(st.booleans()):
            break
        place = child
    place[key if isinstance(place, dict) else 0] = data.draw(ANY)
    (sealed / "provenance.json").write_text(json.dumps(content))
    artifact = read_artifact(sealed)
    try:
        read_back = read_provenance(artifact)
    except IntegrityError:
        return
    assert render_card(artifact, read_back, "toy/animals@1").startswith("---\n")
