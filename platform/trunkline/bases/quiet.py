"""Silence for transformers while a base is converted or loaded.

Owns: turning its progress bars and warnings off, and back to what they were.
Must not know: what is loaded meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No bars and warnings of transformers inside; ``TRANSFORMERS_VERBOSITY`` has precedence."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    if not os.environ.get("TRANSFORMERS_VERBOSITY"):
        logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def quiet_gguf() -> Iterator[None]:
    """No bar from transformers' GGUF reader, which draws one whatever the logging says."""
    from transformers import modeling_gguf_pytorch_utils as reader

    loud: Any = reader.tqdm
    reader.tqdm = partial(loud, disable=True)
    try:
        yield
    finally:
        reader.tqdm = loud
