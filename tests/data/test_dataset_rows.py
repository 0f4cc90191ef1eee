"""Data sets of the library `datasets`: saved folders, and the hub by way of a local one."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from trunkline.data.columns import DataFiles
from trunkline.data.readers import dataset_rows, digest_of, open_texts, read_columns, read_rows
from trunkline.errors import DataError, NotFoundError, UsageError

FEATURES = Features(
    {
        "body": Value("string"),
        "kind": ClassLabel(names=["home", "car"]),
        "price": Value("float32"),
        "rate": Value("float64"),
        "count": Value("int64"),
        "open": Value("bool"),
        "chat": List({"role": Value("string"), "content": Value("string")}),
        "old": {"from": List(Value("string")), "value": List(Value("string"))},
    }
)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def claims(count: int = 12, start: int = 0) -> Dataset:
    """Rows with a column of each kind."""
    rows = [
        {
            "body": f"claim {number}",
            "kind": number % 2,
            "price": number / 10,
            "rate": number / 10,
            "count": number,
            "open": number % 2 == 0,
            "chat": [
                {"role": "user", "content": f"claim {number}?"},
                {"role": "assistant", "content": "yes"},
            ],
            "old": {"from": ["human", "gpt"], "value": [f"claim {number}?", "yes"]},
        }
        for number in range(start, start + count)
    ]
    return Dataset.from_list(rows, features=FEATURES)


def saved(path: Path, data: Any) -> Path:
    data.save_to_disk(str(path))
    return path


def three_parts() -> DatasetDict:
    return DatasetDict({"train": claims(), "validation": claims(3, 20), "test": claims(4, 30)})


# --------------------------------------------------------------------------------- saved folders


def test_values_are_texts_as_they_are(tmp_path: Path) -> None:
    path = saved(tmp_path / "claims", claims())
    texts = ["body", "kind", "price", "rate", "count", "open"]
    row = list(read_rows(path, texts, nested=["chat", "old"]))[3]
    assert dict(row.values) == {
        "body": "claim 3", "kind": "car", "price": "0.3", "rate": "0.3", "count": "3",
        "open": "false",
    }  # fmt: skip
    assert row.nested["chat"][1] == {"role": "assistant", "content": "yes"}
    assert row.nested["old"][0] == {"from": "human", "value": "claim 3?"}
    assert row.place == "Row 4 of claims"
    assert read_columns(path) == tuple(FEATURES)


@settings(max_examples=20, deadline=None)
@given(texts=st.lists(st.none() | st.text(max_size=8), min_size=1, max_size=5))
def test_texts_and_missing_ones_stay(
    texts: list[str | None], tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = Dataset.from_dict({"body": texts}, features=Features({"body": Value("string")}))
    path = saved(tmp_path_factory.mktemp("texts") / "rows", rows)
    assert [row.values["body"] for row in read_rows(path)] == texts


def test_labels_in_lists_are_read_as_their_names(tmp_path: Path) -> None:
    color = ClassLabel(names=["red", "green"])
    span = {"start": Value("int32"), "end": Value("int32"), "label": color}
    features = Features({"text": Value("string"), "colors": List(color), "spans": List(span)})
    rows = {
        "text": ["a red shirt"],
        "colors": [[1, 0]],
        "spans": [[{"start": 2, "end": 5, "label": 0}]],
    }
    Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "shirts")
    file = str(tmp_path / "shirts")
    assert [row.target for row in DataFiles(file=file, labels="colors").rows()] == [
        ("green", "red")
    ]
    assert [row.target for row in DataFiles(file=file, spans="spans").rows()] == [((2, 5, "red"),)]


def test_half_precision_is_written_as_short_as_it_can_be(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "rate": Value("float16")})
    rows = Dataset.from_dict({"text": ["a"], "rate": [0.1]}, features=features)
    rows.save_to_disk(tmp_path / "rates")
    assert [row["rate"] for row in read_rows(tmp_path / "rates", ["rate"])] == ["0.1"]


def test_label_that_is_not_known_is_missing(tmp_path: Path) -> None:
    rows = Dataset.from_list([{"kind": -1}, {"kind": 0}], features=Features({
        "kind": FEATURES["kind"],
    }))  # fmt: skip
    path = saved(tmp_path / "rows", rows)
    assert [row.values["kind"] for row in read_rows(path)] == [None, "home"]


@pytest.mark.parametrize("column", ["chat", "old"])
def test_lists_are_no_texts(tmp_path: Path, column: str) -> None:
    path = saved(tmp_path / "claims", claims())
    with pytest.raises(DataError, match=rf"Row 1 of claims has .* in '{column}', not a text"):
        list(read_rows(path, [column]))


def test_data_set_without_splits_is_divided_like_a_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "claims", claims())
    files = DataFiles(file=str(path), text="body", label="kind")
    rows = list(files.rows())
    assert [row.id for row in rows] == [str(number) for number in range(1, 13)]
    assert {row.split for row in rows} == {None}
    assert [row.target for row in rows][:2] == ["home", "car"]
    single = saved(tmp_path / "single", DatasetDict({"all": claims()}))
    assert {row.split for row in DataFiles(file=str(single), text="body", label="kind").rows()} \
        == {None}  # fmt: skip


def test_splits_are_the_official_split(tmp_path: Path) -> None:
    path = saved(tmp_path / "claims", three_parts())
    files = DataFiles(file=str(path), text="body", target="rate")
    rows = list(files.rows())
    assert [row.split for row in rows] == ["train"] * 12 + ["validation"] * 3 + ["test"] * 4
    assert rows[12].id == "validation/1"
    source = files.dataset("own/claims").source
    for part in ("train", "validation", "test"):
        assert f"claims/{part} (sha256 {digest_of(path / part)})" in source


def test_further_splits_are_left_out_and_names_are_those_of_a_column(tmp_path: Path) -> None:
    parts = {"training": claims(), "TEST": claims(3, 20), "unsupervised": claims(3, 30)}
    path = saved(tmp_path / "claims", DatasetDict(parts))
    rows = list(DataFiles(file=str(path), text="body", label="kind").rows())
    assert [row.split for row in rows] == ["train"] * 12 + ["test"] * 3


@pytest.mark.parametrize(
    ("names", "part"),
    [
        (("train", "validation"), "none for test"),
        (("test", "dev"), "none for train"),
        (("train", "test", "dev", "val"), "two splits for validation"),
    ],
)
def test_incomplete_splits_are_refused(tmp_path: Path, names: tuple[str, ...], part: str) -> None:
    path = saved(tmp_path / "claims", DatasetDict(dict.fromkeys(names, claims(3))))
    with pytest.raises(DataError, match=part) as caught:
        list(DataFiles(file=str(path), text="body", label="kind").rows())
    assert caught.value.hint


def test_options_that_do_not_apply_are_refused(tmp_path: Path) -> None:
    divided, one = saved(tmp_path / "parts", three_parts()), saved(tmp_path / "one", claims())
    for fields in ({"split": "body"}, {"test": str(one)}):
        with pytest.raises(UsageError, match="holds the splits train, validation, test"):
            list(DataFiles(file=str(divided), text="body", label="kind", **fields).rows())
    with pytest.raises(UsageError, match="apply to text files"):
        list(DataFiles(file=str(one), text="body", label="kind", encoding="cp1252").rows())
    with pytest.raises(NotFoundError, match="'bdy'"):
        list(DataFiles(file=str(one), text="bdy", label="kind").rows())
    for name in (str(one), "hf:owner/name"):
        with pytest.raises(UsageError, match=name):
            open_texts(Path(name), "body", skip_empty=True)


def test_two_folders_are_two_parts(tmp_path: Path) -> None:
    one, two = saved(tmp_path / "one", claims()), saved(tmp_path / "two", claims(3, 20))
    files = DataFiles(file=str(one), test=str(two), text="body", label="kind")
    assert [row.split for row in files.rows()] == ["train"] * 12 + ["test"] * 3


def test_digest_follows_the_rows_and_the_labels(tmp_path: Path) -> None:
    one, same = saved(tmp_path / "one", claims()), saved(tmp_path / "same", claims())
    other = saved(tmp_path / "other", claims(11))
    renamed = claims().cast_column("kind", ClassLabel(names=["a", "b"]))
    digests = [digest_of(path) for path in (one, same, other, saved(tmp_path / "new", renamed))]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: (path / "data-00000-of-00001.arrow").unlink(),
        lambda path: (path / "state.json").write_text("{"),
        lambda path: (path / "dataset_info.json").write_text("[]"),
        lambda path: (path / "dataset_dict.json").write_text("{}"),
    ],
)
def test_damaged_folder_is_refused(tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    path = saved(tmp_path / "claims", claims())
    damage(path)
    with pytest.raises(DataError, match="'claims' can't be read") as caught:
        list(DataFiles(file=str(path), text="body", label="kind").rows())
    assert caught.value.hint


def test_missing_library_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "claims", claims())
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError) as caught:
        list(DataFiles(file=str(path), text="body", label="kind").rows())
    assert caught.value.hint == "Run: pip install 'trunkline[hub]'"


# ------------------------------------------------------------------------------------------ hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """A hub that is a folder, which the library loads; gives its calls."""
    root = tmp_path / "hub" / "owner" / "claims"
    root.mkdir(parents=True)
    for part, rows in {"train": 12, "test": 4}.items():
        lines = [json.dumps({"body": f"{part} {n}", "price": n / 10}) for n in range(rows)]
        (root / f"{part}.jsonl").write_text("\n".join(lines))
    calls: list[tuple[Any, ...]] = []
    load = datasets.load_dataset

    def load_from_folder(name: str, config: str | None, *, revision: str | None) -> Any:
        calls.append((name, config, revision))
        folder = tmp_path / "hub" / name
        if not folder.exists():
            raise ConnectionError("Couldn't reach the Hub")
        return load(str(folder), cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", load_from_folder)
    monkeypatch.chdir(tmp_path)
    dataset_rows._load_hub.cache_clear()
    return calls


def test_data_set_of_the_hub_is_loaded_once_with_its_revision(
    hub: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    files = DataFiles(file="hf:owner/claims@v1.0", text="body", target="price")
    rows = list(files.rows())
    assert [row.split for row in rows] == ["train"] * 12 + ["test"] * 4
    assert rows[3].target == 0.3
    source = files.dataset("own/claims").source
    assert "hf:owner/claims@v1.0#train (sha256 " in source
    assert hub == [("owner/claims", None, "v1.0")]
    for moved in (files.below(tmp_path), files.absolute(), files.seen_from(tmp_path)):
        assert moved == files


def test_configuration_is_the_third_part(hub: list[tuple[Any, ...]]) -> None:
    list(DataFiles(file="hf:owner/claims/en", text="body", target="price").rows())
    assert hub == [("owner/claims", "en", None)]


@pytest.mark.parametrize("name", ["hf:claims", "hf:", "hf:a/b/c/d", "hf:a/b@", "hf:../b c"])
def test_malformed_name_is_refused(hub: list[tuple[Any, ...]], name: str) -> None:
    with pytest.raises(UsageError, match="does not name a data set of the hub"):
        list(DataFiles(file=name, text="body", target="price").rows())
    assert not hub


def test_unreachable_hub_is_one_sentence(hub: list[tuple[Any, ...]]) -> None:
    with pytest.raises(DataError, match="hf:owner/other can't be loaded: Couldn't reach") as caught:
        list(DataFiles(file="hf:owner/other", text="body", target="price").rows())
    assert "network" in str(caught.value.hint)


def test_folder_of_the_same_name_is_not_taken_for_the_hub(
    hub: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    shutil.copytree(tmp_path / "hub" / "owner", tmp_path / "owner")
    with pytest.raises(UsageError, match="instead of the hub"):
        list(DataFiles(file="hf:owner/claims", text="body", target="price").rows())
