"""Fields of PEFT's configuration: what is taken, what is refused, and the guide's table of both."""

from __future__ import annotations

import copy
import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from peft_folders import (
    Q0,
    ImportFolder,
    change_config,
    change_tensors,
    fetched,
    logits,
    put,
    save,
)
from trunkline.adapters.store import AdapterStore
from trunkline.bases import load_fresh
from trunkline.errors import IntegrityError, TrunklineError

GUIDE = Path(__file__).parents[2] / "docs" / "adapters-from-elsewhere.md"
ROWS = dict(re.findall(r"^\| `(\w+)` \| [^|]* \| (\w+)", GUIDE.read_text(encoding="utf-8"), re.M))
"""Field → the first word of what the guide says of it."""

HONORED = {
    "alpha_pattern", "exclude_modules", "layers_pattern", "layers_to_transform", "lora_alpha",
    "modules_to_save", "peft_type", "r", "rank_pattern", "target_modules", "task_type",
    "use_dora", "use_rslora",
}  # fmt: skip
"""Fields that change the answers; the property test below compares them with PEFT."""

IGNORED: dict[str, Any] = {
    "auto_mapping": {"base_model_class": "LlamaForCausalLM", "parent_library": "transformers"},
    "base_model_name_or_path": "somebody/model",
    "corda_config": {"corda_method": "ipm"},
    "ensure_weight_tying": True,
    "eva_config": {"rho": 2.0},
    "fan_in_fan_out": True,
    "inference_mode": False,
    "loftq_config": {"loftq_bits": 4},
    "lora_dropout": 0.25,
    "lora_dtype": "bf16",
    "lora_ga_config": {"direction": "ArB2r"},
    "lorap_emb_lr": 1e-6,
    "lorap_lr_ratio": 16.0,
    "megatron_core": "megatron.core",
    "merge_weights": True,
    "peft_version": "0.99.0",
    "qalora_group_size": 32,
    "revision": "v1.0",
    "runtime_config": {"ephemeral_gpu_offload": True},
    "transformers_version": "4.44.2",
}

REFUSED: dict[str, Any] = {
    "alora_invocation_tokens": [1, 2],
    "arrow_config": {},
    "auto_map": {"AutoConfig": "evil.Config"},
    "bias": "most",
    "enable_lora": [True, False, True],
    "init_lora_weights": "pissa",
    "kasa_config": {},
    "layer_replication": [[0, 2], [1, 3]],
    "lora_bias": True,
    "megatron_config": {"tensor_model_parallel_size": 1},
    "monteclora_config": {"num_samples": 8},
    "target_parameters": ["mlp.experts.gate_up_proj"],
    "trainable_token_indices": {"embed_tokens": [1]},
    "use_bdlora": {},
    "use_qalora": True,
    "velora_config": {},
}
TENSORS_OF = {
    "monteclora_config": "lora_monteclora_sampler.std_prior",
    "velora_config": "lora_velora_embed",
}
"""Refused field → the tensor without which it has no effect."""


def test_guide_has_a_row_for_every_field_of_the_installed_class() -> None:
    from peft import LoraConfig

    fields = {field.name for field in dataclasses.fields(LoraConfig)}
    assert not fields - ROWS.keys(), "document what happens to these fields"


def test_every_row_of_the_guide_is_tried_here() -> None:
    tried = dict.fromkeys(HONORED, "honored")
    tried |= dict.fromkeys(IGNORED, "ignored") | dict.fromkeys(REFUSED, "refused")
    assert tried == ROWS


@pytest.mark.parametrize("key", IGNORED)
def test_ignored_field_leaves_the_adapter_as_it_is(
    import_folder: ImportFolder, store: AdapterStore, folder: Path, key: str
) -> None:
    before = fetched(store, import_folder(folder)).lora
    change_config(folder, **{key: IGNORED[key]})
    assert fetched(store, import_folder(folder)).lora == before


@pytest.mark.parametrize("key", REFUSED)
def test_refused_field_is_named(refused: Callable[..., str], folder: Path, key: str) -> None:
    change_config(folder, **{key: REFUSED[key]})
    if key in TENSORS_OF:
        change_tensors(folder, put(f"{Q0}.{TENSORS_OF[key]}", 4))
    if key == "use_qalora":
        change_tensors(folder, put(f"{Q0}.lora_A.weight", 4, 2))
    assert f"{key} = {REFUSED[key]!r}" in refused(folder)


@pytest.mark.parametrize("value", [None, False], ids=["null", "false"])
def test_fields_that_are_off_are_taken(
    import_folder: ImportFolder, folder: Path, value: Any
) -> None:
    keys = {*IGNORED, *REFUSED} - {"bias", "lora_dropout"}
    change_config(folder, **dict.fromkeys(keys, value))
    import_folder(folder)


HARMLESS: dict[str, dict[str, Any]] = {
    "alpha pattern equal to the default": {"alpha_pattern": {"q_proj": 8, r".*(v|k)_proj": 8.0}},
    "alpha pattern of modules that are not adapted": {"alpha_pattern": {"up_proj": 99}},
    "rank pattern equal to the default": {"rank_pattern": {"q_proj": 4, "layers.0.mlp.(x)+": 4}},
    "rank pattern of modules that are not adapted": {"rank_pattern": {"^up_proj": 64}},
    "biases of the layers where the base has none": {"bias": "lora_only"},
    "all biases where the base has none": {"bias": "all"},
    "no dropout": {"lora_dropout": None},
    "minor components": {"init_lora_weights": "mica"},
    "another spelling": {"init_lora_weights": "Gaussian"},
    "no pooling": {"use_qalora": True},
    "no sampler": {"monteclora_config": {}},
    "no buffers": {"velora_config": {"num_groups": 64}},
    "zero for false": {"use_dora": 0},
    "each layer once": {"layer_replication": [[0, 1], [1, 3]]},
    "a saved module that nobody has": {"modules_to_save": ["vision_head"]},
}


@pytest.mark.parametrize("what", HARMLESS)
def test_setting_that_the_tensors_prove_harmless_is_taken(
    import_folder: ImportFolder, store: AdapterStore, folder: Path, what: str
) -> None:
    before = fetched(store, import_folder(folder)).lora
    change_config(folder, **HARMLESS[what])
    assert fetched(store, import_folder(folder)).lora == before


def test_alpha_of_every_adapted_module_replaces_the_default(
    import_folder: ImportFolder, folder: Path
) -> None:
    change_config(folder, alpha_pattern={"q_proj": 16, "layers.0.self_attn.v_proj": 16,
                                         r"v_proj": 16.0})  # fmt: skip
    imported = import_folder(folder)
    assert imported.lora.alpha == 16
    assert any("lora_alpha = 8 is not used" in sentence for sentence in imported.notes)


def test_rank_of_every_adapted_module_replaces_the_default(
    import_folder: ImportFolder, folder: Path
) -> None:
    change_config(folder, r=2, rank_pattern={"q_proj": 4, r".*\.[v]_proj": 4})
    imported = import_folder(folder)
    assert imported.lora.rank == 4
    assert any("r = 2 is not used" in sentence for sentence in imported.notes)


HARMFUL: dict[str, tuple[dict[str, Any], str]] = {
    "alpha of some modules": ({"alpha_pattern": {"q_proj": 16}}, "another alpha: alpha_pattern"),
    "alpha by a pattern": ({"alpha_pattern": {".*_proj": 16}}, "patterns in alpha_pattern"),
    "alpha as text": ({"alpha_pattern": {"q_proj": "8"}}, "alpha_pattern = {"),
    "alpha as a list": ({"alpha_pattern": [8]}, "alpha_pattern = [8]"),
    "rank of other tensors": ({"rank_pattern": {"q_proj": 8}}, "the rank 8 in rank_pattern"),
    "rank by a pattern": ({"r": 3, "rank_pattern": {".*_proj": 8}}, "another rank: rank_pattern"),
    "rank as a fraction": ({"rank_pattern": {"q_proj": 4.0}}, "rank_pattern = {"),
    "layers in another order": ({"layer_replication": [[1, 3], [0, 1]]}, "layer_replication"),
    "layers beyond the base": ({"layer_replication": [[0, 4]]}, "layer_replication"),
    "groups of one": ({"use_qalora": True, "qalora_group_size": 1}, "use_qalora"),
    "a saved module of the base": ({"modules_to_save": ["embed_tokens"]}, "modules_to_save"),
    "a part of the base": ({"modules_to_save": ["mlp"]}, "modules_to_save"),
    "a text of saved modules": ({"modules_to_save": "score"}, "modules_to_save"),
    "unknown method": ({"use_something": {"a": 1}}, "'use_something'"),
}


@pytest.mark.parametrize("what", HARMFUL)
def test_setting_that_may_change_the_answers_is_refused_by_name(
    refused: Callable[..., str], folder: Path, what: str
) -> None:
    changes, reason = HARMFUL[what]
    change_config(folder, **changes)
    assert reason in refused(folder)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_trained_biases_are_refused_whether_they_were_saved_or_lost(
    import_folder: ImportFolder, tiny_gpt2: Path, tmp_path: Path, bias: str
) -> None:
    target = tmp_path / "biased"
    save(target, tiny_gpt2, bias=bias, target_modules=["c_attn"])
    with pytest.raises(IntegrityError, match=f"trains the base's biases: bias = '{bias}'"):
        import_folder(target, base=tiny_gpt2)
    change_tensors(target, lambda t: [t.pop(name) for name in list(t) if name.endswith(".bias")])
    with pytest.raises(IntegrityError, match=f"bias = '{bias}', but .* lacks the trained biases"):
        import_folder(target, base=tiny_gpt2)


@pytest.mark.filterwarnings("ignore")
def test_conversion_that_the_refusal_names_gives_the_same_answers(
    import_folder: ImportFolder, store: AdapterStore, tiny: Path, tmp_path: Path
) -> None:
    import torch
    from peft import PeftModel, save_as_lora

    original, converted = tmp_path / "original", tmp_path / "converted"
    save(original, tiny, target_modules=["q_proj", "v_proj"], r=4, rank_pattern={"v_proj": 6},
         alpha_pattern={"q_proj": 3})  # fmt: skip
    with pytest.raises(IntegrityError, match="rank_pattern") as caught:
        import_folder(original)
    assert "save_as_lora(folder, model, rank=N)" in str(caught.value.hint)
    assert "--task" in str(caught.value.hint)
    model = PeftModel.from_pretrained(
        load_fresh(str(tiny), None, device="cpu", dtype="fp32"), original
    )
    save_as_lora(converted, model, rank=6)
    published = fetched(store, import_folder(converted, task="generation")).folder
    torch.testing.assert_close(
        logits(published, tiny, None), logits(original, tiny, None), atol=1e-4, rtol=1e-4
    )


_TARGETS = st.sampled_from(
    [["q_proj"], ["q_proj", "v_proj"], ["up_proj", "o_proj"], ["layers.1.mlp.gate_proj"],
     r".*layers\.[01]\.self_attn\.[qk]_proj", "all-linear"],
)  # fmt: skip
_VALUES = st.sampled_from([2, 4, 4, 4, 8])
_KEYS = st.sampled_from(
    ["q_proj", "v_proj", "up_proj", "o_proj", ".*proj", "layers.1.mlp.gate_proj"]
)
_TRAINED = st.fixed_dictionaries(
    {"target_modules": _TARGETS, "r": _VALUES, "lora_alpha": _VALUES},
    optional={
        "use_rslora": st.booleans(),
        "init_lora_weights": st.sampled_from([True, False, "gaussian", "orthogonal", "mica"]),
        "rank_pattern": st.dictionaries(_KEYS, _VALUES, max_size=2),
        "alpha_pattern": st.dictionaries(_KEYS, _VALUES, max_size=2),
        "lora_dropout": st.sampled_from([0.0, 0.5]),
        "bias": st.sampled_from(["none", "lora_only", "all"]),
        "use_dora": st.booleans(),
        "lora_bias": st.booleans(),
        "fan_in_fan_out": st.booleans(),
        "exclude_modules": st.sampled_from([["layers.0.self_attn.q_proj"], ["nothing"], None]),
    },
)
"""What the adapter is trained with."""

_CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "use_rslora": st.booleans(),
        "lora_alpha": _VALUES,
        "alpha_pattern": st.dictionaries(_KEYS, _VALUES, max_size=2),
        "ensure_weight_tying": st.just(True),
        "loftq_config": st.just({"loftq_bits": 4}),
        "runtime_config": st.just({"ephemeral_gpu_offload": False}),
        "velora_config": st.just({"num_groups": 4}),
        "monteclora_config": st.just({"num_samples": 4}),
        "use_qalora": st.booleans(),
        "layer_replication": st.sampled_from([[[0, 3]], [[0, 2], [1, 3]], None]),
        "modules_to_save": st.sampled_from([["nothing"], ["lm_head"], None]),
        "bias": st.sampled_from(["none", "lora_only", "all"]),
        "use_dora": st.booleans(),
        "use_bdlora": st.sampled_from([{}, None]),
    },
)
"""What is changed in the file afterwards: PEFT loads most of it."""


@pytest.fixture(scope="module")
def bare(tiny: Path) -> Any:
    return load_fresh(str(tiny), None, device="cpu", dtype="fp32")


def trained(bare: Any, target: Path, lora: dict[str, Any]) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(task_type="CAUSAL_LM", **lora)
    model = get_peft_model(copy.deepcopy(bare), config)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0.0, 0.2)
    model.save_pretrained(target, save_embedding_layers=False)


def answers(bare: Any, folder: Path) -> Any:
    """Logits of plain PEFT; None if PEFT can't load the folder."""
    import torch
    from peft import PeftModel

    try:
        model = PeftModel.from_pretrained(copy.deepcopy(bare), folder).eval()
    except Exception:
        return None
    with torch.no_grad():
        return model(input_ids=torch.arange(5, 21).reshape(2, 8)).logits


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(lora=_TRAINED, changes=_CHANGES)
def test_import_gives_the_numbers_of_peft_or_names_the_field(
    import_folder: ImportFolder,
    store: AdapterStore,
    bare: Any,
    tmp_path: Path,
    lora: dict[str, Any],
    changes: dict[str, Any],
) -> None:
    import torch

    methods = (
        lora.get("init_lora_weights") == "mica",
        lora.get("use_dora", False),
        "velora_config" in changes,
        "monteclora_config" in changes,
    )
    assume(sum(methods) < 2)  # PEFT loads no combination of these
    target = tmp_path / "trained"
    shutil.rmtree(target, ignore_errors=True)
    try:
        trained(bare, target, lora)
    except Exception:
        return  # PEFT refuses the combination
    change_config(target, **changes)
    expected = answers(bare, target)
    refusal = None
    try:
        published = fetched(store, import_folder(target)).folder
    except TrunklineError as error:
        refusal = error.message
    if refusal is not None:
        assert any(field in refusal for field in {**lora, **changes}), refusal
        return
    assert expected is not None
    assert torch.equal(answers(bare, published), expected)
