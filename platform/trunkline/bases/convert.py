"""Convert a GGUF file into a folder that plain transformers loads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from trunkline.bases.load import quiet_transformers
from trunkline.errors import BaseModelError, one_line


def convert_gguf(file: Path, folder: Path) -> None:
    """Write weights (fp32 safetensors), tokenizer, chat template and configs into ``folder``.

    Takes about twenty seconds for 135 million parameters, and memory for two fp32 copies.

    Raises:
        BaseModelError: transformers can't read the file.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    try:
        with quiet_transformers(), _quiet_gguf():
            tokenizer = AutoTokenizer.from_pretrained(**source, local_files_only=True)
            loaded = AutoModelForCausalLM.from_pretrained(
                **source, dtype=torch.float32, local_files_only=True
            )
            config = loaded.config
            # transformers treats a model from GGUF as quantized and refuses to save it, so its
            # tensors are moved into a plain model of the same config.
            if hasattr(config, "quantization_config"):
                del config.quantization_config
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            model.load_state_dict(loaded.state_dict())
            model.generation_config = loaded.generation_config
            model.generation_config.pad_token_id = tokenizer.pad_token_id
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    except Exception as error:  # a bad file raises struct, value, key or runtime errors
        raise BaseModelError(
            f"The file {file.name} could not be converted: {one_line(error)}",
            "Install the versions of transformers and gguf in constraints.txt.",
        ) from error


@contextmanager
def _quiet_gguf() -> Iterator[None]:
    """Suppress the progress bar of transformers' GGUF reader, which ignores the logging level."""
    from transformers import modeling_gguf_pytorch_utils as reader

    original: Any = reader.tqdm
    reader.tqdm = partial(original, disable=True)
    try:
        yield
    finally:
        reader.tqdm = original
