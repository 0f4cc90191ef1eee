"""Malformed names for tests of every entry point, and the contents of a workspace."""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import closing
from pathlib import Path

from trunkline.registry.registry import Registry

REFS = {
    "climbing": "../x",
    "climbing from a domain": "toy/../x",
    "climbing twice": "../../etc/passwd",
    "absolute": "/etc/passwd",
    "home": "~root/x",
    "backslash": "toy\\animals",
    "backslash in a name": "toy/a\\b",
    "drive": "c:/x",
    "encoded": "%2e%2e/x",
    "encoded in a name": "toy/%2e%2e",
    "encoded twice": "toy/%252e%252e",
    "encoded slash": "toy%2fanimals",
    "NUL": "toy/animals\0",
    "NUL in front": "\0toy/animals",
    "newline": "toy/animals\n",
    "newline inside": "toy/ani\nmals",
    "carriage return": "toy/animals\r",
    "tab": "toy/\tanimals",
    "space": "toy/animals ",
    "300 characters": "toy/" + "x" * 300,
    "300 characters of domain": "x" * 300 + "/animals",
    "Cyrillic o": "t\u043ey/animals",
    "full-width a": "toy/\uff41nimals",
    "long s": "toy/animal\u017f",
    "dotless i": "toy/an\u0131mals",
    "other digits": "toy/animals@\u0661",
    "superscript": "toy/animals@\u00b2",
    "zero width": "toy/ani\u200bmals",
    "right to left": "toy/\u202eslamina",
    "combining": "toy/anima\u0301ls",
    "upper case": "TOY/ANIMALS",
    "domain by case": "Toy/animals",
    "name by case": "toy/Animals",
    "alias by case": "toy/animals@Champion",
    "reserved latest": "toy/animals@latest",
    "reserved base": "toy/animals@base",
    "reserved v1": "toy/animals@v1",
    "number zero": "toy/animals@0",
    "number with zero": "toy/animals@01",
    "number with sign": "toy/animals@+1",
    "number too large": "toy/animals@9999999999",
    "half a digest": "toy/animals@sha256:0f",
    "digest by case": "toy/animals@SHA256:" + "0" * 64,
    "two selectors": "toy/animals@champion@1",
    "empty selector": "toy/animals@",
    "selector of a path": "toy/animals@../1",
    "no name": "toy",
    "empty name": "toy/",
    "empty domain": "/animals",
    "two slashes": "toy//animals",
    "three parts": "toy/animals/1",
    "dot": ".",
    "dots": "..",
    "hidden": "toy/.hidden",
    "digit first": "toy/1animals",
    "wildcard": "toy/*",
    "SQL": "toy/animals' OR '1'='1",
    "format": "toy/{0.__class__}",
    "shell": "toy/$(touch x)",
    "nothing": "",
}  # fmt: skip
"""Problem → a ref that is refused."""

ALIASES = {
    "climbing": "../x",
    "slash": "a/b",
    "number": "3",
    "reserved latest": "latest",
    "reserved base": "base",
    "reserved v3": "v3",
    "upper case": "Canary",
    "Cyrillic a": "c\u0430nary",
    "NUL": "canary\0",
    "newline": "canary\n",
    "41 characters": "a" * 41,
    "encoded": "%2e%2e",
    "nothing": "",
}


def contents(folder: Path) -> dict[str, str]:
    """Path → digest of everything below a folder; for a registry, of the rows of its tables."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.name == "registry.db":
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
                dump = "\n".join(database.iterdump())
            digests[name] = hashlib.sha256(dump.encode()).hexdigest()
        elif path.is_symlink():
            digests[name] = f"link to {path.readlink()}"
        elif path.is_file() and not path.name.startswith("registry.db-"):
            digests[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.is_dir():
            digests[name] = "folder"
    return digests


def record_base(registry: Registry, digest: str, name: str = "tiny") -> None:
    """Record a base; only its digest matters."""
    registry.sources.record_base(
        digest=digest, name=name, source="a test", architecture="Llama", parameters=1, dtype="F32"
    )
