"""The adapter pool computes what PEFT computes, and leaves the base unchanged."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tiny_base import Family, make_tiny_base
from trunkline.adapters.artifact import read_artifact
from trunkline.bases.linear import fuse_linear_layers
from trunkline.errors import BaseMismatchError, IntegrityError
from trunkline.inference.forward import last_hidden, next_logits
from trunkline.lora.pool import AdapterPool
from trunkline.lora.routing import Routing
from workbench import LABELS, make_artifact, reseal

PROMPTS = [[5, 6, 7], [40, 41, 42, 43, 44, 45], [9]]
PAD = 0
TARGETS: dict[Family, tuple[str, ...]] = {
    "llama": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "qwen2": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "gpt2": ("c_attn", "c_proj", "c_fc"),
}


def digest_of(base: Path) -> str:
    from trunkline.bases import describe

    return describe(str(base)).digest


def causal(base: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base).eval().requires_grad_(False)


def pool_of(base: Path) -> tuple[Any, AdapterPool]:
    model = causal(base)
    return model, AdapterPool(model, digest_of(base), fuse_linear_layers(model))


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> dict[Family, Path]:
    folder = tmp_path_factory.mktemp("families")
    return {
        "llama": tiny,
        "qwen2": make_tiny_base(folder / "qwen2", "qwen2"),
        "gpt2": make_tiny_base(folder / "gpt2", "gpt2"),
    }


@pytest.fixture(scope="module")
def pools(bases: dict[Family, Path]) -> dict[Family, tuple[Any, AdapterPool]]:
    """Family → a base and its adapter pool, shared by all examples."""
    return {family: pool_of(base) for family, base in bases.items()}


@pytest.fixture(scope="module")
def tmp_module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pool")


@st.composite
def adapters(draw: st.DrawFn) -> tuple[Family, dict[str, Any], int]:
    """A family, settings for LoraConfig, and a seed."""
    family = cast(Family, draw(st.sampled_from(sorted(TARGETS))))
    targets = draw(st.lists(st.sampled_from(TARGETS[family]), min_size=1, unique=True))
    lora = {
        "r": draw(st.integers(1, 20)),
        "lora_alpha": draw(st.floats(0.25, 64)),
        "target_modules": targets,
        "use_rslora": draw(st.booleans()),
        "layers_to_transform": draw(st.sampled_from([None, [1, 2], [2], [0]])),
    }
    return family, lora, draw(st.integers(0, 1000))


@settings(max_examples=40, deadline=None)
@given(adapters())
def test_logits_are_those_of_peft(
    bases: dict[Family, Path],
    pools: dict[Family, tuple[Any, AdapterPool]],
    tmp_module: Path,
    adapter: tuple[Family, dict[str, Any], int],
) -> None:
    from peft import PeftModel

    family, lora, seed = adapter
    folder = tmp_module / "generation"
    shutil.rmtree(folder, ignore_errors=True)
    make_artifact(folder, bases[family], "generation", seed=seed, **lora)
    model, pool = pools[family]
    artifact = read_artifact(folder)
    pool.load(artifact)
    with pool.activate(artifact.digest):
        ours = next_logits(model, PROMPTS, PAD)
    bare = next_logits(model, PROMPTS, PAD)
    theirs = next_logits(PeftModel.from_pretrained(causal(bases[family]), folder), PROMPTS, PAD)
    assert (ours - theirs).abs().max() < 1e-4 * max(1.0, float(theirs.abs().max()))
    assert (ours - bare).abs().max() > 1e-3


@pytest.mark.parametrize("family", sorted(TARGETS))
@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_head_gives_what_plain_peft_gives(
    bases: dict[Family, Path],
    pools: dict[Family, tuple[Any, AdapterPool]],
    tmp_path: Path,
    family: Family,
    kind: str,
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    from trunkline.tasks.batches import pad

    folder = tmp_path / "artifact"
    make_artifact(folder, bases[family], kind, seed=3, r=11)
    plain = AutoModelForSequenceClassification.from_pretrained(
        bases[family], num_labels=len(LABELS) if kind == "classification" else 1, pad_token_id=PAD
    )
    with torch.inference_mode():
        theirs = PeftModel.from_pretrained(plain, folder).eval()(**pad(PROMPTS, PAD)).logits
    model, pool = pools[family]
    artifact = read_artifact(folder)
    pool.load(artifact)
    with pool.activate(artifact.digest) as resident:
        assert resident is not None
        assert resident.head is not None
        ours = resident.head(last_hidden(model, PROMPTS, PAD))
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.fixture
def resident_pool(sound: Path, tiny: Path) -> tuple[Any, AdapterPool, str]:
    """Model, adapter pool with the sound artifact resident, its digest."""
    model, pool = pool_of(tiny)
    artifact = read_artifact(sound)
    pool.load(artifact)
    return model, pool, artifact.digest


def test_base_is_bare_again_after_the_block(resident_pool: tuple[Any, AdapterPool, str]) -> None:
    model, pool, digest = resident_pool
    before = next_logits(model, PROMPTS, PAD)
    with pool.activate(digest):
        assert not torch.equal(next_logits(model, PROMPTS, PAD), before)
    assert torch.equal(next_logits(model, PROMPTS, PAD), before)


def test_base_is_bare_again_after_an_exception(resident_pool: tuple[Any, AdapterPool, str]) -> None:
    model, pool, digest = resident_pool
    before = next_logits(model, PROMPTS, PAD)
    with pytest.raises(KeyError, match="inside"), pool.activate(digest):
        raise KeyError("inside")
    assert torch.equal(next_logits(model, PROMPTS, PAD), before)
    with pool.activate(digest):
        pass


def test_adapter_is_released_after_the_block(resident_pool: tuple[Any, AdapterPool, str]) -> None:
    _, pool, digest = resident_pool
    with pool.activate(digest):
        assert pool.residents()[0].in_use == 1
    with pytest.raises(KeyError, match="inside"), pool.activate(digest):
        raise KeyError("inside")
    assert pool.residents()[0].in_use == 0


def test_none_is_the_bare_base(resident_pool: tuple[Any, AdapterPool, str]) -> None:
    model, pool, _ = resident_pool
    before = next_logits(model, PROMPTS, PAD)
    with pool.activate(None) as resident:
        assert resident is None
        assert torch.equal(next_logits(model, PROMPTS, PAD), before)


def test_blocks_do_not_nest(
    resident_pool: tuple[Any, AdapterPool, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trunkline.lora.slots.TURN_SECONDS", 0.05)
    model, pool, digest = resident_pool
    before = next_logits(model, PROMPTS, PAD)
    with pool.activate(digest), pytest.raises(RuntimeError, match="nest"), pool.activate(digest):
        pass
    assert torch.equal(next_logits(model, PROMPTS, PAD), before)


def test_another_thread_waits_for_the_base(resident_pool: tuple[Any, AdapterPool, str]) -> None:
    model, pool, digest = resident_pool
    before = next_logits(model, PROMPTS, PAD)
    seen: list[torch.Tensor] = []

    def run() -> None:
        with pool.activate(None):
            seen.append(next_logits(model, PROMPTS, PAD))

    thread = threading.Thread(target=run)
    with pool.activate(digest):
        thread.start()
        thread.join(timeout=0.2)
        assert not seen
    thread.join(timeout=10)
    assert torch.equal(seen[0], before)


def test_two_pools_of_one_base_do_not_disturb_each_other(
    sound: Path, tiny: Path, tmp_path: Path
) -> None:
    make_artifact(tmp_path / "other", tiny, seed=4, r=12)
    model = causal(tiny)
    fused_layers = fuse_linear_layers(model)
    alone: list[torch.Tensor] = []
    pools = [AdapterPool(model, digest_of(tiny), fused_layers) for _ in range(2)]
    digests = []
    for pool, folder in zip(pools, (sound, tmp_path / "other"), strict=True):
        digests.append(pool.load(read_artifact(folder)).artifact.digest)
        with pool.activate(digests[-1]):
            alone.append(next_logits(model, PROMPTS, PAD))
    for _ in range(2):
        for pool, digest, expected in zip(pools, digests, alone, strict=True):
            with pool.activate(digest):
                assert torch.equal(next_logits(model, PROMPTS, PAD), expected)
    assert not torch.equal(alone[0], alone[1])


def test_another_pool_of_the_base_waits_too(tiny: Path) -> None:
    model = causal(tiny)
    fused_layers = fuse_linear_layers(model)
    one, other = (AdapterPool(model, digest_of(tiny), fused_layers) for _ in range(2))
    entered = threading.Event()

    def run() -> None:
        with other.route(Routing()):
            entered.set()

    thread = threading.Thread(target=run)
    with one.route(Routing()):
        thread.start()
        assert not entered.wait(0.2)
    thread.join(timeout=10)
    assert entered.is_set()


def test_loading_twice_returns_the_same_resident(sound: Path, tiny: Path) -> None:
    _, pool = pool_of(tiny)
    artifact = read_artifact(sound)
    assert pool.load(artifact) is pool.load(artifact)
    assert len(pool) == 1
    pool.unload(artifact.digest)
    assert artifact.digest not in pool


def test_another_base_is_refused(sound: Path, tiny: Path) -> None:
    model = causal(tiny)
    pool = AdapterPool(model, "0" * 64, fuse_linear_layers(model))
    with pytest.raises(BaseMismatchError) as caught:
        pool.load(read_artifact(sound))
    assert "tiny" in caught.value.message
    assert "--base tiny" in (caught.value.hint or "")


def forged(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Change the tensors and make the digests agree."""
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    reseal(folder)
    return folder


Q = "base_model.model.model.layers.1.self_attn.q_proj.lora_"
HEAD = "base_model.model.score.weight"

FORGERIES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "inputs of another width": lambda t: t.update({f"{Q}A.weight": torch.ones(4, 16)}),
    "outputs of another width": lambda t: t.update({f"{Q}B.weight": torch.ones(16, 4)}),
    "head of another width": lambda t: t.update({HEAD: torch.ones(3, 16)}),
    "NaN in A": lambda t: t[f"{Q}A.weight"].fill_(float("nan")),
    "infinity in B": lambda t: t[f"{Q}B.weight"].fill_(float("inf")),
    "NaN in the head": lambda t: t[HEAD].fill_(float("nan")),
    "a layer missing": lambda t: [t.pop(f"{Q}A.weight"), t.pop(f"{Q}B.weight")],
    "a layer too many": lambda t: [
        t.update({name.replace("layers.1", "layers.7"): t[name].clone()})
        for name in list(t)
        if name.startswith(Q)
    ],
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_tensors_that_do_not_fit_are_refused_before_anything_changes(
    artifact: Path, tiny: Path, forgery: str
) -> None:
    model, pool = pool_of(tiny)
    before = next_logits(model, PROMPTS, PAD)
    with pytest.raises(IntegrityError) as caught:
        pool.load(read_artifact(forged(artifact, FORGERIES[forgery])))
    assert caught.value.hint
    assert len(pool) == 0
    assert torch.equal(next_logits(model, PROMPTS, PAD), before)


def test_weights_that_change_between_check_and_load_are_refused(artifact: Path, tiny: Path) -> None:
    _, pool = pool_of(tiny)
    checked = read_artifact(artifact)
    path = artifact / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(IntegrityError, match="changed"):
        pool.load(checked)


def test_weights_that_vanish_between_check_and_load_are_refused(artifact: Path, tiny: Path) -> None:
    _, pool = pool_of(tiny)
    checked = read_artifact(artifact)
    shutil.rmtree(artifact)
    with pytest.raises(IntegrityError, match="can't be read"):
        pool.load(checked)


def test_half_precision_weights_are_computed_in_float32(artifact: Path, tiny: Path) -> None:
    folder = forged(artifact, lambda t: t.update({name: value.half() for name, value in t.items()}))
    _, pool = pool_of(tiny)
    resident = pool.load(read_artifact(folder))
    assert {up.dtype for _, up in resident.matrices.values()} == {torch.float32}
