"""Callbacks that send a trainer's log to other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trunkline.errors import UsageError


def tensorboard_callback(folder: Path) -> Any:
    """Write the trainer's log into a folder for TensorBoard.

    Raises:
        UsageError: TensorBoard is not installed.
    """
    from transformers.integrations import TensorBoardCallback

    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UsageError(
            "--report-to tensorboard needs the package tensorboard.",
            "Run: pip install 'trunkline[tensorboard]'",
        ) from None
    return TensorBoardCallback(SummaryWriter(str(folder)))
