"""Write the table of the chart's values into docs/kubernetes.md, from the comments of values.yaml.

python tests/deploy/documented.py
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
VALUES = ROOT / "deploy" / "helm" / "trunkline" / "values.yaml"
PAGE = ROOT / "docs" / "kubernetes.md"
TABLE = re.compile(r"(?<=<!-- values -->\n).*?(?=<!-- end of values -->)", re.DOTALL)

_KEY = re.compile(r"( *)([A-Za-z]\w*):(.*)")


def described_values() -> Iterator[tuple[str, str]]:
    """Path of each value, such as ``base.name``, and the comment above it."""
    text = VALUES.read_text(encoding="utf-8")
    parents: list[tuple[int, str]] = []
    comment = ""
    for line in text.splitlines():
        if line.lstrip().startswith("# "):
            comment = line.strip()[2:]
            continue
        match = _KEY.fullmatch(line)
        if match is not None and (comment or not match[3].strip()):
            while parents and parents[-1][0] >= len(match[1]):
                parents.pop()
            parents.append((len(match[1]), match[2]))
            if comment:
                yield ".".join(name for _, name in parents), comment
        comment = ""


def table() -> str:
    """The values as a Markdown table with their defaults."""
    values = yaml.safe_load(VALUES.read_text(encoding="utf-8"))
    lines = ["| value | default | meaning |", "|---|---|---|"]
    for path, comment in described_values():
        default = values
        for name in path.split("."):
            default = default[name]
        shown = yaml.safe_dump(default, default_flow_style=True, width=1000).split("\n")[0]
        lines.append(f"| `{path}` | `{shown}` | {comment} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(TABLE.sub(lambda _: table(), page), encoding="utf-8")
