"""Loading: one base per process, silently and completely, and fresh models for training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from trunkline.bases import load, load_fresh, release
from trunkline.errors import BaseModelError, UsageError

FAMILIES = ["llama", "qwen2", "gpt2"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_the_logits_of_plain_transformers(
    families: dict[str, Path], family: str
) -> None:
    from transformers import AutoModelForCausalLM

    base = load(str(families[family]), device="cpu")
    tokens = base.tokenizer("Acute appendicitis", return_tensors="pt")
    plain = AutoModelForCausalLM.from_pretrained(families[family]).eval()
    expected = plain(**tokens).logits
    torch.testing.assert_close(base.model(**tokens).logits, expected, atol=1e-4, rtol=1e-4)


def test_classifier_of_a_config_without_pad_reads_the_last_real_token(copy: Path) -> None:
    file = copy / "config.json"
    config = json.loads(file.read_text())
    del config["pad_token_id"]
    file.write_text(json.dumps(config))
    tokenizer = load(str(copy), device="cpu").tokenizer
    model = load_fresh(str(copy), 3, device="cpu")
    rows = tokenizer(["Acute appendicitis", "milk"], padding=True, return_tensors="pt")
    alone = tokenizer(["milk"], return_tensors="pt")
    torch.testing.assert_close(model(**rows).logits[1:], model(**alone).logits)


def test_head_is_drawn_from_its_seed_alone(tiny: Path) -> None:
    torch.manual_seed(1)
    one = load_fresh(str(tiny), 4, device="cpu", seed=7)
    torch.manual_seed(2)
    other = load_fresh(str(tiny), 4, device="cpu", seed=7)
    assert torch.equal(one.score.weight, other.score.weight)
    assert not torch.equal(
        one.score.weight, load_fresh(str(tiny), 4, device="cpu", seed=8).score.weight
    )


def test_fresh_model_shares_nothing_with_the_base(tiny: Path) -> None:
    base = load(str(tiny), device="cpu")
    fresh = load_fresh(str(tiny), device="cpu")
    before = base.model.get_input_embeddings().weight.clone()
    with torch.no_grad():
        fresh.get_input_embeddings().weight.add_(1.0)
    assert torch.equal(base.model.get_input_embeddings().weight, before)


def test_fresh_model_can_be_trained_and_the_base_can_not(tiny: Path) -> None:
    assert all(p.requires_grad for p in load_fresh(str(tiny), device="cpu").parameters())
    assert not any(p.requires_grad for p in load(str(tiny), device="cpu").model.parameters())


def test_same_name_gives_the_same_object(tiny: Path) -> None:
    assert load(str(tiny), device="cpu") is load(str(tiny))


def test_other_name_of_the_same_weights_gives_the_same_object(tiny: Path, copy: Path) -> None:
    loaded, renamed = load(str(tiny), device="cpu"), load(str(copy))
    assert renamed.model is loaded.model
    assert (renamed.info.name, loaded.info.name) == (str(copy), str(tiny))


def test_second_base_is_refused(families: dict[str, Path]) -> None:
    load(str(families["llama"]), device="cpu")
    with pytest.raises(BaseModelError, match="holds the base"):
        load(str(families["gpt2"]))


def test_released_base_makes_room(families: dict[str, Path]) -> None:
    load(str(families["llama"]), device="cpu")
    release()
    assert load(str(families["gpt2"]), device="cpu").info.architecture == "GPT2LMHeadModel"


def test_held_base_in_another_dtype_is_refused(tiny: Path) -> None:
    load(str(tiny), device="cpu")
    with pytest.raises(BaseModelError, match="float32, not on auto as bf16"):
        load(str(tiny), dtype="bf16")


def test_cpu_uses_fp32_by_default(tiny: Path) -> None:
    assert load(str(tiny), device="cpu").dtype == torch.float32
    release()
    assert load(str(tiny), device="cpu", dtype="bf16").model.dtype == torch.bfloat16


@pytest.mark.parametrize("device", ["gpu", "cuda:99", ""])
def test_device_that_is_not_here_is_wrong_use(tiny: Path, device: str) -> None:
    with pytest.raises(UsageError, match="device"):
        load(str(tiny), device=device)


def test_unknown_dtype_is_wrong_use(tiny: Path) -> None:
    with pytest.raises(UsageError, match="int3"):
        load(str(tiny), device="cpu", dtype="int3")


def test_tokenizer_without_pad_takes_the_end_token(copy: Path) -> None:
    file = copy / "tokenizer_config.json"
    config = json.loads(file.read_text())
    del config["pad_token"]
    file.write_text(json.dumps(config))
    assert load(str(copy), device="cpu").tokenizer.pad_token == "<|im_end|>"


def test_loading_is_silent(tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load(str(tiny), device="cpu")
    load_fresh(str(tiny), 3, device="cpu")
    assert capfd.readouterr() == ("", "")


def test_loading_leaves_the_verbosity_of_transformers_alone(tiny: Path) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load(str(tiny), device="cpu")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_missing_tensor_is_damage_and_not_drawn_at_random(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BaseModelError, match=r"model\.layers\.1\.mlp\.up_proj"):
        load(str(copy), device="cpu")


def test_weights_of_another_shape_than_the_config_are_refused(copy: Path) -> None:
    file = copy / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"intermediate_size": 96}))
    with pytest.raises(BaseModelError, match="base"):
        load(str(copy), device="cpu")


def test_unreadable_tokenizer_is_refused(copy: Path) -> None:
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(BaseModelError, match="tokenizer"):
        load(str(copy), device="cpu")


def test_code_in_the_folder_is_never_run(copy: Path) -> None:
    (copy / "evil.py").write_text("raise SystemExit('ran')")
    file = copy / "config.json"
    config = json.loads(file.read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}
    file.write_text(json.dumps(config))
    with pytest.raises(BaseModelError, match="can't be loaded"):
        load(str(copy), device="cpu")
