"""Merging versions: what PEFT computes is what is served, with its parents in the lineage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from trunkline.adapters.artifact import WEIGHTS, read_artifact
from trunkline.adapters.config import is_head
from trunkline.adapters.provenance import read_provenance
from trunkline.adapters.rebuild import rebuild_registry
from trunkline.api import Platform, open
from trunkline.contracts import NoProgress, Template
from trunkline.errors import RefusedError, UsageError
from trunkline.inference.forward import last_hidden, next_logits
from trunkline.refs import Ref
from trunkline.registry.records import VersionRecord
from trunkline.training.merge_weights import METHODS
from workbench import make_artifact

PROMPTS = [[5, 17, 40], [9, 8, 7, 6, 5, 4, 3], [100, 101]]
TOLERANCE = 1e-4


def publish(platform: Platform, tiny: Path, folder: Path, name: str, **made: Any) -> VersionRecord:
    """A version with random matrices under ``toy/<name>``."""
    from trunkline.training.run import RunContext, record_base

    kind = made.get("kind", "classification")
    make_artifact(folder, tiny, **made)
    context = RunContext(
        platform.workspace,
        platform.registry,
        platform.store,
        platform.engine,
        NoProgress(),
        lambda: False,
    )
    return platform.store.publish(
        folder, Ref("toy", name), task=kind, run=None, base_digest=record_base(context)
    )


def served(platform: Platform, version: VersionRecord) -> tuple[torch.Tensor, Any]:
    """The hidden states of the prompts under a version as a server computes them, and its head."""
    engine = platform.engine
    artifact = platform.store.fetch(version)
    resident = engine.pool.load(artifact)
    with engine.pool.activate(artifact.digest):
        hidden = last_hidden(engine.base.model, PROMPTS, 0)
    engine.pool.unload(artifact.digest)
    return hidden, resident.head


def logits(platform: Platform, version: VersionRecord) -> torch.Tensor:
    engine = platform.engine
    artifact = platform.store.fetch(version)
    engine.pool.load(artifact)
    with engine.pool.activate(artifact.digest):
        result = next_logits(engine.base.model, PROMPTS, 0)
    engine.pool.unload(artifact.digest)
    return result


def peft_merged(
    tiny: Path, folders: list[Path], weights: list[float], method: str, **options: Any
) -> torch.Tensor:
    """Next-token logits of PEFT's own merge of generation adapters."""
    from peft import PeftModel

    from trunkline.bases import load_fresh

    model = load_fresh(str(tiny), None, device="cpu", dtype="fp32")
    model = PeftModel.from_pretrained(model, folders[0], adapter_name="a0")
    names = ["a0"]
    for index, folder in enumerate(folders[1:], 1):
        model.load_adapter(folder, adapter_name=f"a{index}")
        names.append(f"a{index}")
    torch.manual_seed(options.pop("seed", 0))
    model.base_model.add_weighted_adapter(names, weights, "sum", combination_type=method, **options)
    model.set_adapter("sum")
    return next_logits(model.eval(), PROMPTS, 0)


weight = st.floats(0.1, 2.0) | st.floats(-1.0, -0.1)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(ranks=st.lists(st.integers(1, 9), min_size=2, max_size=3), data=st.data())
def test_a_linear_merge_adds_the_weighted_updates(
    platform: Platform,
    tiny: Path,
    tmp_path_factory: pytest.TempPathFactory,
    ranks: list[int],
    data: st.DataObject,
) -> None:
    root = tmp_path_factory.mktemp("merge")
    weights = data.draw(st.lists(weight, min_size=len(ranks), max_size=len(ranks)))
    rslora = data.draw(st.booleans())
    folders = [root / str(index) for index in range(len(ranks))]
    refs = []
    for index, (rank, folder) in enumerate(zip(ranks, folders, strict=True)):
        version = publish(
            platform, tiny, folder, "plurals", kind="generation", seed=index + 10 * rank, r=rank,
            use_rslora=rslora and index == 0,
            target_modules=["q_proj", "down_proj"] if index else "all-linear",
        )  # fmt: skip
        refs.append(str(version.ref))
    merged = platform.files.merge_adapters(refs, "toy/sum", weights=tuple(weights))
    assert merged.rank == sum(ranks)

    # the base with the sum of the weighted updates, computed without PEFT
    from trunkline.bases import load_fresh

    model = load_fresh(str(tiny), None, device="cpu", dtype="fp32")
    with torch.no_grad():
        for folder, factor in zip(folders, weights, strict=True):
            artifact, tensors = read_artifact(folder), load_file(folder / WEIGHTS)
            for key in tensors:
                if key.endswith("lora_A.weight"):
                    module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                    up = tensors[key.replace("lora_A", "lora_B")]
                    update = artifact.lora.scaling * up @ tensors[key]
                    model.get_submodule(module).weight += factor * update
    expected = next_logits(model, PROMPTS, 0)
    size = float(expected.abs().max())
    assert float((logits(platform, merged.version) - expected).abs().max()) / size < TOLERANCE


@pytest.mark.parametrize("method", METHODS)
def test_it_computes_what_peft_merges(
    platform: Platform, tiny: Path, tmp_path: Path, method: str
) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    refs = [
        str(publish(platform, tiny, folder, "plurals", kind="generation", seed=seed, r=4).ref)
        for seed, folder in enumerate(folders)
    ]
    weights = [0.7, 0.6]
    density = 0.6 if method in ("ties", "dare") else None
    options = {"seed": 3} if method == "dare" else {}
    merged = platform.files.merge_adapters(
        refs, "toy/merged", method=method, weights=tuple(weights), density=density, **options
    )
    expected = peft_merged(
        tiny,
        folders,
        weights,
        {"linear": "cat", "svd": "svd", "ties": "ties_svd", "dare": "dare_linear_svd"}[method],
        density=density,
        svd_full_matrices=False,
        **options,
    )
    size = float(expected.abs().max())
    assert float((logits(platform, merged.version) - expected).abs().max()) / size < TOLERANCE
    again = platform.files.merge_adapters(
        refs, "toy/again", method=method, weights=tuple(weights), density=density, **options
    )
    assert again.version.digest == merged.version.digest
    assert merged.proof.to_trained < TOLERANCE


def test_the_seed_decides_what_dare_drops(platform: Platform, tiny: Path, tmp_path: Path) -> None:
    refs = [
        str(publish(platform, tiny, tmp_path / str(n), "plurals", kind="generation", seed=n).ref)
        for n in range(2)
    ]
    digests = {
        platform.files.merge_adapters(refs, "toy/dare", method="dare", seed=seed).version.digest
        for seed in (0, 1, 0)
    }
    assert len(digests) == 2


def test_heads_are_averaged_with_the_weights(
    platform: Platform, tiny: Path, tmp_path: Path
) -> None:
    versions = [publish(platform, tiny, tmp_path / str(n), "a", seed=n) for n in range(2)]
    merged = platform.files.merge_adapters(
        [str(one.ref) for one in versions], "toy/a", method="linear", weights=(3.0, 1.0)
    )
    heads = [served(platform, one)[1].weight for one in versions]
    assert torch.allclose(
        served(platform, merged.version)[1].weight, (3 * heads[0] + heads[1]) / 4, atol=1e-6
    )
    assert merged.version.ref == Ref.parse("toy/a@3")
    assert merged.evaluation_report is None
    assert "not evaluated" in merged.notes[0]
    folder = platform.store.fetch(merged.version).folder
    assert any(is_head(name) for name in load_file(folder / WEIGHTS))


def test_a_merge_of_one_dataset_is_evaluated_and_can_be_promoted(
    trained_platform: Platform,
) -> None:
    platform = trained_platform
    platform.train("toy/prices", max_steps=5)
    merged = platform.files.merge_adapters(
        ["toy/prices@1", "toy/prices@2"], "toy/mixed", method="svd", weights=(0.5, 0.5)
    )
    version = merged.version
    evaluated = platform.evaluation_report(version)
    assert evaluated is not None
    assert merged.evaluation_report is not None
    assert evaluated[0].to_json() == merged.evaluation_report.to_json()
    again = platform.evaluate("toy/mixed@1")
    assert again.score.value == pytest.approx(merged.evaluation_report.score.value, rel=1e-5)
    assert platform.promote("toy/mixed@1").new == 1

    lineage = platform.registry.lineage.of_version(version.ref)
    assert lineage.version is not None
    assert lineage.version.merge is not None
    assert [one.ref for one in lineage.version.merge.parents] == ["toy/prices@1", "toy/prices@2"]
    parent = platform.registry.lineage.of_version(Ref.parse("toy/prices@2"))
    assert parent.merged_into == ("toy/mixed@1",)
    assert set(platform.registry.versions.contributors(version)) >= set(
        platform.registry.versions.contributors(platform.resolve("toy/prices@1").version)
    )
    provenance = read_provenance(platform.store.fetch(version))
    assert provenance.merge is not None
    assert [one.weight for one in provenance.merge.parents] == [0.5, 0.5]
    assert len(provenance.evaluations) == 1
    card = platform.store.render_card(version)
    assert "toy/prices@1" in card
    assert "cut to the rank by SVD" in card


def test_parents_survive_export_import_and_rebuild(
    trained_platform: Platform, tmp_path: Path
) -> None:
    platform = trained_platform
    platform.train("toy/prices", max_steps=5)
    merged = platform.files.merge_adapters(["toy/prices@1", "toy/prices@2"], "toy/mixed")
    file = tmp_path / "mixed.tar"
    platform.files.export_adapter("toy/mixed@1", file)
    copied = platform.files.import_archive(file, "toy/copied").version
    assert copied.merge == merged.version.merge
    platform.registry.close()
    for path in platform.workspace.root.glob("registry.db*"):
        path.unlink()
    with_new_registry = open(platform.workspace.root, base=platform.base_name)
    rebuild_registry(with_new_registry.store, listener=NoProgress())
    rebuilt = with_new_registry.resolve("toy/mixed@1").version
    assert rebuilt.merge == merged.version.merge
    assert with_new_registry.evaluation_report(rebuilt) is not None


@pytest.mark.parametrize(
    ("other", "differs"),
    [
        ({"kind": "regression"}, "task"),
        ({"template": Template(prompt="Say: {text}")}, "template"),
        ({"max_length": 50}, "max_length"),
        ({"seed": 0}, "same artifact"),
    ],
)
def test_different_adapters_are_refused(
    platform: Platform, tiny: Path, tmp_path: Path, other: dict[str, Any], differs: str
) -> None:
    one = publish(platform, tiny, tmp_path / "one", "one", seed=0)
    two = publish(platform, tiny, tmp_path / "two", "two", **{"seed": 1, **other})
    with pytest.raises(RefusedError, match=differs):
        platform.files.merge_adapters([str(one.ref), str(two.ref)], "toy/merged")
    assert [str(one.ref) for one in platform.adapters()] == ["toy/one", "toy/two"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": (1.0,)}, "1 weights for 2"),
        ({"weights": (1.0, float("nan"))}, "can't be nan"),
        ({"weights": (1.0, -1.0)}, "no mean"),
        ({"density": 0.5}, "no density"),
        ({"rank": 4}, "no rank"),
        ({"seed": 4, "method": "ties"}, "no seed"),
        ({"density": 0.0, "method": "ties"}, "density can't be 0"),
        ({"rank": 33, "method": "svd"}, "rank can't be 33"),
        ({"method": "slerp"}, "no method 'slerp'"),
    ],
)
def test_impossible_options_are_refused(
    platform: Platform, tiny: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    refs = [str(publish(platform, tiny, tmp_path / str(n), "a", seed=n).ref) for n in range(2)]
    with pytest.raises(UsageError, match=message):
        platform.files.merge_adapters(refs, "toy/merged", **options)
