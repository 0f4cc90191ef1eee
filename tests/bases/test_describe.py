"""`describe`: a base's facts without loading it, and folders that are not a base."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from trunkline.bases import describe
from trunkline.errors import BaseModelError


def test_measures_are_those_of_the_network(tiny: Path) -> None:
    info = describe(str(tiny))
    assert (info.layers, info.hidden_size, info.context) == (3, 32, 256)
    assert (info.architecture, info.dtype, info.pulled) == ("LlamaForCausalLM", "float32", False)


def test_parameters_are_those_that_torch_counts(tiny: Path) -> None:
    from trunkline.bases import load_fresh

    model = load_fresh(str(tiny), device="cpu")
    assert describe(str(tiny)).parameters == sum(p.numel() for p in model.parameters())


def test_gpt2_sizes_are_read_under_their_own_names(families: dict[str, Path]) -> None:
    info = describe(str(families["gpt2"]))
    assert (info.layers, info.hidden_size, info.context) == (3, 32, 256)


def test_describing_imports_neither_torch_nor_transformers(tiny: Path) -> None:
    code = (
        "import sys; from trunkline.bases import describe; "
        f"describe({str(tiny)!r}); print({{'torch', 'transformers'}} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_folder_without_config_is_no_base(copy: Path) -> None:
    (copy / "config.json").unlink()
    with pytest.raises(BaseModelError, match=r"no config\.json"):
        describe(str(copy))


def test_torn_config_is_damage(copy: Path) -> None:
    (copy / "config.json").write_text('{"archi')
    with pytest.raises(BaseModelError, match="is not valid JSON"):
        describe(str(copy))


@pytest.mark.parametrize("kept", [0, 5, 400, -1], ids=["empty", "stub", "header", "byte"])
def test_truncated_weights_are_damage(copy: Path, kept: int) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(BaseModelError, match="damaged"):
        describe(str(copy))


def test_missing_tokenizer_is_named(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    with pytest.raises(BaseModelError, match="no tokenizer"):
        describe(str(copy))


def test_pickled_weights_are_refused(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(BaseModelError, match=r"pickle \(pytorch_model\.bin\)"):
        describe(str(copy))


def test_index_that_leads_out_of_the_folder_is_refused(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy.parent / "model.safetensors")
    index = {"weight_map": {"lm_head.weight": "../model.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BaseModelError, match=r"names '\.\./model\.safetensors'"):
        describe(str(copy))


def test_encoder_is_no_causal_language_model(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config |= {"architectures": ["BertForMaskedLM"], "model_type": "bert"}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(BaseModelError, match="BertForMaskedLM"):
        describe(str(copy))
