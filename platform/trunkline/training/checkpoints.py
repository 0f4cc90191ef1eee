"""Checkpoints of a training: sealed by a manifest, and used only if every file is as it was saved.

transformers writes a checkpoint file by file and ignores missing files when it resumes. A manifest
with the digest of every file, and of itself, is therefore written last. A checkpoint without one,
with another file or with a manifest that was changed is damaged: a resumed training goes back to an
earlier one.

transformers also draws the row order of an epoch from the global random state when the epoch begins
and can't draw it again later, so that state is stored in each checkpoint.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from trunkline.errors import IntegrityError, TrainingError
from trunkline.files import (
    canonical_json,
    indented_json,
    read_json_object,
    sha256_file,
    write_atomically,
)
from trunkline.training.distributed import processes, share

if TYPE_CHECKING:
    import torch

MANIFEST = "checkpoint.json"
_FORMAT = 1
_WEIGHTS = "adapter_model.safetensors"
_SAMPLER_STATE = "order.safetensors"
REQUIRED = (
    _WEIGHTS,
    _SAMPLER_STATE,
    "adapter_config.json",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
)
"""The files without which a resumed training would end with another adapter."""

_NAME = re.compile(r"checkpoint-([1-9][0-9]*)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint.

    Attributes:
        training: digest of everything that determines the training.
        step: optimizer steps before it.
        best_step: step of the best checkpoint up to then; None before the first validation.
        finished: no step follows: it is the last one, or early stopping ended the training.
    """

    folder: Path
    training: str
    step: int
    best_step: int | None
    finished: bool

    @property
    def best_folder(self) -> Path:
        """The folder of the best checkpoint; this one's own before the first validation."""
        return self.folder.parent / f"checkpoint-{self.best_step or self.step}"


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """Where a training can be resumed.

    Attributes:
        checkpoint: the newest one that leads to the adapter of an uninterrupted training; None if
            the training has to begin again.
        skipped: what is wrong with each newer one.
    """

    checkpoint: Checkpoint | None
    skipped: tuple[str, ...] = ()


def seal_checkpoint(
    folder: Path, *, training: str, step: int, best_step: int | None, finished: bool
) -> None:
    """Write the manifest of a checkpoint whose other files are complete.

    Args:
        folder: of the checkpoint.
        training: digest of everything that determines the training.
        step, best_step, finished: see :class:`Checkpoint`.
    """
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in sorted(folder.iterdir())
    }
    manifest = {
        "format": _FORMAT,
        "training": training,
        "step": step,
        "best_step": best_step,
        "finished": finished,
        "files": files,
    }
    sealed = {**manifest, "digest": _digest(manifest)}
    write_atomically(folder / MANIFEST, indented_json(sealed))


def _digest(manifest: Mapping[str, Any]) -> str:
    """sha256 over what a manifest says, apart from this digest."""
    stated = {name: value for name, value in manifest.items() if name != "digest"}
    return hashlib.sha256(canonical_json(stated)).hexdigest()


def read_checkpoint(folder: Path) -> Checkpoint:
    """Verify a checkpoint; nothing in it is loaded before.

    Raises:
        IntegrityError: a file is missing, foreign, or not as it was saved.
    """
    checkpoint, files = _read_manifest(folder)
    present = {path.name for path in folder.iterdir()} - {MANIFEST}
    for name in (*_required(), *files):
        if name not in present or name not in files:
            raise IntegrityError(f"{folder.name} has no {name}.")
    if foreign := sorted(present - set(files)):
        raise IntegrityError(f"{folder.name} holds {foreign[0]}, which was not saved with it.")
    for name, recorded in files.items():
        path = folder / name
        is_same = (
            isinstance(recorded, dict)
            and path.is_file()
            and not path.is_symlink()
            and path.stat().st_size == recorded.get("bytes")
            and sha256_file(path) == recorded.get("sha256")
        )
        if not is_same:
            raise IntegrityError(f"{name} of {folder.name} is not as it was saved.")
    return checkpoint


def _required() -> tuple[str, ...]:
    """The required files; several processes each have a random state of their own."""
    if (count := processes()) == 1:
        return REQUIRED
    states = [f"rng_state_{number}.pth" for number in range(count)]
    return (*(name for name in REQUIRED if name != "rng_state.pth"), *states)


def _read_manifest(folder: Path) -> tuple[Checkpoint, dict[str, Any]]:
    try:
        manifest = read_json_object(folder / MANIFEST)
    except OSError as error:
        raise IntegrityError(f"{folder.name} is incomplete: it has no {MANIFEST}.") from error
    step, best_step = manifest.get("step"), manifest.get("best_step")
    finished, files = manifest.get("finished"), manifest.get("files")
    training = manifest.get("training")
    if (
        manifest.get("format") == _FORMAT
        and isinstance(training, str)
        and _is_int(step)
        and folder.name == f"checkpoint-{step}"
        and (best_step is None or (_is_int(best_step) and 0 < best_step <= step))
        and isinstance(finished, bool)
        and isinstance(files, dict)
        and manifest.get("digest") == _digest(manifest)
    ):
        return Checkpoint(folder, training, step, best_step, finished), files
    raise IntegrityError(f"{MANIFEST} of {folder.name} is damaged or of another checkpoint.")


def _is_int(value: object) -> TypeGuard[int]:
    return type(value) is int


def find_resume_point(folder: Path, training: str | None = None) -> ResumePoint:
    """Find the newest checkpoint that can be resumed: it and its best checkpoint are complete.

    Args:
        folder: of the checkpoints.
        training: digest that the checkpoints must have; None: any.
    """
    skipped = []
    for path in reversed(_folders(folder)):
        try:
            checkpoint = read_checkpoint(path)
            best = checkpoint
            if checkpoint.best_folder != path:
                best = read_checkpoint(checkpoint.best_folder)
            if training is not None and {checkpoint.training, best.training} != {training}:
                raise IntegrityError(f"{path.name} is of a training with other inputs.")
        except (IntegrityError, OSError) as error:
            skipped.append(getattr(error, "message", str(error)).removesuffix("."))
        else:
            return ResumePoint(checkpoint, tuple(skipped))
    return ResumePoint(None, tuple(skipped))


def remove_checkpoints_after(folder: Path, checkpoint: Checkpoint | None) -> None:
    """Remove the checkpoints that are newer than the one to resume from; None: all."""
    for path in _folders(folder):
        if checkpoint is None or _step_of(path) > checkpoint.step:
            shutil.rmtree(path)


def remove_old_checkpoints(folder: Path) -> None:
    """Keep the newest two checkpoints and the best of each, so that one may be damaged."""
    paths = _folders(folder)
    keep = set(paths[-2:])
    for path in paths[-2:]:
        try:
            keep.add(_read_manifest(path)[0].best_folder)
        except IntegrityError:
            continue
    for path in paths:
        if path not in keep:
            shutil.rmtree(path, ignore_errors=True)


def _folders(folder: Path) -> list[Path]:
    """The folders of checkpoints, oldest first, complete or not."""
    if not folder.is_dir():
        return []
    folders = (path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
    return sorted((path for path in folders if _NAME.fullmatch(path.name)), key=_step_of)


def _step_of(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def load_weights(model: Any, folder: Path) -> None:
    """Load a checkpoint's adapter into a PEFT model.

    Raises:
        TrainingError: the checkpoint is damaged.
    """
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    try:
        read_checkpoint(folder)
    except (IntegrityError, OSError) as error:
        raise TrainingError(
            f"The best checkpoint can't be used: {getattr(error, 'message', error)}",
            "Check the disk, and train again.",
        ) from error
    weights = load_file(folder / _WEIGHTS, device=str(model.device))
    set_peft_model_state_dict(model, weights)


class ResumableSampler:
    """Yields row indices grouped by similar length, in random order that can be repeated.

    Args:
        lengths: of the examples, in tokens.
        rows: number of rows in one optimizer step.
    """

    def __init__(self, lengths: Sequence[int], rows: int) -> None:
        self._lengths, self._rows = list(lengths), rows
        self._epoch_state: torch.Tensor | None = None
        self._next_state: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        import torch
        from transformers.trainer_pt_utils import get_length_grouped_indices

        if self._next_state is not None:
            torch.set_rng_state(self._next_state)
            self._next_state = None
        self._epoch_state = share(torch.get_rng_state())
        if processes() > 1:
            torch.set_rng_state(self._epoch_state)
        return iter(get_length_grouped_indices(self._lengths, self._rows))

    def save(self, checkpoint: Path) -> None:
        """Store the random state from which the current epoch's order was drawn."""
        from safetensors.torch import save_file

        if self._epoch_state is not None:
            save_file({"begin": self._epoch_state}, checkpoint / _SAMPLER_STATE)

    def restore(self, checkpoint: Path) -> None:
        """Draw the next epoch's order as in the epoch in which ``checkpoint`` was saved."""
        from safetensors.torch import load_file

        self._next_state = load_file(checkpoint / _SAMPLER_STATE)["begin"]
