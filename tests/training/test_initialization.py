"""``init_lora_weights``: what was trained on a changed base is served on the unchanged one."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from trunkline.adapters.artifact import CONFIG, WEIGHTS, read_artifact
from trunkline.api import Platform, open
from trunkline.contracts import Settings
from trunkline.errors import Interrupted, UsageError
from trunkline.files import read_json_object
from trunkline.inference.settings import EngineSettings
from trunkline.tasks import ClassificationTask, GenerationTask
from trunkline.training.model import initial_matrices, lora_model, restore_base
from workbench import SETTINGS

METHODS = ("gaussian", "orthogonal", "olora", "pissa", "pissa_niter_4")
TASK = ClassificationTask(("bird", "fish"))
INPUTS = torch.tensor([[5, 17, 40, 9, 8]])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("recipe", ["toy/animals", "toy/plurals"])
def test_a_resumed_run_publishes_the_adapter_of_an_uninterrupted_one(
    platform: Platform, method: str, recipe: str
) -> None:
    steps: list[int] = []

    def should_stop() -> bool:
        steps.append(1)
        return len(steps) == 3

    chosen = SETTINGS | {"init_lora_weights": method}
    with pytest.raises(Interrupted):
        platform.train(recipe, should_stop=should_stop, **chosen)
    resumed = platform.train(recipe, resume=1)
    uninterrupted = platform.train(recipe, **chosen)
    assert resumed.version.digest == uninterrupted.version.digest
    assert resumed.report["proof"]["to_trained"] < 1e-4

    lora = platform.store.fetch(resumed.version).lora
    doubled = method.startswith(("pissa", "olora"))
    assert lora.rank == (8 if doubled else 4)
    assert lora.scaling == pytest.approx(2.0)
    plain = platform.train(recipe, **SETTINGS)
    assert plain.version.digest != resumed.version.digest
    planned = platform.plan(recipe, **chosen)
    tensors = load_file(platform.store.fetch(resumed.version).folder / WEIGHTS)
    assert planned.adapter_bytes == sum(4 * tensor.numel() for tensor in tensors.values())
    assert planned.trainable_parameters == platform.plan(recipe, **SETTINGS).trainable_parameters


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rank=st.integers(1, 16),
    alpha=st.floats(0.5, 64),
    rslora=st.booleans(),
    method=st.sampled_from(("olora", "pissa", "pissa_niter_2")),
    seed=st.integers(0, 5),
)
def test_the_converted_adapter_is_the_trained_model(
    tiny: Path,
    tmp_path_factory: pytest.TempPathFactory,
    rank: int,
    alpha: float,
    rslora: bool,
    method: str,
    seed: int,
) -> None:
    from peft import PeftModel

    from trunkline.bases import load_fresh

    chosen = Settings(
        r=rank, lora_alpha=alpha, use_rslora=rslora, init_lora_weights=method, seed=seed
    )
    torch.manual_seed(seed)
    model = lora_model(str(tiny), GenerationTask(8), chosen, "cpu")
    initial = initial_matrices(model, chosen)
    fresh = load_fresh(str(tiny), None, device="cpu", dtype="fp32")
    with torch.no_grad():
        start = model(INPUTS).logits
        assert torch.allclose(start, fresh(INPUTS).logits, atol=2e-3)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter += 0.05 * torch.randn_like(parameter)
        expected = model.eval()(INPUTS).logits
    folder = tmp_path_factory.mktemp("converted")
    model.save_pretrained(folder, save_embedding_layers=False)
    restore_base(folder, initial)
    config = read_json_object(folder / CONFIG)
    scale = config["lora_alpha"] / (math.sqrt(config["r"]) if rslora else config["r"])
    assert scale == pytest.approx(alpha / (math.sqrt(rank) if rslora else rank))
    assert config["init_lora_weights"] is True
    loaded = PeftModel.from_pretrained(fresh, folder).eval()
    with torch.no_grad():
        actual = loaded(INPUTS).logits
    size = float(expected.abs().max())
    assert float((actual - expected).abs().max()) / size < 1e-4


def test_the_first_matrices_are_those_of_the_base(tiny: Path) -> None:
    from trunkline.bases import load_fresh

    chosen = Settings(r=4, lora_alpha=4, init_lora_weights="pissa", target_modules="q_proj")
    first = initial_matrices(lora_model(str(tiny), TASK, chosen, "cpu"), chosen)
    weight = load_fresh(str(tiny), None, device="cpu", dtype="fp32").state_dict()[
        "model.layers.0.self_attn.q_proj.weight"
    ]
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    product = first[f"{prefix}.lora_B.weight"] @ first[f"{prefix}.lora_A.weight"]
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    assert torch.allclose(product, (left[:, :4] * values[:4]) @ right[:4], atol=1e-4)
    assert initial_matrices(lora_model(str(tiny), TASK, Settings(r=4), "cpu"), Settings(r=4)) == {}


def test_plain_peft_loads_the_published_adapter(platform: Platform, tiny: Path) -> None:
    version = platform.train("toy/prices", init_lora_weights="pissa", **SETTINGS).version
    artifact = read_artifact(platform.store.fetch(version).folder)
    tensors = load_file(artifact.folder / WEIGHTS)
    downs = [tensor for name, tensor in tensors.items() if name.endswith("lora_A.weight")]
    assert {len(tensor) for tensor in downs} == {8}
    assert platform.evaluate(str(version.ref)).rows > 0


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"init_lora_weights": "orthogonal", "r": 3}, "even rank"),
        ({"init_lora_weights": "pissa", "r": 600}, "twice the rank"),
        ({"init_lora_weights": "olora", "r": 17}, "narrowest of which has 16"),
        ({"init_lora_weights": "eva"}, "init_lora_weights can't be 'eva'"),
        ({"init_lora_weights": "pissa_niter_0"}, "can't be 'pissa_niter_0'"),
        ({"init_lora_weights": False}, "must be text"),
    ],
)
def test_impossible_settings_are_refused_before_training(
    platform: Platform, chosen: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        platform.train("toy/animals", **chosen)
    assert platform.registry.runs.list() == []


def test_a_rank_beyond_the_slots_is_refused_before_training(
    platform: Platform, tmp_path: Path
) -> None:
    small = open(platform.workspace.root, base=platform.base_name, engine=EngineSettings(slots=1))
    with pytest.raises(UsageError, match="rank 10; the engine has slots for 8"):
        small.train("toy/animals", init_lora_weights="pissa", r=5)
    small.registry.close()


def test_true_is_the_default_as_in_peft() -> None:
    assert Settings(init_lora_weights=True).init_lora_weights == "true"  # type: ignore[arg-type]
    assert Settings(init_lora_weights="PiSSA").init_lora_weights == "pissa"
