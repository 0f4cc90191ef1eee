"""DoRA: served outputs are those of PEFT, alone and beside plain adapters, for every family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tiny_base import Family, make_tiny_base
from trunkline.adapters.artifact import CONFIG, WEIGHTS, Artifact, read_artifact
from trunkline.api import Platform
from trunkline.bases.linear import fuse_linear_layers
from trunkline.errors import IntegrityError, Interrupted, RefusedError, UsageError
from trunkline.files import read_json_object
from trunkline.inference.forward import next_logits
from trunkline.lora.pool import AdapterPool
from trunkline.lora.routing import Routing, Span
from workbench import SETTINGS, make_artifact, platform, tiny

__all__ = ["platform", "tiny"]

PROMPTS = [[5, 17, 40, 6], [9, 8, 7, 3], [100, 101, 4, 5]]
TARGETS: dict[Family, tuple[str, ...]] = {
    "llama": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "qwen2": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "gpt2": ("c_attn", "c_proj", "c_fc"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[Family, Path]:
    root = tmp_path_factory.mktemp("families")
    return {family: make_tiny_base(root / family, family) for family in TARGETS}


@pytest.fixture(scope="module")
def pools(folders: dict[Family, Path]) -> dict[Family, tuple[Any, AdapterPool]]:
    """Family → a fused model with biases that are not zero, and a pool of 12 pages."""
    from transformers import AutoModelForCausalLM

    from trunkline.bases import describe

    made = {}
    for family, folder in folders.items():
        model = AutoModelForCausalLM.from_pretrained(folder).eval().requires_grad_(False)
        draw = torch.Generator().manual_seed(3)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(torch.randn(parameter.shape, generator=draw))
        model.save_pretrained(folder)
        pool = AdapterPool(
            model, describe(str(folder)).digest, fuse_linear_layers(model), slots=12,
            host_bytes=1 << 30,
        )  # fmt: skip
        made[family] = (model, pool)
    return made


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_mixed_batches_give_the_outputs_of_peft(
    folders: dict[Family, Path],
    pools: dict[Family, tuple[Any, AdapterPool]],
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
) -> None:
    family = data.draw(st.sampled_from(sorted(TARGETS)))
    base, (model, pool) = folders[family], pools[family]
    root = tmp_path_factory.mktemp("dora")
    artifacts: list[Artifact] = []
    expected = [next_logits(_plain(base), PROMPTS, 0)]
    for index in range(3):
        folder = root / str(index)
        lora = {
            "use_dora": index > 0,
            "r": data.draw(st.integers(1, 20)),
            "use_rslora": data.draw(st.booleans()),
            "target_modules": data.draw(
                st.lists(st.sampled_from(TARGETS[family]), min_size=1, unique=True)
            ),
        }
        truth = make_artifact(folder, base, "generation", seed=index, **lora)
        artifacts.append(read_artifact(folder))
        expected.append(next_logits(truth, PROMPTS, 0))
    pages: list[tuple[int, ...]] = [()]
    for artifact in artifacts:
        resident = pool.load(artifact)
        assert resident.pages
        pages.append(resident.pages)
    order = data.draw(st.permutations(range(4)))[:3]
    length = len(PROMPTS[0])
    of_tokens = [pages[adapter] for adapter in order for _ in range(length)]
    spans = [
        Span(row * length, (row + 1) * length, pages[adapter]) for row, adapter in enumerate(order)
    ]
    size = max(float(one.abs().max()) for one in expected)
    for routing in (Routing(of_tokens), Routing(spans=spans)):
        with pool.route(routing):
            actual = next_logits(model, PROMPTS, 0)
        for row, adapter in enumerate(order):
            difference = (actual[row] - expected[adapter][row]).abs().max()
            assert float(difference) / size < 1e-4
    for artifact in artifacts:
        pool.unload(artifact.digest)


def _plain(base: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base).eval()


def test_pages_of_an_evicted_dora_adapter_scale_nothing(
    folders: dict[Family, Path],
    pools: dict[Family, tuple[Any, AdapterPool]],
    tmp_path: Path,
) -> None:
    model, pool = pools["llama"]
    for index in range(4):
        make_artifact(tmp_path / f"dora{index}", folders["llama"], "generation", seed=index,
                      r=24, use_dora=True)  # fmt: skip
        pool.load(read_artifact(tmp_path / f"dora{index}"))
    truth = make_artifact(tmp_path / "plain", folders["llama"], "generation", seed=9, r=80)
    artifact = read_artifact(tmp_path / "plain")
    pool.load(artifact)
    with pool.activate(artifact.digest):
        actual = next_logits(model, PROMPTS, 0)
    assert torch.allclose(actual, next_logits(truth, PROMPTS, 0), atol=1e-3)


@pytest.mark.parametrize("recipe", ["toy/animals", "toy/prices", "toy/plurals"])
def test_a_trained_dora_adapter_is_proved_resumed_and_evaluated(
    platform: Platform, recipe: str
) -> None:
    steps: list[int] = []

    def should_stop() -> bool:
        steps.append(1)
        return len(steps) == 3

    chosen = SETTINGS | {"use_dora": True}
    with pytest.raises(Interrupted):
        platform.train(recipe, should_stop=should_stop, **chosen)
    resumed = platform.train(recipe, resume=1)
    assert resumed.version.digest == platform.train(recipe, **chosen).version.digest
    assert resumed.report["proof"]["to_trained"] < 1e-4
    artifact = platform.store.fetch(resumed.version)
    assert artifact.lora.use_dora
    assert "DoRA" in platform.store.render_card(resumed.version)
    planned = platform.plan(recipe, **chosen)
    tensors = sum(torch.Size(info.shape).numel() for info in artifact.tensors.values())
    assert planned.adapter_bytes == 4 * tensors
    platform.train(recipe, **SETTINGS)
    with pytest.raises(RefusedError, match="uses DoRA"):
        platform.files.merge_adapters([f"{recipe}@1", f"{recipe}@3"], "toy/merged")


def test_a_dora_adapter_of_peft_is_imported(platform: Platform, tiny: Path, tmp_path: Path) -> None:
    truth = make_artifact(tmp_path / "away", tiny, "generation", seed=4, use_dora=True)
    for name in ("trunkline.json",):
        (tmp_path / "away" / name).unlink()
    imported = platform.files.import_adapter(tmp_path / "away", "toy/away")
    assert imported.lora.use_dora
    artifact = platform.store.fetch(imported.version)
    engine = platform.engine
    engine.pool.load(artifact)
    with engine.pool.activate(artifact.digest):
        actual = next_logits(engine.base.model, PROMPTS, 0)
    expected = next_logits(truth, PROMPTS, 0)
    assert float((actual - expected).abs().max() / expected.abs().max()) < 1e-4
    merged = platform.files.export_model("toy/away", tmp_path / "merged", "merged")
    assert merged.rows > 0
    with pytest.raises(UsageError, match="DoRA"):
        platform.files.export_model("toy/away", tmp_path / "a.gguf", "gguf-lora")


@pytest.mark.parametrize("damage", ["missing", "short", "orphan"])
def test_magnitudes_must_match_the_outputs(tiny: Path, tmp_path: Path, damage: str) -> None:
    from safetensors.torch import load_file, save_file

    from workbench import reseal

    folder = tmp_path / "artifact"
    make_artifact(folder, tiny, "generation", use_dora=True, target_modules=["q_proj"])
    tensors = load_file(folder / WEIGHTS)
    name = next(name for name in tensors if name.endswith("lora_magnitude_vector"))
    magnitude = tensors.pop(name)
    if damage == "short":
        tensors[name] = magnitude[1:].clone()
    elif damage == "orphan":
        tensors[name] = magnitude
        tensors[name.replace("q_proj", "o_proj")] = magnitude.clone()
    save_file(tensors, folder / WEIGHTS)
    reseal(folder)
    with pytest.raises(IntegrityError, match=r"magnitude"):
        read_artifact(folder)
    assert read_json_object(folder / CONFIG)["use_dora"] is True


def test_dora_is_not_combined_with_a_changed_base(platform: Platform) -> None:
    with pytest.raises(UsageError, match="can't be combined"):
        platform.train("toy/animals", use_dora=True, init_lora_weights="pissa")
