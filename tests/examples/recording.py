"""What the examples of help texts and guides are recorded from, and what must run before them."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from examples.session import DEMO, URL, Session, rerun, shortened

ROOT = Path(__file__).resolve().parents[2]
HELP = ROOT / "platform" / "trunkline" / "cli" / "examples.json"
HELP_LINES = 20
PAGES = (
    "README.md",
    "docs/own-data.md",
    "docs/promotion.md",
    "docs/lineage.md",
    "docs/audit.md",
    "docs/moving.md",
    "docs/adapters-from-elsewhere.md",
    "docs/operators.md",
)

ASK = (
    f"curl -s -D - {URL}/v1/classify -H 'Content-Type: application/json' "
    '-d \'{"model": "finance/naics-sector", "input": "A bakery"}\''
)
RETRAIN = "trunkline train finance/naics-sector --set max_steps=20"
FIRST = 'trunkline adapters promote finance/naics-sector@1 --force --reason "the first"'
FORCE = 'trunkline adapters promote finance/naics-sector@2 --force --reason "a comparison"'
CANARY = (
    "trunkline adapters promote finance/naics-sector@2 --alias canary --force "
    '--reason "a trial beside the champion"'
)
KEYS = (
    "openssl ecparam -genkey -name prime256v1 -noout -out release.pem",
    "openssl ec -in release.pem -pubout -out release.pub",
)

BEFORE: dict[str, tuple[str, ...]] = {
    "trunkline adapters rollback finance/naics-sector": (FIRST, FORCE),
    "trunkline adapters unalias finance/naics-sector canary": (CANARY,),
    "trunkline requests list": (ASK,),
    "trunkline adapters sign": KEYS,
    "trunkline explain": (
        "trunkline base pull efficientnet-lite0",
        "trunkline train --data parts --name plant/parts --set num_train_epochs=6",
    ),
}
"""Beginning of an example's line → commands that must run before it and are not shown."""

PAGE_BEFORE: dict[str, tuple[str, ...]] = {
    "docs/promotion.md": (RETRAIN,),
    "docs/lineage.md": (
        "trunkline adapters promote finance/naics-sector@1",
        "trunkline serve",
        ASK,
    ),
}
"""Page → commands that run in its workspace before its own."""


def prepare(folder: Path) -> Path:
    """Copy the demo's workspace and add the files that examples read.

    Raises:
        FileNotFoundError: ``make demo`` has not run.
    """
    if not (DEMO / "registry.db").exists():
        raise FileNotFoundError(f"{DEMO} has no registry: run `make demo` first.")
    workspace = folder / "work"
    shutil.copytree(DEMO, workspace)
    (workspace / "notes.csv").write_text(
        "id,note\n1,Acute appendicitis\n2,Type 2 diabetes mellitus without complications\n"
        "3,Fracture of the left wrist\n",
        encoding="utf-8",
    )
    write_claims(workspace / "claims.csv")
    write_parts(workspace / "parts")
    write_guide_plugin(workspace / "trunkline-law")
    write_peft_folder(workspace / "adapters" / "retail" / "department" / "1", workspace)
    return workspace


def write_claims(file: Path) -> None:
    """Insurance claims of three categories, with a few faults that a check finds."""
    causes = {
        "water": ("Burst pipe", "Leaking roof", "Flooded basement", "Overflowing bath"),
        "fire": ("Kitchen fire", "Scorched wall", "Smoke in the hall", "Lightning strike"),
        "theft": ("Stolen bicycle", "Broken lock", "Missing jewelry", "Empty cash box"),
    }
    places = ("in Leeds", "on the ground floor", "at night", "near the garden", "last Monday")
    rows = [
        (f"{cause} {place}", category)
        for place in places
        for category, named in causes.items()
        for cause in named
    ]
    rows += [rows[7], ("", "water"), ("Burst pipe, call +44 113 496 0000", "water")]
    with file.open("w", encoding="utf-8", newline="") as lines:
        csv.writer(lines).writerows([("description", "category"), *rows])


def write_parts(folder: Path) -> None:
    """Drawings of nuts and plates at different places, a folder for each."""
    import random

    from PIL import Image, ImageDraw

    drawn = random.Random(0)
    for kind in ("nut", "plate"):
        (folder / kind).mkdir(parents=True)
        for number in range(16):
            picture = Image.new("RGB", (96, 96), (drawn.randrange(180, 220),) * 3)
            pen, x, y = ImageDraw.Draw(picture), drawn.randrange(10, 46), drawn.randrange(10, 46)
            box = (x, y, x + 40, y + 40)
            if kind == "nut":
                pen.ellipse(box, "dimgray")
                pen.ellipse((x + 13, y + 13, x + 27, y + 27), "white")
            else:
                pen.rectangle(box, "dimgray")
            picture.save(folder / kind / f"{number}.png")


def write_guide_plugin(folder: Path) -> None:
    """The smallest plugin of the guide, with a few rows, as a folder that pip installs."""
    page = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    blocks = dict(reversed(re.findall(r"```(toml|python)\n(.*?)```", page, re.DOTALL)))
    package = folder / "src" / "trunkline_law"
    package.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(blocks["toml"], encoding="utf-8")
    (package / "__init__.py").write_text(blocks["python"], encoding="utf-8")
    rows = [
        f"contract {number},Clause {number} on {kind},{kind}"
        for number in range(8)
        for kind in ("payment", "liability")
    ]
    (package / "clauses.csv").write_text("\n".join(["contract,text,kind", *rows, ""]))


def write_peft_folder(artifact: Path, workspace: Path) -> None:
    """A plain PEFT folder, as a trainer elsewhere leaves it: no manifest, no provenance."""
    folder = workspace / "away"
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(artifact / name, folder / name)


def record_help(folder: Path) -> Iterator[tuple[str, str]]:
    """Line → output of every example that commands declare, in the order of the session."""
    from trunkline.cli.examples import declared_examples

    with Session(prepare(folder)) as session:
        for _, example in declared_examples():
            run_before(session, example.line)
            output = session.run(example.line)
            keep_values(session, example.line, output)
            yield example.line, shortened(output, HELP_LINES)


def record_page(name: str, folder: Path) -> Iterator[tuple[str, str]]:
    """Old and new text of every block of commands on a page."""
    page = (ROOT / name).read_text(encoding="utf-8")
    with Session(prepare(folder)) as session:
        session.values["URL"] = URL
        for line in PAGE_BEFORE.get(name, ()):
            keep_values(session, line, session.run(line))
        yield from rerun(page, session, before=run_before, after=keep_values)


def run_before(session: Session, line: str) -> None:
    """Run what an example needs and does not show."""
    for beginning, commands in BEFORE.items():
        if line.startswith(beginning):
            for command in commands:
                keep_values(session, command, session.run(command))


def keep_values(session: Session, line: str, output: str) -> None:
    """Remember the ids and hashes that later lines name as shell variables."""
    for name, pattern in (
        ("KEY_ID", r"\btl-(\w{8})-"),
        ("REQUEST_ID", r"x-request-id: (\w+)"),
        ("HEAD", r"\b(\d+:[0-9a-f]{64})\b"),
        ("DIGEST", r"digest\s+(sha256:[0-9a-f]{64})"),
    ):
        if (match := re.search(pattern, output)) is not None:
            session.values[name] = match[1]


def recorded_help() -> dict[str, str]:
    """Line → output as ``--help`` shows it now."""
    stored = json.loads(HELP.read_text(encoding="utf-8"))
    return {line: "\n".join(output) for line, output in stored.items()}
