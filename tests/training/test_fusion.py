"""Late fusion: one version from a text and an image adapter, by the answers of both."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from fusion_workbench import (
    GOODS,
    draw_goods,
    fused_platform,
    fused_workspace,
    goods,
    goods_recipes,
    opened_both,
    tiny_resnet,
)
from trunkline.adapters.artifact import MANIFEST, read_artifact
from trunkline.adapters.fusion import FusedParent, Fusion
from trunkline.adapters.rebuild import rebuild_registry
from trunkline.api import Platform
from trunkline.contracts import NoProgress, Row
from trunkline.data.pairs import join_groups
from trunkline.errors import IntegrityError, RefusedError, UsageError
from trunkline.images import ImageSource
from trunkline.inference.fusion import fuse_probabilities
from trunkline.inference.request import Request
from trunkline.refs import Ref
from trunkline.training.fusion import fit_fusion

__all__ = ["fused_platform", "fused_workspace", "goods", "tiny_resnet"]

PARENTS = {
    "text": FusedParent(ref="a/text@1", digest=f"sha256:{'1' * 64}"),
    "image": FusedParent(ref="a/image@1", digest=f"sha256:{'2' * 64}"),
}


def probabilities(rng: np.random.Generator, rows: int, labels: int) -> Any:
    return rng.dirichlet([0.3] * labels, size=rows)


# ------------------------------------------------------------------------------------ combination


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 5),
    labels=st.integers(2, 6),
    weight=st.none() | st.floats(0, 1),
)
def test_combination_is_the_plain_formula(
    seed: int, rows: int, labels: int, weight: float | None
) -> None:
    rng = np.random.default_rng(seed)
    text, image = (probabilities(rng, rows, labels) for _ in range(2))
    if weight is None:
        coefficients = rng.normal(0, 3, (labels, 2 * labels)).tolist()
        intercepts = rng.normal(0, 3, labels).tolist()
        numbers = {"coefficients": coefficients, "intercepts": intercepts}
        fusion = Fusion(method="stacked", **PARENTS, **numbers)
    else:
        fusion = Fusion(method="average", **PARENTS, weight=weight)
    fused = fuse_probabilities(Fusion.model_validate(fusion.to_json()), text, image)
    for row in range(rows):
        if weight is None:
            known = [math.log(max(one, 1e-7)) for one in (*text[row], *image[row])]
            scores = [
                sum(one * log for one, log in zip(own, known, strict=True)) + intercept
                for own, intercept in zip(coefficients, intercepts, strict=True)
            ]
            powers = [math.exp(score - max(scores)) for score in scores]
            expected = [power / sum(powers) for power in powers]
        else:
            expected = [
                weight * one + (1 - weight) * other
                for one, other in zip(text[row], image[row], strict=True)
            ]
        assert fused[row].tolist() == pytest.approx(expected, abs=1e-9)
        assert sum(fused[row]) == pytest.approx(1)


@pytest.mark.parametrize("labels", [2, 4])
def test_stacking_answers_as_scikit_learn_does(labels: int) -> None:
    rng = np.random.default_rng(labels)
    text, image = (probabilities(rng, 80, labels) for _ in range(2))
    targets = [int(row.argmax()) for row in text * image]
    groups = [str(index // 2) for index in range(80)]
    fitted = fit_fusion("stacked", text, image, targets, groups)
    fused = fuse_probabilities(Fusion(method="stacked", **PARENTS, **fitted.numbers), text, image)
    features = np.log(np.maximum(np.concatenate([text, image], axis=1), 1e-7))
    strength = float(fitted.detail.partition("C=")[2].partition(",")[0])
    model = LogisticRegression(C=strength, max_iter=2000).fit(features, targets)
    assert fused == pytest.approx(model.predict_proba(features), abs=1e-6)


def test_weight_has_the_least_log_loss_on_validation_rows() -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, 60).tolist()
    right = np.eye(3)[targets] * 0.9 + 0.1 / 3
    uniform = np.full((60, 3), 1 / 3)
    groups = [str(index) for index in range(60)]
    assert fit_fusion("average", right, uniform, targets, groups).numbers == {"weight": 1.0}
    assert fit_fusion("average", uniform, right, targets, groups).numbers == {"weight": 0.0}
    assert fit_fusion("average", right, right, targets, groups).numbers == {"weight": 0.5}


def test_stacking_without_rows_of_a_label_is_refused() -> None:
    table = np.full((4, 3), 1 / 3)
    with pytest.raises(RefusedError, match="2 of 3 labels"):
        fit_fusion("stacked", table, table, [0, 1, 0, 1], list("abcd"))


# ------------------------------------------------------------------------------------------- rows


def test_rows_that_share_a_text_or_a_picture_are_one_group() -> None:
    def row(id: str, group: str, picture: bytes) -> Row:
        source = ImageSource(picture, id).identified()
        return Row(id=id, text=group, target="x", group=group, image=source)

    rows = [row("1", "a", b"x"), row("2", "b", b"x"), row("3", "b", b"y"), row("4", "c", b"z")]
    groups = [one.group for one in join_groups(rows)]
    assert groups[0] == groups[1] == groups[2] != groups[3]


def test_both_halves_are_trained_on_the_same_rows(fused_platform: Platform) -> None:
    versions = [fused_platform.resolve(f"{GOODS}-{half}").version for half in ("text", "image")]
    assert [one.modality for one in versions] == ["text", "image"]
    assert len({(one.dataset_fingerprint, one.split_fingerprint) for one in versions}) == 1
    assert fused_platform.evaluate(f"{GOODS}-text").rows == 24


# ---------------------------------------------------------------------------------------- version


def test_version_has_two_parents_and_no_weights(fused_platform: Platform) -> None:
    version = fused_platform.resolve(f"{GOODS}@1").version
    parents = [fused_platform.resolve(f"{GOODS}-{half}").version for half in ("text", "image")]
    assert (version.task, version.modality) == ("classification", "text+image")
    assert version.merge is not None
    assert [one.digest for one in version.merge.parents] == [one.digest for one in parents]
    assert sum(one.weight for one in version.merge.parents) == pytest.approx(1)
    lineage = fused_platform.registry.lineage.of_version(parents[0].ref)
    assert lineage.merged_into == (f"{GOODS}@2", f"{GOODS}@1")
    artifact = fused_platform.store.fetch(version)
    names = {path.name for path in artifact.folder.iterdir()}
    assert names == {MANIFEST, "provenance.json", "README.md", "croissant.json"}
    assert fused_platform.verify(version).damage is None
    assert "fusion of two adapters" in fused_platform.store.render_card(version)


def test_report_has_both_parents_and_the_baselines_of_both(fused_platform: Platform) -> None:
    evaluated = fused_platform.evaluation_report(fused_platform.resolve(f"{GOODS}@2").version)
    assert evaluated is not None
    names = set(evaluated[0].baselines)
    assert names >= {f"{GOODS}-text@1", f"{GOODS}-image@1", "majority", "hog"}
    again = fused_platform.evaluate(f"{GOODS}@2")
    assert again.score == evaluated[0].score
    assert again.baselines == evaluated[0].baselines


def test_answers_combine_those_of_the_parents(fused_platform: Platform, goods: Path) -> None:
    pairs = [(f"bowl number {index}", goods / f"{index}.png") for index in range(3)]
    texts = fused_platform.predict(f"{GOODS}-text", [text for text, _ in pairs])
    pictures = fused_platform.predict_images(f"{GOODS}-image", [path for _, path in pairs])
    for number in (1, 2):
        model = fused_platform.resolve(f"{GOODS}@{number}")
        assert model.fused is not None
        tables = [[list((one.probabilities or {}).values()) for one in part]
                  for part in (texts, pictures)]  # fmt: skip
        expected = fuse_probabilities(model.fused.fusion, *tables)
        for answer, row in zip(fused_platform.predict_pairs(model.name, pairs), expected,
                               strict=True):  # fmt: skip
            assert (answer.adapter, answer.digest) == (model.name, model.digest)
            assert list((answer.probabilities or {}).values()) == pytest.approx(row, abs=1e-5)
            assert answer.confidence == max((answer.probabilities or {}).values())


@pytest.mark.parametrize(
    ("half", "lacks"), [({"text": "a bowl"}, "picture"), ({"image": b"x"}, "text")]
)
def test_missing_half_is_named(fused_platform: Platform, half: dict[str, Any], lacks: str) -> None:
    image = ImageSource(half["image"]) if "image" in half else None
    with pytest.raises(UsageError, match=f"the {lacks} is missing"):
        fused_platform.run([Request(GOODS, half.get("text", ""), image=image)])


def test_new_version_under_a_parents_name_changes_nothing(
    fused_platform: Platform, goods: Path
) -> None:
    pair = [("lamp number 7", goods / "7.png")]
    before = fused_platform.predict_pairs(f"{GOODS}@1", pair)
    fused_platform.train(goods_recipes(goods)[0], seed=9)
    assert fused_platform.predict_pairs(f"{GOODS}@1", pair) == before


def test_promotion_needs_more_than_the_better_parent(fused_platform: Platform) -> None:
    assert fused_platform.promote(f"{GOODS}@1", force=True, reason="a test").new == 1
    assert fused_platform.resolve(GOODS).version.number == 1


# ------------------------------------------------------------------------------------- refusals


def test_parents_of_another_split_or_other_labels_are_refused(
    fused_platform: Platform, goods: Path, tmp_path: Path
) -> None:
    _, image = goods_recipes(draw_goods(tmp_path / "other", 48), "shop/other")
    fused_platform.train(image)
    with pytest.raises(RefusedError, match="trained on different rows"):
        fused_platform.files.fuse_adapters(f"{GOODS}-text", "shop/other-image", "shop/new")
    with pytest.raises(RefusedError, match="don't read one a text"):
        fused_platform.files.fuse_adapters(f"{GOODS}-text", f"{GOODS}-text", "shop/new")
    columns = {"image": "path", "label": "label"}
    for seed, one in enumerate(goods_recipes(goods / "labels.csv", "shop/own", **columns)):
        fused_platform.train(one, split_seed=seed)
    with pytest.raises(RefusedError, match="trained on different splits"):
        fused_platform.files.fuse_adapters("shop/own-text", "shop/own-image", "shop/new")
    with pytest.raises(UsageError, match="no weights of its own"):
        fused_platform.files.merge_adapters([f"{GOODS}@1", f"{GOODS}@2"], "shop/new")


def test_changed_artifact_is_refused(fused_platform: Platform, goods: Path) -> None:
    version = fused_platform.resolve(f"{GOODS}@1").version
    folder = fused_platform.store.fetch(version).folder
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["fusion"]["weight"] = 0.123
    (folder / MANIFEST).write_text(json.dumps(manifest))
    assert fused_platform.verify(version).damage is not None
    with pytest.raises(IntegrityError, match="is not the version's"):
        fused_platform.predict_pairs(f"{GOODS}@1", [("a bowl", goods / "0.png")])


def test_fusion_with_weights_is_refused(fused_platform: Platform, tmp_path: Path) -> None:
    folder = fused_platform.store.fetch(fused_platform.resolve(f"{GOODS}@1").version).folder
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "adapter_config.json").write_text("{}")
    with pytest.raises(IntegrityError, match=r"safetensors is missing"):
        read_artifact(copy)


@pytest.mark.parametrize(
    ("numbers", "problem"),
    [
        ({"weight": 1.5}, "less than or equal to 1"),
        ({"weight": 0.5, "intercepts": [0.0]}, "has no intercepts"),
        ({}, "needs weight"),
    ],
)
def test_impossible_numbers_are_refused(numbers: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Fusion(method="average", **PARENTS, **numbers)


def test_parent_of_a_fusion_is_kept(fused_platform: Platform) -> None:
    with pytest.raises(RefusedError, match=rf"the fusion {GOODS}@[12] answers with it"):
        fused_platform.remove_version(f"{GOODS}-text@1", "a test")
    for number in (1, 2):
        fused_platform.remove_version(f"{GOODS}@{number}", "a test")
    fused_platform.remove_version(f"{GOODS}-text@1", "a test")


def test_missing_parent_is_an_error(
    fused_platform: Platform, goods: Path, tmp_path: Path, tiny: Path, tiny_resnet: Path
) -> None:
    archive = tmp_path / "goods.tar"
    fused_platform.files.export_adapter(f"{GOODS}@1", archive)
    for other in opened_both(tmp_path / "empty", tiny, tiny_resnet):
        with pytest.raises(RefusedError, match="which this workspace does not have"):
            other.files.import_archive(archive)
        for half in ("text", "image"):
            fused_platform.files.export_adapter(f"{GOODS}-{half}@1", tmp_path / f"{half}.tar")
            other.files.import_archive(tmp_path / f"{half}.tar")
        assert other.files.import_archive(archive).version.ref == Ref.parse(f"{GOODS}@1")
        pair = [("a bowl", goods / "0.png")]
        (answer,) = other.predict_pairs(GOODS, pair)
        (expected,) = fused_platform.predict_pairs(f"{GOODS}@1", pair)
        assert answer.probabilities == pytest.approx(expected.probabilities, abs=1e-5)
    root = fused_platform.workspace.root
    fused_platform.registry.close()
    for path in root.glob("registry.db*"):
        path.unlink()
    shutil.rmtree(root / "adapters" / f"{GOODS}-text")
    for rebuilt in opened_both(root, tiny, tiny_resnet):
        rebuild_registry(rebuilt.store, listener=NoProgress())
        with pytest.raises(IntegrityError, match=f"{GOODS}-text@1.*does not have"):
            rebuilt.predict_pairs(f"{GOODS}@1", [("a bowl", goods / "0.png")])
