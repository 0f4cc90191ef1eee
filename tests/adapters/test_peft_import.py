"""Imports of PEFT adapters: equal logits for what is accepted, a reason for what is refused."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peft_folders import (
    CONFIG,
    PREFIX,
    Q0,
    WEIGHTS,
    ImportFolder,
    change_config,
    change_tensors,
    fetched,
    logits,
    put,
    rename,
    save,
)
from tiny_base import HIDDEN
from trunkline.adapters.config import check_config, check_tensors
from trunkline.adapters.peft_folder import read_peft_folder
from trunkline.adapters.peft_import import explicit_config
from trunkline.adapters.peft_targets import ModuleTree, check_fits_base, read_module_tree
from trunkline.adapters.store import AdapterStore
from trunkline.errors import (
    IntegrityError,
    NotFoundError,
    RegistryError,
    TrunklineError,
)


@pytest.mark.parametrize(
    ("family", "outputs", "lora"),
    [
        ("llama", None, {"target_modules": r".*layers\.[02]\.self_attn\.(q|v)_proj"}),
        ("llama", None, {"layers_to_transform": [1], "target_modules": ["o_proj", "up_proj"]}),
        ("llama", None, {"layers_to_transform": 1, "layers_pattern": "layers",
                         "target_modules": ["q_proj"]}),
        ("llama", None, {"exclude_modules": ["layers.0.self_attn.q_proj"],
                         "target_modules": ["q_proj", "k_proj"]}),
        ("llama", None, {"r": 3, "use_rslora": True}),
        ("llama", None, {"init_lora_weights": "orthogonal"}),
        ("llama", None, {"dtype": "bfloat16"}),
        ("llama", 3, {"target_modules": r".*\.(gate|down)_proj"}),
        ("llama", 1, {"dtype": "float16"}),
        ("gpt2", None, {"target_modules": r".*h\.\d\.attn\.c_proj"}),
        ("gpt2", 2, {"fan_in_fan_out": True}),
    ],
    ids=["pattern", "one layer", "layers pattern", "without one", "use_rslora", "orthogonal",
         "bf16", "pattern with head", "fp16 with head", "gpt2 pattern", "gpt2 with head"],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_plain_peft_computes_the_same_logits_from_the_published_folder(
    import_folder: ImportFolder,
    store: AdapterStore,
    tiny: Path,
    tiny_gpt2: Path,
    tmp_path: Path,
    family: str,
    outputs: int | None,
    lora: dict[str, Any],
) -> None:
    import torch

    base = {"llama": tiny, "gpt2": tiny_gpt2}[family]
    original = tmp_path / "original"
    save(original, base, outputs=outputs, **lora)
    published = fetched(store, import_folder(original, base=base)).folder
    assert torch.equal(logits(published, base, outputs), logits(original, base, outputs))


def test_weights_are_kept_byte_for_byte(
    import_folder: ImportFolder, store: AdapterStore, generating: Path
) -> None:
    published = fetched(store, import_folder(generating)).folder
    assert (published / WEIGHTS).read_bytes() == (generating / WEIGHTS).read_bytes()


def test_pattern_is_replaced_by_names_and_never_compiled(
    import_folder: ImportFolder, store: AdapterStore, folder: Path
) -> None:
    change_config(folder, target_modules="((((", exclude_modules="[")
    imported = import_folder(folder)
    assert fetched(store, imported).lora.targets == ("q_proj", "v_proj")


@pytest.mark.parametrize("is_null", [True, False], ids=["null", "absent"])
def test_tensors_determine_targets_that_the_configuration_omits(
    import_folder: ImportFolder, store: AdapterStore, folder: Path, is_null: bool
) -> None:
    config = json.loads((folder / CONFIG).read_text())
    del config["target_modules"]
    (folder / CONFIG).write_text(json.dumps(config | ({"target_modules": None} if is_null else {})))
    assert fetched(store, import_folder(folder)).lora.targets == ("q_proj", "v_proj")


def test_keys_that_only_describe_the_training_are_dropped(
    import_folder: ImportFolder, store: AdapterStore, folder: Path
) -> None:
    change_config(
        folder,
        revision="main",
        auto_mapping={"base_model_class": "Evil", "parent_library": "evil"},
        init_lora_weights="eva",
        eva_config={"rho": 2.0},
    )
    config = json.loads((fetched(store, import_folder(folder)).folder / CONFIG).read_text())
    assert not {"revision", "auto_mapping", "eva_config"} & config.keys()
    assert config["init_lora_weights"] is True


def test_digest_does_not_depend_on_the_folder_or_the_pattern(
    import_folder: ImportFolder, folder: Path, tmp_path: Path
) -> None:
    first = import_folder(folder).version
    moved = shutil.copytree(folder, tmp_path / "other-name")
    change_config(moved, base_model_name_or_path="/elsewhere", target_modules=".*(q|v)_proj")
    assert import_folder(moved).version.digest == first.digest


_NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_MODULES = [
    f"model.layers.{layer}.{'self_attn' if name[0] in 'qkvo' else 'mlp'}.{name}"
    for layer in range(3)
    for name in _NAMES
]


@pytest.fixture(scope="module")
def tree(tiny: Path) -> ModuleTree:
    return read_module_tree(tiny, with_head=True)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(adapted=st.sets(st.sampled_from(_MODULES), min_size=1), rank=st.integers(1, 48))
def test_targets_match_exactly_the_adapted_modules(
    tree: ModuleTree, tmp_path: Path, adapted: set[str], rank: int
) -> None:
    import torch
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists
    from safetensors.torch import save_file

    tensors = {}
    for name in adapted:
        inputs, outputs = tree.linear[name]
        tensors[f"{PREFIX}{name}.lora_A.weight"] = torch.zeros(rank, inputs)
        tensors[f"{PREFIX}{name}.lora_B.weight"] = torch.zeros(outputs, rank)
    save_file(tensors, tmp_path / WEIGHTS)
    raw = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 8,
           "target_modules": ".*"}  # fmt: skip
    (tmp_path / CONFIG).write_text(json.dumps(raw))
    peft_folder = read_peft_folder(tmp_path)
    config = explicit_config(peft_folder, tree, [])
    lora = check_config(config, tmp_path / CONFIG)
    check_tensors(peft_folder.tensors, lora, {"kind": "generation"}, tmp_path / WEIGHTS)
    check_fits_base(peft_folder, lora, tree)
    peft = LoraConfig(target_modules=config["target_modules"])
    assert {name for name in tree.modules if lora.adapts(name)} == adapted
    assert {name for name in tree.modules if check_target_module_exists(peft, name)} == adapted


def test_module_tree_lists_the_linear_layers_and_the_head(tree: ModuleTree) -> None:
    assert tree.linear.keys() == set(_MODULES)
    assert tree.linear["model.layers.0.mlp.down_proj"] == (64, HIDDEN)
    assert tree.head == ("score", HIDDEN)


def test_other_files_are_neither_opened_nor_copied(
    import_folder: ImportFolder, store: AdapterStore, folder: Path, tmp_path: Path
) -> None:
    marker = tmp_path / "opened"
    (folder / "README.md").write_text("Another card")
    (folder / "training_args.bin").write_bytes(pickle.dumps(Payload(marker)))
    os.mkfifo(folder / "tokenizer.json")  # opening it blocks
    published = fetched(store, import_folder(folder)).folder
    assert {path.name for path in published.iterdir()} == {
        CONFIG, WEIGHTS, "trunkline.json", "provenance.json", "README.md",
    }  # fmt: skip
    assert "Another card" not in (published / "README.md").read_text()
    assert not marker.exists()


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("name", ["adapter_model.bin", "pytorch_model.pt"])
def test_pickle_instead_of_safetensors_is_refused_unopened(
    refused: Callable[..., str], folder: Path, tmp_path: Path, name: str
) -> None:
    (folder / WEIGHTS).unlink()
    (folder / name).write_bytes(pickle.dumps(Payload(tmp_path / "opened")))
    assert f"as a pickle ({name})" in refused(folder)
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_missing_file_is_named(refused: Callable[..., str], folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert name in refused(folder)


def test_missing_folder_is_reported(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "There is no folder" in refused(tmp_path / "nowhere", NotFoundError)


def test_symbolic_links_of_a_download_cache_are_followed(
    import_folder: ImportFolder, store: AdapterStore, folder: Path, tmp_path: Path
) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for name in (CONFIG, WEIGHTS):
        (snapshot / name).symlink_to(folder / name)
    assert not (fetched(store, import_folder(snapshot)).folder / WEIGHTS).is_symlink()


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "dora": ({"use_dora": True}, "has no magnitudes"),
    "unknown biases": ({"bias": "most"}, "bias = 'most'"),
    "lora bias": ({"lora_bias": True}, "adds a bias"),
    "pissa": ({"init_lora_weights": "pissa"}, "taken out of the base"),
    "pissa niter": ({"init_lora_weights": "pissa_niter_4"}, "taken out of the base"),
    "olora": ({"init_lora_weights": "olora"}, "taken out of the base"),
    "corda": ({"init_lora_weights": "corda"}, "taken out of the base"),
    "loftq": ({"init_lora_weights": "loftq"}, "taken out of the base"),
    "lora ga": ({"init_lora_weights": "lora_ga"}, "taken out of the base"),
    "unknown beginning": ({"init_lora_weights": "newest"}, "init_lora_weights = 'newest'"),
    "embeddings saved": ({"modules_to_save": ["embed_tokens"]}, "full copies of trained modules"),
    "output layer saved": ({"modules_to_save": ["lm_head"]}, "full copies of trained modules"),
    "rank pattern": ({"rank_pattern": {"q_proj": 8}}, "another rank"),
    "alpha pattern": ({"alpha_pattern": {"q_proj": 16}}, "another alpha"),
    "replicated layers": ({"layer_replication": [[0, 2], [1, 3]]}, "repeats layers"),
    "megatron": ({"megatron_config": {"a": 1}}, "Megatron"),
    "tokens": ({"trainable_token_indices": [1]}, "embeddings of some tokens"),
    "parameters": ({"target_parameters": ["weight"]}, "bare parameters"),
    "arrow": ({"arrow_config": {"top_k": 1}}, "Arrow"),
    "activated": ({"alora_invocation_tokens": [1, 2]}, "aLoRA"),
    "unknown key": ({"use_something_new": True}, "'use_something_new' = True"),
    "code": ({"auto_map": {"AutoConfig": "evil.Config"}}, "custom code"),
    "another method": ({"peft_type": "IA3", "feedforward_modules": ["x"]}, "was not made by LoRA"),
    "another model": ({"task_type": "SEQ_2_SEQ_LM"}, "a task that is not supported"),
    "rank too large": ({"r": 1025}, "r = 1025"),
    "rank of the file's own": ({"r": 8}, "the rank is 8"),
    "dropout": ({"lora_dropout": "much"}, "lora_dropout"),
    "targets that are a number": ({"target_modules": 5}, "target_modules = 5."),
    "targets that are off": ({"target_modules": False}, "target_modules = False."),
    "targets that are a table": ({"target_modules": {"q_proj": 1}}, "= {'q_proj': 1}."),
    "targets that are not all names": ({"target_modules": ["q_proj", 3]}, "= ['q_proj', 3]."),
    "target without tensors": ({"target_modules": ["q_proj", "v_proj", "k_proj"]}, "lacks"),
    "tensors without target": ({"target_modules": ["q_proj"]}, "PEFT ignores them"),
    "tensors of another layer": ({"layers_to_transform": [0]}, "PEFT ignores them"),
}  # fmt: skip


@pytest.mark.parametrize("attack", CONFIGS)
def test_unsupported_setting_is_refused_with_the_reason(
    refused: Callable[..., str], folder: Path, attack: str
) -> None:
    changes, reason = CONFIGS[attack]
    change_config(folder, **changes)
    assert reason in refused(folder)


def set_one(value: float) -> Callable[[dict[str, Any]], Any]:
    def set_one(tensors: dict[str, Any]) -> None:
        tensors[f"{Q0}.lora_B.weight"][3, 1] = value

    return set_one


TENSORS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "magnitudes": (put(f"{Q0}.lora_magnitude_vector", 32), "has magnitudes of DoRA"),
    "adapted embeddings": (put(f"{PREFIX}model.embed_tokens.lora_embedding_A", 4, 9), "embeddings"),
    "saved embeddings": (put(f"{PREFIX}model.embed_tokens.weight", 9, 32), "of the base itself"),
    "saved output layer": (put(f"{PREFIX}lm_head.weight", 9, 32), "of the base itself"),
    "bias of B": (put(f"{Q0}.lora_B.bias", 32), "has biases"),
    "bias of the base": (put(f"{Q0}.base_layer.bias", 32), "has biases"),
    "tokens": (put(f"{PREFIX}model.embed_tokens.trainable_tokens_delta", 1, 32), "of some tokens"),
    "head": (put(f"{PREFIX}score.weight", 2, 32), "has a head"),
    "A alone": (lambda t: t.pop(f"{Q0}.lora_B.weight"), "without its lora_B"),
    "B alone": (lambda t: t.pop(f"{Q0}.lora_A.weight"), "without its lora_A"),
    "nothing": (lambda t: t.clear(), "no LoRA matrices"),
    "unknown": (put(f"{Q0}.lora_other", 4), "unknown tensor"),
    "names in memory": (rename("lora_A.weight", "lora_A.default.weight"), "a model in memory"),
    "names of another tool": (
        lambda t: [rename(f"lora_{old}.weight", f"lora_{new}.weight")(t)
                   for old, new in (("A", "down"), ("B", "up"))],
        "another tool",
    ),
    "names of torch.compile": (rename(PREFIX, f"{PREFIX}_orig_mod."), "the name of a wrapper"),
    "names of another class": (rename("model.layers", "language_model.layers"),
                               "it has 'model.layers.0.self_attn.q_proj'"),
    "no prefix": (rename(PREFIX, ""), "not a name that PEFT uses"),
    "module of no base": (rename("q_proj", "query"), "this base does not have"),
    "layer of a larger base": (rename("layers.2.", "layers.7."), "it has 3 layers (0 to 2)"),
    "output layer adapted": (rename("model.layers.0.self_attn.q_proj", "lm_head"),
                             "not a linear layer below the head"),
    "module that is no layer": (rename("layers.0.self_attn.q_proj", "layers.0.self_attn"),
                                "not a linear layer below the head"),
    "wrong inputs": (put(f"{Q0}.lora_A.weight", 4, 64), "with 64 inputs"),
    "wrong outputs": (put(f"{Q0}.lora_B.weight", 33, 4), "33 outputs"),
    "NaN": (set_one(float("nan")), "NaN or infinity"),
    "infinity": (set_one(float("-inf")), "NaN or infinity"),
}  # fmt: skip


@pytest.mark.parametrize("attack", TENSORS)
def test_unsupported_tensors_are_refused(
    refused: Callable[..., str], folder: Path, attack: str
) -> None:
    change, reason = TENSORS[attack]
    change_tensors(folder, change)
    change_config(folder, target_modules=".*")
    assert reason in refused(folder)


HEADS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "bias": (put(f"{PREFIX}score.bias", 3), "has a head with a bias"),
    "two layers": (put(f"{PREFIX}classifier.dense.weight", 32, 32), "with several layers"),
    "none": (lambda t: t.pop(f"{PREFIX}score.weight"), "needs modules_to_save=['score']"),
    "name in memory": (
        rename("score.weight", "score.modules_to_save.default.weight"),
        "names of a model in memory",
    ),
    "untrained copy": (
        put(f"{PREFIX}score.original_module.weight", 3, 32),
        "names of a model in memory",
    ),
    "another name": (rename("score", "classifier"), "is called 'score'"),
    "two heads": (put(f"{PREFIX}classifier.weight", 3, 32), "head"),
    "wide": (put(f"{PREFIX}score.weight", 3, 64), "has 32 hidden units"),
    "vector": (put(f"{PREFIX}score.weight", 32), "has 32 hidden units"),
    "no outputs": (put(f"{PREFIX}score.weight", 0, 32), "head"),
    "a billion empty outputs": (put(f"{PREFIX}score.weight", 10**9, 0), "has 32 hidden units"),
}


@pytest.mark.parametrize("attack", HEADS)
def test_head_that_does_not_fit_the_base_is_refused(
    refused: Callable[..., str], headed: Path, attack: str
) -> None:
    change, reason = HEADS[attack]
    change_tensors(headed, change)
    assert reason in refused(headed, TrunklineError)


@pytest.mark.filterwarnings("ignore")
def test_adapter_of_another_architecture_is_refused(
    refused: Callable[..., str], tiny_gpt2: Path, tmp_path: Path
) -> None:
    save(tmp_path / "gpt2", tiny_gpt2)
    assert "this base does not have" in refused(tmp_path / "gpt2")


def test_weights_that_change_during_the_import_are_refused(
    import_folder: ImportFolder,
    folder: Path,
    headed: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy = shutil.copyfile
    monkeypatch.setattr(shutil, "copyfile", lambda _, target: copy(headed / WEIGHTS, target))
    with pytest.raises(IntegrityError, match="changed while it was read"):
        import_folder(folder)


def test_full_disk_raises_a_registry_error(
    import_folder: ImportFolder, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfile", fail)
    with pytest.raises(RegistryError, match="No space left"):
        import_folder(folder)


def test_lora_on_the_head_without_the_head_names_what_peft_needs(
    refused: Callable[..., str], headed: Path
) -> None:
    def adapt_head(tensors: dict[str, Any]) -> None:
        import torch

        del tensors[f"{PREFIX}score.weight"]
        tensors[f"{PREFIX}score.lora_A.weight"] = torch.ones(4, HIDDEN)
        tensors[f"{PREFIX}score.lora_B.weight"] = torch.ones(3, 4)

    change_tensors(headed, adapt_head)
    message = refused(headed)
    assert "adapts the head 'score' with LoRA, but the head was not saved" in message
    assert "modules_to_save=['score']" in message


NOTED: dict[str, tuple[dict[str, Any], str]] = {
    "target that the base lacks": (
        {"target_modules": ["q_proj", "v_proj", "c_attn"]},
        "target_modules names 'c_attn', which this base does not have",
    ),
    "exclusion that matches nothing": (
        {"exclude_modules": ["vision_tower"]},
        "exclude_modules names 'vision_tower', which this base does not have",
    ),
    "layers beyond the base": (
        {"layers_to_transform": [0, 1, 2, 3, 40]},
        "layers_to_transform names 3, 40, but this base has 3 layers (0 to 2)",
    ),
    "negative layer": (
        {"layers_to_transform": [-1, 0, 1, 2]},
        "layers_to_transform names -1, but",
    ),
    "pattern": ({"target_modules": ".*[qv]_proj"}, "target_modules is a pattern"),
    "pattern of layers": (
        {"layers_to_transform": [0], "layers_pattern": ["layers"]},
        "layers_pattern is a pattern",
    ),
    "pattern of exclusions": ({"exclude_modules": ".*k_proj"}, "exclude_modules is a pattern"),
}


@pytest.mark.parametrize("what", NOTED)
def test_setting_that_is_taken_but_not_used_is_noted_and_recorded(
    import_folder: ImportFolder, store: AdapterStore, folder: Path, what: str
) -> None:
    changes, note = NOTED[what]
    change_config(folder, **changes)
    imported = import_folder(folder)
    assert any(note in sentence for sentence in imported.notes)
    published = fetched(store, imported)
    assert published.lora.targets == ("q_proj", "v_proj")
    recorded = json.loads((published.folder / "provenance.json").read_text())["imported"]
    assert any(note in sentence for sentence in recorded["notes"])


UNTARGETED: dict[str, tuple[dict[str, Any], str]] = {
    "excluded": ({"exclude_modules": ["q_proj"]}, "(exclude_modules)"),
    "in other layers": ({"layers_to_transform": 1}, "(layers_to_transform)"),
    "layers as text": ({"layers_to_transform": ["0"]}, "layers_to_transform = ['0']"),
    "excluded by a number": ({"exclude_modules": 3}, "exclude_modules = 3"),
    "a layer itself": ({"target_modules": ["q_proj", "v_proj", "mlp"]}, "of 'model.layers.0.mlp'"),
    "output layer": ({"target_modules": ["q_proj", "v_proj", "lm_head"]}, "of 'lm_head'"),
}


def test_matrices_of_a_convolution_are_refused_for_a_linear_layer(
    refused: Callable[..., str], folder: Path
) -> None:
    """PEFT could not load the published folder."""

    def reshape(tensors: dict[str, Any]) -> None:
        tensors[f"{Q0}.lora_A.weight"] = tensors[f"{Q0}.lora_A.weight"][..., None, None]

    change_tensors(folder, reshape)
    assert "as a convolution, with the shapes (4, 32, 1, 1) and (32, 4)" in refused(folder)


@pytest.mark.parametrize("what", UNTARGETED)
def test_tensors_that_contradict_the_targets_are_refused_with_the_setting(
    refused: Callable[..., str], folder: Path, what: str
) -> None:
    changes, reason = UNTARGETED[what]
    change_config(folder, **changes)
    assert reason in refused(folder)


def test_full_name_is_a_target_in_any_layer(
    import_folder: ImportFolder, store: AdapterStore, folder: Path
) -> None:
    """As in PEFT, which compares the layers only with ends of names."""
    name = "model.layers.0.self_attn.q_proj"
    change_config(folder, target_modules=[name, "v_proj"], layers_to_transform=[1])
    change_tensors(
        folder,
        lambda tensors: [
            tensors.pop(one)
            for one in list(tensors)
            if name not in one and "layers.1.self_attn.v_proj" not in one
        ],
    )
    assert import_folder(folder).modules == 2


def zero(*parts: str) -> Callable[[dict[str, Any]], Any]:
    def zero(tensors: dict[str, Any]) -> None:
        for name in tensors:
            if any(part in name for part in parts):
                tensors[name].zero_()

    return zero


@pytest.mark.parametrize("parts", [("lora_B",), ("lora_A",), ("lora_A", "lora_B")])
def test_adapter_that_changes_nothing_is_noted_and_recorded(
    import_folder: ImportFolder, store: AdapterStore, folder: Path, parts: tuple[str, ...]
) -> None:
    change_tensors(folder, zero(*parts))
    imported = import_folder(folder)
    assert any("changes nothing: every product" in sentence for sentence in imported.notes)
    card = (fetched(store, imported).folder / "README.md").read_text()
    assert "noted at the import: The adapter changes nothing" in card


def test_product_of_matrices_that_share_no_rank_is_zero(
    import_folder: ImportFolder, folder: Path
) -> None:
    def alternate(tensors: dict[str, Any]) -> None:
        for name, tensor in tensors.items():
            if name.endswith("lora_A.weight"):
                tensor[::2] = 0
            else:
                tensor[:, 1::2] = 0

    change_tensors(folder, alternate)
    assert any("changes nothing" in sentence for sentence in import_folder(folder).notes)


def test_some_pairs_without_an_effect_are_counted(
    import_folder: ImportFolder, folder: Path
) -> None:
    change_tensors(folder, zero("v_proj.lora_B"))
    assert any("3 of 6 adapted modules" in sentence for sentence in import_folder(folder).notes)


def test_head_of_zeros_is_noted(import_folder: ImportFolder, headed: Path) -> None:
    change_tensors(headed, zero("score"))
    assert any("The head is zero" in sentence for sentence in import_folder(headed).notes)
