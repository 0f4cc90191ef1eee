"""A dataset in Croissant 1.0, MLCommons' description of datasets for machines (JSON-LD).

Owns: which of its terms say what of rows. Must not know: where the file is kept, models.

The rows come out of a plugin and not out of a file, so the file that is described is one that can
be made of them at any time, the same bytes each time: a JSON object a line, in the order of their
ids. Specification: https://docs.mlcommons.org/croissant/docs/croissant-spec.html
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any

from trunkline.contracts import DatasetSpec
from trunkline.data.split import PARTS, Split

CONFORMS_TO = "http://mlcommons.org/croissant/1.0"
NOT_PROVIDED = "NOT PROVIDED"
ROWS = "rows.jsonl"

_URL = re.compile(r"https?://[^\s<>\"')\]]+")
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}


def croissant_of(
    dataset: DatasetSpec, split: Split, fingerprint: str, day: date | None = None
) -> dict[str, Any]:
    """The Croissant object of a dataset as it was used.

    Args:
        dataset: what its plugin says of it.
        split: the rows.
        fingerprint: of the rows; stands as the identifier.
        day: of the description, by default today; stands as the date of publication, which the
            specification demands and which nobody has told.
    """
    said = _URL.search(dataset.source)
    counted = ", ".join(f"{part} {len(getattr(split, part)):,}" for part in PARTS)
    content = hashlib.sha256()
    for line in row_lines(split):
        content.update(line)
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS_TO,
        "name": dataset.name,
        "identifier": f"sha256:{fingerprint}",
        "description": (
            f"{dataset.description}. Source: {dataset.source}. For {dataset.task}. Split by "
            f"group: {dataset.grouping}. Rows: {counted} (split {split.fingerprint}). When the "
            f"source was published: {NOT_PROVIDED}; the date here is that of the description."
        ),
        "license": dataset.license,
        "url": said[0].rstrip(".,;") if said else f"urn:sha256:{fingerprint}",
        "datePublished": (day or datetime.now(UTC).date()).isoformat(),
        "creator": {"@type": "sc:Organization", "name": NOT_PROVIDED},
        "citeAs": NOT_PROVIDED,
        "isLiveDataset": False,
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": ROWS,
                "name": ROWS,
                "description": (
                    f"`trunkline datasets croissant {dataset.name} --rows {ROWS}` writes it, of "
                    "the rows before a recipe's own cleaning steps and settings."
                ),
                "contentUrl": ROWS,
                "encodingFormat": "application/jsonlines",
                "sha256": content.hexdigest(),
            }
        ],
        "recordSet": [
            {"@type": "cr:RecordSet", "@id": "rows", "name": "rows", "field": _fields(dataset)}
        ],
    }


def row_lines(split: Split) -> Iterator[bytes]:
    """The described file, line by line."""
    rows = [(row, part) for part in PARTS for row in getattr(split, part)]
    for row, part in sorted(rows, key=lambda one: one[0].id):
        told = {
            "id": row.id,
            "part": part,
            "text": row.text,
            "target": row.target,
            "group": row.group,
            **{f"slice_{name}": value for name, value in sorted(row.slices.items())},
        }
        yield f"{json.dumps(told, ensure_ascii=False)}\n".encode()


def _fields(dataset: DatasetSpec) -> list[dict[str, Any]]:
    target = "sc:Float" if dataset.task == "regression" else "sc:Text"
    unit = f", in {dataset.unit}" if dataset.unit else ""
    return [
        _field("id", "stable name of the row", "sc:Text"),
        _field("part", f"one of {', '.join(PARTS)}", "sc:Text"),
        _field("text", "what a model reads", "sc:Text"),
        _field("target", f"what it should answer{unit}", target),
        _field("group", "rows of one group are never divided between parts", "sc:Text"),
        *(_field(f"slice_{name}", f"the row's {name}", "sc:Text") for name in dataset.slices),
    ]


def _field(name: str, description: str, kind: str) -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": f"rows/{name}",
        "name": name,
        "description": description,
        "dataType": kind,
        "source": {"fileObject": {"@id": ROWS}, "extract": {"column": name}},
    }
