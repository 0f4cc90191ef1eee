"""Selection of checkpoints: complete or not used; and the row order that a resumed run repeats."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from trunkline.errors import IntegrityError, TrainingError
from trunkline.training.checkpoints import (
    MANIFEST,
    REQUIRED,
    ResumableSampler,
    find_resume_point,
    load_weights,
    read_checkpoint,
    remove_checkpoints_after,
    remove_old_checkpoints,
    seal_checkpoint,
)

LENGTHS = [3, 9, 4, 1, 7, 7, 2, 8, 5, 6]


def checkpoint(folder: Path, step: int, best: int | None = None, training: str = "t") -> Path:
    """A complete checkpoint whose files hold a few bytes."""
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    for name in (*REQUIRED, "README.md"):
        (path / name).write_bytes(f"{name} of {step}".encode())
    seal_checkpoint(path, training=training, step=step, best_step=best, finished=False)
    return path


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "removed": Path.unlink,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-2]),
    "emptied": lambda path: path.write_bytes(b""),
    "of the same size": flip_bit,
}


def test_newest_is_selected_by_step_number(tmp_path: Path) -> None:
    checkpoint(tmp_path, 9)
    newest = checkpoint(tmp_path, 10, best=9)
    point = find_resume_point(tmp_path)
    assert point.checkpoint is not None
    assert (point.checkpoint.folder, point.checkpoint.step) == (newest, 10)
    assert point.skipped == ()


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", [*REQUIRED, MANIFEST])
def test_checkpoint_with_a_damaged_file_is_skipped_and_named(
    tmp_path: Path, name: str, damage: str
) -> None:
    complete = checkpoint(tmp_path, 2)
    DAMAGE[damage](checkpoint(tmp_path, 4, best=2) / name)
    point = find_resume_point(tmp_path)
    assert point.checkpoint is not None
    assert point.checkpoint.folder == complete
    (problem,) = point.skipped
    assert "checkpoint-4" in problem
    assert name in problem


@pytest.mark.parametrize(
    "name",
    ["adapter_model.safetensors", "adapter_config.json", "optimizer.pt", "scheduler.pt",
     "rng_state.pth", "trainer_state.json", "order.safetensors"],
)  # fmt: skip
def test_checkpoint_that_was_saved_without_a_required_file_is_refused(
    tmp_path: Path, name: str
) -> None:
    """transformers resumes without such a file, and the adapter becomes another one."""
    path = checkpoint(tmp_path, 4)
    (path / name).unlink()
    (path / MANIFEST).unlink()
    seal_checkpoint(path, training="t", step=4, best_step=None, finished=False)
    with pytest.raises(IntegrityError, match=f"checkpoint-4 has no {name}"):
        read_checkpoint(path)


def test_checkpoint_without_its_best_one_is_skipped(tmp_path: Path) -> None:
    first, best = checkpoint(tmp_path, 2), checkpoint(tmp_path, 4, best=2)
    checkpoint(tmp_path, 6, best=4)
    flip_bit(best / "adapter_model.safetensors")
    point = find_resume_point(tmp_path)
    assert point.checkpoint is not None
    assert point.checkpoint.folder == first
    assert len(point.skipped) == 2


def test_foreign_file_in_a_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 2)
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(IntegrityError, match=r"pytorch_model\.bin, which was not saved"):
        read_checkpoint(folder)


def test_link_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 2)
    target = (folder / "optimizer.pt").rename(tmp_path / "elsewhere.pt")
    (folder / "optimizer.pt").symlink_to(target)
    with pytest.raises(IntegrityError, match=r"optimizer\.pt of checkpoint-2"):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"step": 5},
        {"step": True},
        {"best_step": 9},
        {"finished": 1},
        {"format": 2},
        {"files": []},
        {"training": None},
    ],
)
def test_manifest_of_another_form_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    folder = checkpoint(tmp_path, 4, best=4)
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | change))
    with pytest.raises(IntegrityError, match="checkpoint-4"):
        read_checkpoint(folder)


def test_renamed_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 4).rename(tmp_path / "checkpoint-6")
    with pytest.raises(IntegrityError, match="of another checkpoint"):
        read_checkpoint(folder)


def test_checkpoint_of_another_training_is_skipped(tmp_path: Path) -> None:
    checkpoint(tmp_path, 4, training="other")
    point = find_resume_point(tmp_path, "this")
    assert point.checkpoint is None
    assert "other inputs" in point.skipped[0]


def test_checkpoint_whose_best_one_is_of_another_training_is_skipped(tmp_path: Path) -> None:
    checkpoint(tmp_path, 2, training="other")
    checkpoint(tmp_path, 4, best=2)
    assert find_resume_point(tmp_path, "t").checkpoint is None


def test_weights_of_a_damaged_checkpoint_are_not_loaded(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 4)
    flip_bit(folder / "adapter_model.safetensors")
    with pytest.raises(TrainingError, match="best checkpoint can't be used"):
        load_weights(None, folder)


def test_folder_without_checkpoints(tmp_path: Path) -> None:
    assert find_resume_point(tmp_path / "nowhere").checkpoint is None
    (tmp_path / "checkpoint-x").mkdir()
    (tmp_path / "checkpoint-7").write_text("a file")
    assert find_resume_point(tmp_path).skipped == ()


def test_two_newest_checkpoints_and_their_best_are_kept(tmp_path: Path) -> None:
    for step, best in ((2, 2), (4, 4), (6, 4), (8, 8), (10, 8)):
        checkpoint(tmp_path, step, best)
    remove_old_checkpoints(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-8", "checkpoint-10"}
    checkpoint(tmp_path, 12, 8)
    remove_old_checkpoints(tmp_path)
    kept = {"checkpoint-8", "checkpoint-10", "checkpoint-12"}
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_checkpoints_after_the_one_resumed_are_removed(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        checkpoint(tmp_path, step)
    remove_checkpoints_after(tmp_path, read_checkpoint(tmp_path / "checkpoint-4"))
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-2", "checkpoint-4"}
    remove_checkpoints_after(tmp_path, None)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------ row order


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


def test_checkpoint_without_a_row_order_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ResumableSampler(LENGTHS, 4).restore(tmp_path)


@pytest.mark.parametrize(
    "change", [{"finished": True}, {"best_step": 2}, {"best_step": None}, {"training": "u"}]
)
def test_checkpoint_with_an_edited_manifest_is_skipped(
    tmp_path: Path, change: dict[str, object]
) -> None:
    first = checkpoint(tmp_path, 2)
    newest = checkpoint(tmp_path, 4, best=4)
    manifest = json.loads((newest / MANIFEST).read_text())
    (newest / MANIFEST).write_text(json.dumps({**manifest, **change}))
    point = find_resume_point(tmp_path)
    assert point.checkpoint is not None
    assert point.checkpoint.folder == first
    assert f"{MANIFEST} of checkpoint-4 is damaged" in point.skipped[0]
