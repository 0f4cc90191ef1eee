"""Describe a dataset in Croissant 1.0, MLCommons' machine-readable metadata format (JSON-LD).

A plugin's rows come from code, not from a file. The described file is therefore one that
``trunkline datasets croissant`` can write at any time with identical bytes: one JSON object per
line, in the order of the rows' ids.
Specification: https://docs.mlcommons.org/croissant/docs/croissant-spec.html
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any

from trunkline.contracts import DatasetSpec, Row
from trunkline.data.split import PARTS, Split

CONFORMS_TO = "http://mlcommons.org/croissant/1.0"
NOT_PROVIDED = "NOT PROVIDED"
ROWS = "rows.jsonl"

_HISTORY = "the messages of a conversation before the text, as JSON; missing if there are none"
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
        dataset: the plugin's spec.
        split: the rows.
        fingerprint: of the rows; used as the identifier.
        day: of the description, by default today. It is also given as the date of publication,
            which the specification requires and a spec does not have.
    """
    url = _URL.search(dataset.source)
    given = any(row.split is not None for row in split.train)
    counts = ", ".join(f"{part} {len(getattr(split, part)):,}" for part in PARTS)
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
            f"{dataset.description}. Source: {dataset.source}. For {dataset.task}. Split "
            f"{'given by the dataset, ' if given else ''}by group: {dataset.grouping}. "
            f"Rows: {counts} (split {split.fingerprint}). When the source was published: "
            f"{NOT_PROVIDED}; the date here is that of the description."
        ),
        "license": dataset.license,
        "url": url[0].rstrip(".,;") if url else f"urn:sha256:{fingerprint}",
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
                    f"`trunkline datasets croissant {dataset.name} --rows {ROWS}` writes it, from "
                    "the rows before a recipe's own cleaning steps and settings."
                ),
                "contentUrl": ROWS,
                "encodingFormat": "application/jsonlines",
                "sha256": content.hexdigest(),
            }
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "rows",
                "name": "rows",
                "field": _fields(dataset, has_history=any(row.history for row in split.train)),
            }
        ],
    }


def row_lines(split: Split) -> Iterator[bytes]:
    """The lines of the described file."""
    rows = [(row, part) for part in PARTS for row in getattr(split, part)]
    for row, part in sorted(rows, key=lambda one: one[0].id):
        fields = {
            "id": row.id,
            "part": part,
            **_content(row),
            "target": row.target,
            "group": row.group,
            **({"history": _history(row)} if row.history else {}),
            **{f"slice_{name}": value for name, value in sorted(row.slices.items())},
        }
        yield f"{json.dumps(fields, ensure_ascii=False)}\n".encode()


def _content(row: Row) -> dict[str, str]:
    """The text, or the name and the digest of the picture."""
    if row.image is None:
        return {"text": row.text}
    return {"image": row.picture.name, "image_sha256": row.picture.sha256}


def _history(row: Row) -> str:
    messages = [{"role": one.role, "content": one.content} for one in row.history]
    return json.dumps(messages, ensure_ascii=False)


def _fields(dataset: DatasetSpec, *, has_history: bool) -> list[dict[str, Any]]:
    target = "sc:Float" if dataset.task == "regression" else "sc:Text"
    unit = f", in {dataset.unit}" if dataset.unit else ""
    return [
        _field("id", "stable name of the row", "sc:Text"),
        _field("part", f"one of {', '.join(PARTS)}", "sc:Text"),
        *(
            (
                _field("image", "name of the picture that the model reads", "sc:Text"),
                _field("image_sha256", "sha256 of the picture's file", "sc:Text"),
            )
            if dataset.modality == "image"
            else (_field("text", "what the model reads", "sc:Text"),)
        ),
        _field("target", f"the correct answer{unit}", target),
        _field("group", "rows of one group are always in the same part", "sc:Text"),
        *([_field("history", _HISTORY, "sc:Text")] if has_history else ()),
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
