"""Record the outputs of all examples again, in copies of the workspace of ``make demo``."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from examples.recording import HELP, PAGES, ROOT, record_help, record_page


def main() -> None:
    from trunkline.cli.examples import format_outputs

    chosen = sys.argv[1:] or ["help", *PAGES]
    for name in chosen:
        print(name, file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            if name == "help":
                outputs = {line: text.splitlines() for line, text in record_help(Path(folder))}
                HELP.write_text(format_outputs(outputs), encoding="utf-8")
                continue
            page = (ROOT / name).read_text(encoding="utf-8")
            for old, new in record_page(name, Path(folder)):
                page = page.replace(f"```\n{old}\n```", f"```\n{new}\n```", 1)
            (ROOT / name).write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
