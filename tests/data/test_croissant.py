"""The Croissant file of a dataset against the specification's required terms."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import date
from typing import Any

import pytest

from toy_plugin import trunkline_datasets
from trunkline.contracts import DatasetSpec
from trunkline.data.croissant import croissant_of, row_lines
from trunkline.data.prepare import read_rows
from trunkline.data.split import Split, split_rows

DATASETS = {spec.name: spec for spec in trunkline_datasets()}
REQUIRED = ("@context", "@type", "conformsTo", "name", "description", "license", "url", "creator",
            "datePublished")  # fmt: skip
"""Of a dataset, by section "Dataset-level information" of the specification, version 1.0."""


def split_of(spec: DatasetSpec) -> Split:
    rows = read_rows(spec)
    return split_rows(rows, spec.task, seed=0, validation_share=0.2, test_share=0.2)


def described(spec: DatasetSpec) -> dict[str, Any]:
    return croissant_of(spec, split_of(spec), "f" * 64)


@pytest.fixture(params=list(DATASETS))
def spec(request: pytest.FixtureRequest) -> DatasetSpec:
    return DATASETS[request.param]


@pytest.mark.parametrize("term", REQUIRED)
def test_required_term_of_a_dataset_is_there(term: str) -> None:
    assert described(DATASETS["toy/animals"])[term]


def test_date_is_valid_and_described_as_that_of_the_description() -> None:
    description = described(DATASETS["toy/animals"])
    assert date.fromisoformat(description["datePublished"])
    assert "When the source was published: NOT PROVIDED" in description["description"]


def test_it_says_which_version_it_conforms_to() -> None:
    description = described(DATASETS["toy/animals"])
    assert description["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    assert description["@type"] == "sc:Dataset"


def test_file_object_has_its_required_terms(spec: DatasetSpec) -> None:
    (file,) = described(spec)["distribution"]
    assert file["@type"] == "cr:FileObject"
    for term in ("@id", "name", "contentUrl", "encodingFormat", "sha256"):
        assert file[term]


def test_every_field_has_a_type_and_a_source_that_exists(spec: DatasetSpec) -> None:
    description = described(spec)
    files = {file["@id"] for file in description["distribution"]}
    for field in description["recordSet"][0]["field"]:
        assert field["@type"] == "cr:Field"
        assert field["dataType"]
        assert field["source"]["fileObject"]["@id"] in files


def test_ids_are_used_once(spec: DatasetSpec) -> None:
    description = described(spec)
    sets = description["recordSet"]
    ids = [one["@id"] for one in (*description["distribution"], *sets, *sets[0]["field"])]
    assert len(set(ids)) == len(ids)


def test_terms_are_declared_in_the_context(spec: DatasetSpec) -> None:
    description = described(spec)
    for field in description["recordSet"][0]["field"]:
        assert {"dataType", "source"} <= description["@context"].keys() & field.keys()
    assert {"recordSet", "conformsTo", "citeAs"} <= description[
        "@context"
    ].keys() & description.keys()


def test_described_file_has_the_digest_in_the_description(spec: DatasetSpec) -> None:
    lines = b"".join(row_lines(split_of(spec)))
    digest = described(spec)["distribution"][0]["sha256"]
    assert hashlib.sha256(lines).hexdigest() == digest


def test_described_file_has_every_row_once_in_its_part(spec: DatasetSpec) -> None:
    split = split_of(spec)
    description = {(one := json.loads(line))["id"]: one["part"] for line in row_lines(split)}
    assert len(description) == len(split)
    assert all(description[row.id] == "test" for row in split.test)


def test_every_column_of_the_file_is_a_field(spec: DatasetSpec) -> None:
    columns = {
        field["source"]["extract"]["column"] for field in described(spec)["recordSet"][0]["field"]
    }
    for line in row_lines(split_of(spec)):
        assert json.loads(line).keys() == columns


def test_number_is_typed_as_one() -> None:
    fields = {
        one["name"]: one for one in described(DATASETS["toy/prices"])["recordSet"][0]["field"]
    }
    assert fields["target"]["dataType"] == "sc:Float"
    assert "EUR" in fields["target"]["description"]


def test_address_of_the_source_is_its_url() -> None:
    spec = replace(DATASETS["toy/animals"], source="Toys (https://example.org/toys), 1.0")
    assert described(spec)["url"] == "https://example.org/toys"


def test_without_an_address_the_url_names_the_bytes() -> None:
    description = described(DATASETS["toy/animals"])
    assert description["url"] == f"urn:sha256:{'f' * 64}"


def test_what_only_people_know_is_not_made_up() -> None:
    description = described(DATASETS["toy/animals"])
    assert description["creator"]["name"] == "NOT PROVIDED"
    assert description["citeAs"] == "NOT PROVIDED"
