"""From a cold process to an answer, against the plain way with transformers and PEFT.

Needs the adapters of `make demo` (or --workspace and --adapter); without them it says so and
measures nothing. Prints medians of interleaved runs and ratios; asserts nothing.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import timing
from timing import Taken, interleaved, line, title

TEXT = "Type 2 diabetes mellitus with diabetic chronic kidney disease"

PLAIN_PEFT = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer
base, adapter, text = sys.argv[1:]
manifest = json.load(open(adapter + "/trunkline.json"))
labels = manifest["task"]["labels"]
tokenizer = AutoTokenizer.from_pretrained(base)
model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(labels))
model.config.pad_token_id = tokenizer.pad_token_id
model = PeftModel.from_pretrained(model, adapter).eval()
prompt = manifest["template"]["prompt"].replace("{text}", text)
with torch.inference_mode():
    logits = model(**tokenizer(prompt, return_tensors="pt")).logits
print(labels[int(logits.argmax())])
"""

LOAD = """
import os, sys, time
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging
logging.disable_progress_bar()
folder, gguf = sys.argv[1], sys.argv[2:]
options = {"gguf_file": gguf[0]} if gguf else {}
started = time.perf_counter()
AutoModelForCausalLM.from_pretrained(folder, **options)
AutoTokenizer.from_pretrained(folder, **options)
print(time.perf_counter() - started)
"""


def seconds(command: list[str]) -> float:
    """Wall seconds of a whole process."""
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def printed(command: list[str]) -> float:
    """The number that a process prints."""
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return float(done.stdout.decode().split()[-1])


def show(heading: str, taken: dict[str, Taken]) -> None:
    """Medians, and each over the last."""
    title(heading)
    last = list(taken.values())[-1].median
    for name, times in taken.items():
        line(name, times.median, f"{times.median / last:6.2f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one run of each")
    parser.add_argument("--workspace", default="demo")
    parser.add_argument("--adapter", default="medical/icd10-chapter")
    parser.add_argument("--gguf", type=Path, help="the base's GGUF, to compare loading with")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    if not Path(options.workspace, "registry.db").exists():
        print("Cold start: there is no workspace with adapters here. Run `make demo` first.")
        return
    runs = 1 if options.quick else options.runs

    import trunkline
    from trunkline.bases import DEFAULT_BASE, describe

    here = trunkline.open(options.workspace)
    version = here.resolve(options.adapter).version
    artifact = str(here.workspace.adapters / version.path)
    base = str(describe(DEFAULT_BASE).folder)
    ours = [str(Path(sys.executable).with_name("trunkline")), "--workspace", options.workspace]
    timing.say_where(None)
    print(f"{version.ref}, medians of {runs} interleaved runs")

    show(
        "Help from the shell",
        interleaved(
            {
                "trunkline --help": lambda: seconds([ours[0], "--help"]),
                "python -c 'import click'": lambda: seconds([sys.executable, "-c", "import click"]),
            },
            runs,
        ),
    )
    show(
        "One prediction from the shell, warm cache",
        interleaved(
            {
                "trunkline predict": lambda: seconds([*ours, "predict", options.adapter, TEXT]),
                "a script with transformers and PEFT": lambda: seconds(
                    [sys.executable, "-c", PLAIN_PEFT, base, artifact, TEXT]
                ),
            },
            runs,
        ),
    )
    load = [sys.executable, "-c", LOAD]
    loads = {"the converted base": lambda: printed([*load, base])}
    if options.gguf is not None:
        folder, name = str(options.gguf.parent), options.gguf.name
        loads["the GGUF it was converted from"] = lambda: printed([*load, folder, name])
    show("Weights and tokenizer into memory", interleaved(loads, min(3, runs)))

    here.predict(options.adapter, [TEXT])
    times = []
    for _ in range(20):
        started = time.perf_counter()
        here.predict(options.adapter, [TEXT])
        times.append(time.perf_counter() - started)
    title("A further request in the same process")
    line("trunkline", statistics.median(times))


if __name__ == "__main__":
    main()
