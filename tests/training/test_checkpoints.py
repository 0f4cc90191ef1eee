"""Selection of checkpoints, and the row order that a resumed run repeats."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from trunkline.training.checkpoints import ResumableSampler, last_checkpoint, step_of

LENGTHS = [3, 9, 4, 1, 7, 7, 2, 8, 5, 6]


def checkpoint(folder: Path, step: int, state: str | None = None) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "trainer_state.json").write_text(state or json.dumps({"global_step": step}))
    return path


def test_newest_is_selected_by_step_number(tmp_path: Path) -> None:
    checkpoint(tmp_path, 9)
    newest = checkpoint(tmp_path, 10)
    assert last_checkpoint(tmp_path) == newest
    assert step_of(newest) == 10


@pytest.mark.parametrize("state", ["{", "[]", "{}", "null", '{"global_step": "x"}'])
def test_incomplete_checkpoint_is_skipped(tmp_path: Path, state: str) -> None:
    complete = checkpoint(tmp_path, 2)
    checkpoint(tmp_path, 4, state)
    assert last_checkpoint(tmp_path) == complete


def test_folder_without_checkpoints(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path / "nowhere") is None


def test_every_row_is_sampled_once() -> None:
    assert sorted(ResumableSampler(LENGTHS, 4)) == list(range(len(LENGTHS)))


def test_order_of_an_epoch_is_repeated(tmp_path: Path) -> None:
    sampler = ResumableSampler(LENGTHS, 4)
    list(sampler)
    second = list(sampler)
    sampler.save(tmp_path)
    torch.manual_seed(5)
    later = ResumableSampler(LENGTHS, 4)
    later.restore(tmp_path)
    assert list(later) == second
    assert list(later) != second


def test_checkpoint_without_sampler_state_is_accepted(tmp_path: Path) -> None:
    sampler = ResumableSampler(LENGTHS, 4)
    sampler.restore(tmp_path)
    assert len(list(sampler)) == len(LENGTHS)
