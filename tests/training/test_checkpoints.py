"""Which checkpoint counts, and the order of rows that it can repeat."""

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


def test_newest_counts_by_its_number(tmp_path: Path) -> None:
    checkpoint(tmp_path, 9)
    newest = checkpoint(tmp_path, 10)
    assert last_checkpoint(tmp_path) == newest
    assert step_of(newest) == 10


@pytest.mark.parametrize("state", ["{", "[]", "{}", "null", '{"global_step": "x"}'])
def test_torn_one_is_passed_over(tmp_path: Path, state: str) -> None:
    whole = checkpoint(tmp_path, 2)
    checkpoint(tmp_path, 4, state)
    assert last_checkpoint(tmp_path) == whole


def test_there_may_be_none(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path / "nowhere") is None


def test_order_holds_every_row_once() -> None:
    assert sorted(ResumableSampler(LENGTHS, 4)) == list(range(len(LENGTHS)))


def test_order_of_an_epoch_is_drawn_again(tmp_path: Path) -> None:
    order = ResumableSampler(LENGTHS, 4)
    list(order)
    second = list(order)
    order.save(tmp_path)
    torch.manual_seed(5)
    later = ResumableSampler(LENGTHS, 4)
    later.restore(tmp_path)
    assert list(later) == second
    assert list(later) != second


def test_checkpoint_without_an_order_is_no_error(tmp_path: Path) -> None:
    order = ResumableSampler(LENGTHS, 4)
    order.restore(tmp_path)
    assert len(list(order)) == len(LENGTHS)
