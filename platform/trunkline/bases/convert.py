"""A GGUF file into a folder that plain transformers loads.

Owns: the conversion, once per base.
Must not know: where the file came from, or where the folder will be kept.
"""

from __future__ import annotations

from pathlib import Path

from trunkline.bases.quiet import quiet_gguf, quiet_transformers
from trunkline.errors import BaseModelError


def convert_gguf(file: Path, folder: Path) -> None:
    """Write weights (fp32 safetensors), tokenizer, chat template and configs into ``folder``.

    Takes about twenty seconds for 135 million parameters, and memory for two fp32 copies.

    Raises:
        BaseModelError: transformers can't make sense of the file.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    try:
        with quiet_transformers(), quiet_gguf():
            tokenizer = AutoTokenizer.from_pretrained(**where, local_files_only=True)
            read = AutoModelForCausalLM.from_pretrained(
                **where, dtype=torch.float32, local_files_only=True
            )
            config = read.config
            # A model that came from GGUF counts as quantized and refuses to be saved: its tensors
            # go into a plain model of the same config.
            if hasattr(config, "quantization_config"):
                del config.quantization_config
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            model.load_state_dict(read.state_dict())
            model.generation_config = read.generation_config
            model.generation_config.pad_token_id = tokenizer.pad_token_id
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    except Exception as error:  # a bad file leads to struct, value, key and runtime errors alike
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BaseModelError(
            f"The file {file.name} could not be converted: {reason}",
            "Check that the versions of transformers and gguf are those of constraints.txt.",
        ) from error
