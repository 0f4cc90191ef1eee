"""Adapters made elsewhere: what comes in computes as before, and what would not stays out."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tiny_base import HIDDEN, make_tiny_base
from trunkline.adapters.artifact import Artifact
from trunkline.adapters.config import check_config, check_tensors
from trunkline.adapters.foreign import check_fits, plain_config, read_foreign
from trunkline.adapters.imported_task import Wishes
from trunkline.adapters.importing import Imported, import_adapter
from trunkline.adapters.skeleton import Skeleton, read_skeleton
from trunkline.adapters.store import AdapterStore
from trunkline.bases import describe, load_fresh
from trunkline.contracts import Template
from trunkline.errors import (
    IntegrityError,
    NotFoundError,
    RefusedError,
    RegistryError,
    TrunklineError,
    UsageError,
)
from trunkline.refs import Ref
from trunkline.registry.registry import Registry
from trunkline.tasks import task_from_json
from trunkline.workspace import Workspace

REF = Ref("toy", "elsewhere")
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
Q0 = f"{PREFIX}model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("bases") / "tiny-gpt2", "gpt2")


@pytest.fixture(scope="session")
def generating(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A sound generation adapter on two projections of every layer, only to be read."""
    folder = tmp_path_factory.mktemp("elsewhere") / "generating"
    save(folder, tiny, target_modules=["q_proj", "v_proj"])
    return folder


@pytest.fixture(scope="session")
def classifying(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A sound classification adapter with three outputs, only to be read."""
    folder = tmp_path_factory.mktemp("elsewhere") / "classifying"
    save(folder, tiny, outputs=3, target_modules=["q_proj", "v_proj"])
    return folder


@pytest.fixture
def folder(generating: Path, tmp_path: Path) -> Path:
    """A copy of the generation adapter that a test may damage."""
    return Path(shutil.copytree(generating, tmp_path / "my-lora"))


@pytest.fixture
def headed(classifying: Path, tmp_path: Path) -> Path:
    """A copy of the classification adapter that a test may damage."""
    return Path(shutil.copytree(classifying, tmp_path / "my-classifier"))


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    (tmp_path / "workspace").mkdir()
    with Registry.open(f"sqlite:///{tmp_path / 'workspace' / 'registry.db'}") as opened:
        yield opened


@pytest.fixture
def store(tmp_path: Path, registry: Registry) -> AdapterStore:
    return AdapterStore(Workspace(tmp_path / "workspace"), registry)


@pytest.fixture
def bring(store: AdapterStore, registry: Registry, tiny: Path) -> Callable[..., Imported]:
    """Import a folder as ``toy/elsewhere`` on the tiny Llama, with wishes."""

    def bring(folder: Path, ref: Ref = REF, base: Path = tiny, **wishes: Any) -> Imported:
        return import_adapter(store, registry, describe(str(base)), folder, ref, Wishes(**wishes))

    return bring


def save(
    folder: Path, base: Path, *, outputs: int | None = None, dtype: str = "", **lora: Any
) -> None:
    """Save a random adapter with plain PEFT; ``outputs`` of a head, None for a causal LM."""
    import torch
    from peft import LoraConfig, get_peft_model

    model = load_fresh(str(base), outputs, device="cpu", dtype="fp32")
    choice = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | lora
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = LoraConfig(task_type="CAUSAL_LM" if outputs is None else "SEQ_CLS", **choice)
        made = get_peft_model(model, config).eval()
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                if "lora_" in name:
                    parameter.normal_(0.0, 0.2)
    if dtype:
        made.to(getattr(torch, dtype))
    made.save_pretrained(folder, save_embedding_layers=False)


def change_config(folder: Path, **changes: Any) -> None:
    data = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(data | changes))


def change_tensors(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def logits(folder: Path, base: Path, outputs: int | None) -> Any:
    """What plain PEFT makes of a folder."""
    import torch
    from peft import PeftModel

    model = load_fresh(str(base), outputs, device="cpu", dtype="fp32")
    ids = torch.arange(5, 21).reshape(2, 8)
    with torch.no_grad():
        bare = model(input_ids=ids).logits
        adapted = PeftModel.from_pretrained(model, folder).eval()(input_ids=ids).logits
    assert not torch.allclose(bare, adapted)
    return adapted


def fetched(store: AdapterStore, done: Imported) -> Artifact:
    return store.fetch(done.version)


# ----------------------------------------------------------------------- it computes as before


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
def test_plain_peft_computes_the_same_from_the_published_folder(
    bring: Callable[..., Imported],
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
    published = fetched(store, bring(original, base=base)).folder
    assert torch.equal(logits(published, base, outputs), logits(original, base, outputs))


def test_weights_are_kept_byte_for_byte(
    bring: Callable[..., Imported], store: AdapterStore, generating: Path
) -> None:
    published = fetched(store, bring(generating)).folder
    assert (published / WEIGHTS).read_bytes() == (generating / WEIGHTS).read_bytes()


def test_pattern_is_replaced_by_names_and_never_compiled(
    bring: Callable[..., Imported], store: AdapterStore, folder: Path
) -> None:
    change_config(folder, target_modules="((((", exclude_modules="[")
    done = bring(folder)
    assert fetched(store, done).lora.targets == ("q_proj", "v_proj")


@pytest.mark.parametrize("said", [True, False], ids=["null", "absent"])
def test_targets_that_were_left_to_peft_are_told_by_the_tensors(
    bring: Callable[..., Imported], store: AdapterStore, folder: Path, said: bool
) -> None:
    config = json.loads((folder / CONFIG).read_text())
    del config["target_modules"]
    (folder / CONFIG).write_text(json.dumps(config | ({"target_modules": None} if said else {})))
    assert fetched(store, bring(folder)).lora.targets == ("q_proj", "v_proj")


def test_history_of_the_training_is_left_out(
    bring: Callable[..., Imported], store: AdapterStore, folder: Path
) -> None:
    change_config(
        folder,
        revision="main",
        auto_mapping={"base_model_class": "Evil", "parent_library": "evil"},
        init_lora_weights="eva",
        eva_config={"rho": 2.0},
    )
    config = json.loads((fetched(store, bring(folder)).folder / CONFIG).read_text())
    assert not {"revision", "auto_mapping", "eva_config"} & config.keys()
    assert config["init_lora_weights"] is True


def test_identity_depends_on_the_adapter_alone(
    bring: Callable[..., Imported], folder: Path, tmp_path: Path
) -> None:
    first = bring(folder).version
    moved = shutil.copytree(folder, tmp_path / "other-name")
    change_config(moved, base_model_name_or_path="/elsewhere", target_modules=".*(q|v)_proj")
    assert bring(moved).version.digest == first.digest


_NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_MODULES = [
    f"model.layers.{layer}.{'self_attn' if name[0] in 'qkvo' else 'mlp'}.{name}"
    for layer in range(3)
    for name in _NAMES
]


@pytest.fixture(scope="module")
def skeleton(tiny: Path) -> Skeleton:
    return read_skeleton(tiny, headed=True)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(adapted=st.sets(st.sampled_from(_MODULES), min_size=1), rank=st.integers(1, 48))
def test_any_subset_of_modules_at_any_rank_keeps_exactly_its_targets(
    skeleton: Skeleton, tmp_path: Path, adapted: set[str], rank: int
) -> None:
    import torch
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists
    from safetensors.torch import save_file

    tensors = {}
    for name in adapted:
        inputs, outputs = skeleton.linear[name]
        tensors[f"{PREFIX}{name}.lora_A.weight"] = torch.zeros(rank, inputs)
        tensors[f"{PREFIX}{name}.lora_B.weight"] = torch.zeros(outputs, rank)
    save_file(tensors, tmp_path / WEIGHTS)
    raw = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 8,
           "target_modules": ".*"}  # fmt: skip
    (tmp_path / CONFIG).write_text(json.dumps(raw))
    foreign = read_foreign(tmp_path)
    config = plain_config(foreign, skeleton)
    lora = check_config(config, tmp_path / CONFIG)
    check_tensors(foreign.tensors, lora, {"kind": "generation"}, tmp_path / WEIGHTS)
    check_fits(foreign, lora, skeleton)
    peft = LoraConfig(target_modules=config["target_modules"])
    assert {name for name in skeleton.modules if lora.adapts(name)} == adapted
    assert {name for name in skeleton.modules if check_target_module_exists(peft, name)} == adapted


def test_skeleton_allocates_no_weight_and_knows_the_trunk(skeleton: Skeleton) -> None:
    assert skeleton.linear.keys() == set(_MODULES)
    assert skeleton.linear["model.layers.0.mlp.down_proj"] == (64, HIDDEN)
    assert skeleton.head == ("score", HIDDEN)


# -------------------------------------------------------------------------------- which files


def test_foreign_files_are_neither_opened_nor_copied(
    bring: Callable[..., Imported], store: AdapterStore, folder: Path, tmp_path: Path
) -> None:
    marker = tmp_path / "opened"
    (folder / "README.md").write_text("A foreign card")
    (folder / "training_args.bin").write_bytes(pickle.dumps(Payload(marker)))
    os.mkfifo(folder / "tokenizer.json")  # whoever opens it, waits for ever
    published = fetched(store, bring(folder)).folder
    assert {path.name for path in published.iterdir()} == {
        CONFIG, WEIGHTS, "trunkline.json", "provenance.json", "README.md",
    }  # fmt: skip
    assert "A foreign card" not in (published / "README.md").read_text()
    assert not marker.exists()


class Payload:
    """Unpickled, it touches a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("name", ["adapter_model.bin", "pytorch_model.pt"])
def test_pickle_in_the_weights_place_is_refused_unopened(
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


def test_absent_folder_is_not_found(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "There is no folder" in refused(tmp_path / "nowhere", NotFoundError)


def test_links_of_a_download_cache_are_followed(
    bring: Callable[..., Imported], store: AdapterStore, folder: Path, tmp_path: Path
) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for name in (CONFIG, WEIGHTS):
        (snapshot / name).symlink_to(folder / name)
    assert not (fetched(store, bring(snapshot)).folder / WEIGHTS).is_symlink()


# ------------------------------------------------------------------------------- what is refused


@pytest.fixture
def refused(
    bring: Callable[..., Imported], registry: Registry, tmp_path: Path
) -> Callable[..., str]:
    """The message of a refusal that touched nothing."""

    def refused(folder: Path, kind: type[TrunklineError] = IntegrityError, **wishes: Any) -> str:
        with pytest.raises(kind) as caught:
            bring(folder, **wishes)
        assert caught.value.hint
        assert "\n" not in caught.value.message
        assert registry.adapters.list() == []
        assert registry.sources.list_bases() == []
        assert registry.events.list() == []
        assert not (tmp_path / "workspace" / "adapters").exists()
        return caught.value.message

    return refused


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "dora": ({"use_dora": True}, "uses DoRA, which changes more than a product of two matrices"),
    "biases": ({"bias": "all"}, "trains the base's biases"),
    "biases of lora": ({"bias": "lora_only"}, "trains the base's biases"),
    "lora bias": ({"lora_bias": True}, "adds a bias"),
    "pissa": ({"init_lora_weights": "pissa"}, "taken out of the base"),
    "pissa niter": ({"init_lora_weights": "pissa_niter_4"}, "taken out of the base"),
    "olora": ({"init_lora_weights": "olora"}, "taken out of the base"),
    "corda": ({"init_lora_weights": "corda"}, "taken out of the base"),
    "loftq": ({"init_lora_weights": "loftq"}, "taken out of the base"),
    "lora ga": ({"init_lora_weights": "lora_ga"}, "taken out of the base"),
    "unknown beginning": ({"init_lora_weights": "newest"}, "init_lora_weights = 'newest'"),
    "embeddings saved": ({"modules_to_save": ["embed_tokens"]}, "modules of the base anew"),
    "output layer saved": ({"modules_to_save": ["lm_head"]}, "modules of the base anew"),
    "rank pattern": ({"rank_pattern": {"q_proj": 8}}, "another rank"),
    "alpha pattern": ({"alpha_pattern": {"q_proj": 8}}, "another alpha"),
    "replicated layers": ({"layer_replication": [[0, 2], [1, 3]]}, "repeats layers"),
    "megatron": ({"megatron_config": {"a": 1}}, "Megatron"),
    "tokens": ({"trainable_token_indices": [1]}, "embeddings of some tokens"),
    "parameters": ({"target_parameters": ["weight"]}, "bare parameters"),
    "arrow": ({"arrow_config": {"top_k": 1}}, "Arrow"),
    "activated": ({"alora_invocation_tokens": [1, 2]}, "aLoRA"),
    "tied weights": ({"ensure_weight_tying": True}, "ensure_weight_tying"),
    "unknown key": ({"use_something_new": True}, "'use_something_new' = True"),
    "code": ({"auto_map": {"AutoConfig": "evil.Config"}}, "code of its own"),
    "another method": ({"peft_type": "IA3", "feedforward_modules": ["x"]}, "not made by LoRA"),
    "another model": ({"task_type": "SEQ_2_SEQ_LM"}, "a task that is not served"),
    "rank too large": ({"r": 1025}, "rank 1025"),
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
def test_more_than_plain_lora_is_refused_with_the_reason(
    refused: Callable[..., str], folder: Path, attack: str
) -> None:
    changes, reason = CONFIGS[attack]
    change_config(folder, **changes)
    assert reason in refused(folder)


def put(name: str, *shape: int) -> Callable[[dict[str, Any]], Any]:
    def put(tensors: dict[str, Any]) -> None:
        import torch

        tensors[name] = torch.zeros(shape)

    return put


def rename(old: str, new: str) -> Callable[[dict[str, Any]], Any]:
    def rename(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if old in name]:
            tensors[name.replace(old, new)] = tensors.pop(name)

    return rename


def set_one(value: float) -> Callable[[dict[str, Any]], Any]:
    def set_one(tensors: dict[str, Any]) -> None:
        tensors[f"{Q0}.lora_B.weight"][3, 1] = value

    return set_one


TENSORS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "magnitudes": (put(f"{Q0}.lora_magnitude_vector", 32), "uses DoRA"),
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
    "unknown": (put(f"{Q0}.lora_diag", 4), "unknown tensor"),
    "no prefix": (rename(PREFIX, ""), "not named as PEFT names it"),
    "module of no base": (rename("q_proj", "query"), "this base does not have"),
    "layer of a larger base": (rename("layers.2.", "layers.7."), "this base does not have"),
    "output layer adapted": (rename("model.layers.0.self_attn.q_proj", "lm_head"),
                             "no linear layer of the base's trunk"),
    "module that is no layer": (rename("layers.0.self_attn.q_proj", "layers.0.self_attn"),
                                "no linear layer of the base's trunk"),
    "wrong inputs": (put(f"{Q0}.lora_A.weight", 4, 64), "with 64 inputs"),
    "wrong outputs": (put(f"{Q0}.lora_B.weight", 33, 4), "33 outputs"),
    "NaN": (set_one(float("nan")), "NaN or infinity"),
    "infinity": (set_one(float("-inf")), "NaN or infinity"),
}  # fmt: skip


@pytest.mark.parametrize("attack", TENSORS)
def test_tensors_that_are_not_those_of_plain_lora_are_refused(
    refused: Callable[..., str], folder: Path, attack: str
) -> None:
    change, reason = TENSORS[attack]
    change_tensors(folder, change)
    change_config(folder, target_modules=".*")
    assert reason in refused(folder)


HEADS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "bias": (put(f"{PREFIX}score.bias", 3), "has a head with a bias"),
    "two layers": (put(f"{PREFIX}classifier.dense.weight", 32, 32), "of several layers"),
    "none": (lambda t: t.pop(f"{PREFIX}score.weight"), "0 heads"),
    "another name": (rename("score", "classifier"), "is called 'score'"),
    "two heads": (put(f"{PREFIX}classifier.weight", 3, 32), "head"),
    "wide": (put(f"{PREFIX}score.weight", 3, 64), "has 32 hidden units"),
    "vector": (put(f"{PREFIX}score.weight", 32), "has 32 hidden units"),
    "no outputs": (put(f"{PREFIX}score.weight", 0, 32), "head"),
    "a billion empty outputs": (put(f"{PREFIX}score.weight", 10**9, 0), "has 32 hidden units"),
}


@pytest.mark.parametrize("attack", HEADS)
def test_head_that_is_not_one_matrix_of_this_base_is_refused(
    refused: Callable[..., str], headed: Path, attack: str
) -> None:
    change, reason = HEADS[attack]
    change_tensors(headed, change)
    assert reason in refused(headed, TrunklineError)


@pytest.mark.filterwarnings("ignore")
def test_adapter_of_another_base_is_refused(
    refused: Callable[..., str], tiny_gpt2: Path, tmp_path: Path
) -> None:
    save(tmp_path / "gpt2", tiny_gpt2)
    assert "this base does not have" in refused(tmp_path / "gpt2")


def test_weights_that_change_while_they_are_read_are_refused(
    bring: Callable[..., Imported], folder: Path, headed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copyfile
    monkeypatch.setattr(shutil, "copyfile", lambda _, target: copy(headed / WEIGHTS, target))
    with pytest.raises(IntegrityError, match="changed while it was read"):
        bring(folder)


def test_full_disk_is_one_sentence(
    bring: Callable[..., Imported], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfile", fail)
    with pytest.raises(RegistryError, match="No space left"):
        bring(folder)


# ----------------------------------------------------------------------- what it is for, and whose


def test_causal_lm_generates_and_the_text_is_the_prompt(
    bring: Callable[..., Imported], store: AdapterStore, folder: Path
) -> None:
    manifest = fetched(store, bring(folder)).manifest
    assert manifest.task == {"kind": "generation", "max_new_tokens": 128}
    assert manifest.make_template() == Template(prompt="{text}", clean=())


def test_head_with_several_outputs_classifies_by_transformers_names(
    bring: Callable[..., Imported], store: AdapterStore, headed: Path
) -> None:
    done = bring(headed)
    assert fetched(store, done).manifest.task["labels"] == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert any("LABEL_0 to LABEL_2" in sentence for sentence in done.notes)


def test_head_with_one_output_gives_a_number(
    bring: Callable[..., Imported], store: AdapterStore, headed: Path
) -> None:
    change_tensors(headed, put(f"{PREFIX}score.weight", 1, 32))
    task = fetched(store, bring(headed, unit="EUR")).manifest.task
    assert task == {
        "kind": "regression", "scale": "linear", "mean": 0.0, "deviation": 1.0, "unit": "EUR",
    }  # fmt: skip


@pytest.mark.parametrize("wishes", [{}, {"labels": ("a", "b", "c")}])
def test_task_is_one_that_the_platform_reads(
    bring: Callable[..., Imported], headed: Path, wishes: dict[str, Any]
) -> None:
    assert task_from_json(dict(bring(headed, **wishes).task)).kind == "classification"


def test_what_the_user_says_is_kept(
    bring: Callable[..., Imported], store: AdapterStore, headed: Path
) -> None:
    template = Template(prompt="Q: {text}", clean=("strip",), chat=True)
    manifest = fetched(store, bring(headed, labels=("a", "b", "c"), template=template)).manifest
    assert manifest.task["labels"] == ["a", "b", "c"]
    assert manifest.make_template() == template


def test_task_of_a_configuration_without_one_is_the_users(
    bring: Callable[..., Imported], store: AdapterStore, folder: Path
) -> None:
    change_config(folder, task_type=None)
    config = json.loads(
        (fetched(store, bring(folder, task="generation")).folder / CONFIG).read_text()
    )
    assert config["task_type"] == "CAUSAL_LM"


WISHES: dict[str, tuple[bool, dict[str, Any], str]] = {
    "labels of a generation": (False, {"labels": ("a", "b")}, "no use for labels"),
    "unit of a classification": (True, {"unit": "EUR"}, "no use for a unit"),
    "tokens of a classification": (True, {"max_new_tokens": 3}, "no use for max_new_tokens"),
    "no tokens": (False, {"max_new_tokens": 0}, "max_new_tokens can't be 0"),
    "tokens beyond the context": (False, {"max_new_tokens": 256}, "no room for a prompt"),
    "too few labels": (True, {"labels": ("a", "b")}, "2 labels"),
    "a label twice": (True, {"labels": ("a", "b", "a")}, "3 labels"),
    "an empty label": (True, {"labels": ("a", "", "b")}, "3 labels"),
    "task against the file": (False, {"task": "classification"}, "task_type 'CAUSAL_LM'"),
    "regression of three": (True, {"task": "regression"}, "3 outputs"),
    "unknown task": (False, {"task": "tagging"}, "no task 'tagging'"),
    "a version": (False, {"ref": REF.at(3)}, "names a version"),
}


@pytest.mark.parametrize("wish", WISHES)
def test_wish_that_does_not_suit_the_adapter_is_wrong_use(
    refused: Callable[..., str], folder: Path, headed: Path, wish: str
) -> None:
    head, wishes, reason = WISHES[wish]
    assert reason in refused(headed if head else folder, UsageError, **wishes)


def test_classification_with_one_output_is_wrong_use(
    refused: Callable[..., str], headed: Path
) -> None:
    change_tensors(headed, put(f"{PREFIX}score.weight", 1, 32))
    assert "one output" in refused(headed, UsageError, task="classification")


def test_configuration_without_a_task_asks_for_one(
    refused: Callable[..., str], folder: Path
) -> None:
    change_config(folder, task_type=None)
    assert "does not say its task_type" in refused(folder, UsageError)


def test_name_of_an_adapter_for_another_task_is_refused(
    bring: Callable[..., Imported], folder: Path, headed: Path
) -> None:
    bring(folder)
    with pytest.raises(RefusedError, match="is for generation, not for classification"):
        bring(headed)


# -------------------------------------------------------------------------------- what is recorded


def test_version_has_a_base_but_no_run_and_no_dataset(
    bring: Callable[..., Imported], store: AdapterStore, folder: Path, tiny: Path
) -> None:
    done = bring(folder)
    assert (done.version.number, done.version.run, done.version.dataset) == (1, None, None)
    assert done.version.base_digest == describe(str(tiny)).digest
    assert set(fetched(store, done).manifest.data.values()) == {"unknown"}


def test_second_import_is_the_next_version(bring: Callable[..., Imported], folder: Path) -> None:
    assert [bring(folder).version.number for _ in range(2)] == [1, 2]


@pytest.mark.parametrize("kind", ["version.published", "version.imported"])
def test_event_tells_by_whom_and_from_which_folder(
    bring: Callable[..., Imported], registry: Registry, folder: Path, kind: str
) -> None:
    version = bring(folder).version
    event = next(one for one in registry.events.list(subject="toy/elsewhere") if one.kind == kind)
    told = event.detail.get("imported", event.detail)
    assert event.actor.startswith("system:")
    assert told["folder"] == "my-lora"
    assert event.detail["digest"] == version.digest


def test_provenance_holds_no_control_characters_of_strangers(
    bring: Callable[..., Imported], store: AdapterStore, folder: Path
) -> None:
    """What is written down is read again without trust, for an export or a rebuild."""
    from trunkline.adapters.provenance import read_provenance

    change_config(
        folder,
        base_model_name_or_path="a\x1b[2Jb\u202e",
        revision="\x00",
        auto_mapping={"a": [[[]]]},
    )
    imported = read_provenance(fetched(store, bring(folder))).imported
    assert imported is not None
    assert imported["named_base"].isascii()
    assert imported["left_out"]["revision"] == ascii("\x00")


def test_another_named_base_is_told_and_recorded(
    bring: Callable[..., Imported], store: AdapterStore, folder: Path
) -> None:
    change_config(folder, base_model_name_or_path="somebody/large`\n# model")
    done = bring(folder)
    published = fetched(store, done).folder
    assert "can't be verified" in done.notes[0]
    provenance = json.loads((published / "provenance.json").read_text())
    assert provenance["imported"]["named_base"] == "somebody/large`\n# model"
    assert "\n# model" not in (published / "README.md").read_text()


def test_the_bases_own_name_is_not_remarked_on(
    bring: Callable[..., Imported], folder: Path, tiny: Path
) -> None:
    change_config(folder, base_model_name_or_path=str(tiny))
    assert bring(folder).notes == ()


def test_card_says_what_is_not_known(
    bring: Callable[..., Imported], store: AdapterStore, folder: Path
) -> None:
    card = (fetched(store, bring(folder)).folder / "README.md").read_text()
    assert "Trained elsewhere" in card
    assert "## Evaluation\nNOT PROVIDED" in card
    assert "## Data\nNOT PROVIDED" in card


def test_manifest_beside_it_is_not_believed(bring: Callable[..., Imported], folder: Path) -> None:
    (folder / "trunkline.json").write_text('{"task": "evil"}')
    assert any("trunkline.json" in sentence for sentence in bring(folder).notes)
