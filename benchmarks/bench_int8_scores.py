"""The quality that int8 costs: test scores of adapters with the base in fp32 and in int8.

Needs the adapters of `make demo` (or --workspace); without them it says so and measures nothing.
`trunkline eval` evaluates each in a process of its own, on a copy of the workspace, on the
same test rows. Asserts nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import timing
from timing import title

DTYPES = ("fp32", "int8")
POINT = 0.01


def run_json(*arguments: str) -> Any:
    """The JSON that a command of trunkline prints."""
    command = [str(Path(sys.executable).with_name("trunkline")), *arguments, "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one adapter only")
    parser.add_argument("--workspace", default="demo")
    options = parser.parse_args()
    if not Path(options.workspace, "registry.db").exists():
        print("int8: there is no workspace with adapters here. Run `make demo` first.")
        return
    timing.say_where(None)
    title("Test scores with the base in fp32 and in int8 (target: half a point apart at most)")
    with tempfile.TemporaryDirectory() as folder:
        copy = str(shutil.copytree(options.workspace, Path(folder) / "workspace"))
        adapters = run_json("--workspace", copy, "adapters", "list")
        for adapter in adapters[: 1 if options.quick else None]:
            show(copy, adapter["adapter"])


def show(workspace: str, ref: str) -> None:
    """One adapter's deciding metric, in both."""
    reports = {
        dtype: run_json("--workspace", workspace, "--base-dtype", dtype, "eval", ref)[
            "evaluation_report"
        ]
        for dtype in DTYPES
    }
    metric, rows = reports["fp32"]["metric"], reports["fp32"]["rows"]
    values = [reports[dtype]["scores"][metric]["value"] for dtype in DTYPES]
    apart = (values[1] - values[0]) / POINT
    scores = ", ".join(f"{dtype} {value:.3f}" for dtype, value in zip(DTYPES, values, strict=True))
    print(f"  {ref:<32} {metric} of {rows:,} rows: {scores}; {apart:+.1f} points", flush=True)


if __name__ == "__main__":
    main()
