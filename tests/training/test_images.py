"""An adapter for pictures is trained, evaluated and published as one for text is."""

from __future__ import annotations

import json
import shutil
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest

from image_workbench import (
    NAME,
    SHAPES,
    image_platform,
    image_workspace,
    opened_images,
    shapes,
    shapes_recipe,
    tiny_resnet,
)
from tiny_images import encoded, make_tiny_image_base, picture
from trunkline.api import Platform
from trunkline.cli.file_options import make_own_recipe
from trunkline.errors import (
    BaseMismatchError,
    DataError,
    Interrupted,
    RefusedError,
    TooLargeError,
    UsageError,
)
from trunkline.images import ImageSource
from trunkline.inference.request import Request
from trunkline.training import run_info

__all__ = ["image_platform", "image_workspace", "shapes", "tiny_resnet"]


def report_of(platform: Platform) -> Any:
    evaluated = platform.evaluation_report(platform.resolve(NAME).version)
    assert evaluated is not None
    return evaluated[0]


def test_version_has_its_base_and_preprocessing(image_platform: Platform) -> None:
    model = image_platform.resolve(NAME)
    artifact = model.artifact()
    assert artifact is not None
    base = image_platform.engines.image.base
    assert (model.modality, model.version.base_digest) == ("image", base.digest)
    assert artifact.manifest.make_preprocessing() == base.info.preprocessing
    assert artifact.manifest.max_length is None


def test_artifact_was_proved(image_platform: Platform) -> None:
    report = image_platform.registry.runs.get(1).report
    assert report is not None
    assert report["proof"]["to_trained"] < 1e-3 < report["proof"]["to_base"]
    assert report["compute"]["flops"] is None
    assert (report["tokens_trained"], report["longest"], report["truncated"]) == (None,) * 3
    assert report["pictures_trained"] == 2 * report["data"]["parts"]["train"]
    assert report["picture_size"] == [32, 32]
    assert "tokens" not in {one.name for one in image_platform.registry.runs.metrics(1)}


def test_baselines_are_those_of_pictures(image_platform: Platform) -> None:
    report = report_of(image_platform)
    assert set(report.baselines) == {"majority", "frozen-features", "hog"}
    assert report.baseline_details["frozen-features"].startswith("frozen features, C=")
    assert report.baseline_details["hog"].startswith("HOG, C=")


def test_stored_predictions_are_those_of_the_engine(image_platform: Platform, shapes: Path) -> None:
    evaluations = image_platform.registry.evaluations
    latest = evaluations.list(version=image_platform.resolve(NAME).version.ref)[0]
    stored = {one.row_id: one for one in evaluations.predictions(latest.id)}
    answers = image_platform.predict_images(NAME, [shapes / name for name in stored])
    assert [one.label for one in answers] == [one.prediction for one in stored.values()]
    assert all(
        answer.confidence == pytest.approx(one.confidence, abs=1e-4)
        for answer, one in zip(answers, stored.values(), strict=True)
    )


def test_evaluating_again_gives_the_same_scores(image_platform: Platform) -> None:
    before = report_of(image_platform)
    again = image_platform.evaluate(NAME)
    assert (again.scores, again.baselines) == (before.scores, before.baselines)


def test_ensemble_of_adapters_for_pictures_is_evaluated(
    image_platform: Platform, shapes: Path
) -> None:
    image_platform.train(shapes_recipe(shapes, seed=3, max_steps=2))
    report = image_platform.evaluate(f"{NAME}@1", ensemble=[f"{NAME}@2"])
    assert report.rows == report_of(image_platform).rows


def test_cross_validation_of_pictures(image_platform: Platform, shapes: Path) -> None:
    result = image_platform.cross_validate(shapes_recipe(shapes, max_steps=1), 2)
    assert "frozen-features" in result.evaluation_report.baselines


def test_version_is_verified_and_promoted(image_platform: Platform) -> None:
    assert image_platform.verify(image_platform.resolve(NAME).version).damage is None
    image_platform.promote(NAME, force=True, reason="a test")
    assert image_platform.resolve(f"{NAME}@champion").version.number == 1


def test_card_describes_pictures(image_platform: Platform) -> None:
    artifact = image_platform.resolve(NAME).artifact()
    assert artifact is not None
    card = (artifact.folder / "README.md").read_text()
    assert "pipeline_tag: image-classification" in card
    assert "A LoRA adapter for classification of pictures" in card
    assert "its center of 32 × 32 cropped" in card
    assert " pictures\n" in card
    assert "tokens" not in card


def test_resumed_training_gives_the_same_adapter(
    tmp_path: Path, tiny_resnet: Path, shapes: Path, image_platform: Platform
) -> None:
    expected = image_platform.resolve(NAME).version.digest
    stops = chain(repeat(False, 4), repeat(True))
    for platform in opened_images(tmp_path / "stopped", tiny_resnet):
        with pytest.raises(Interrupted):
            platform.train(shapes_recipe(shapes), should_stop=partial(next, stops))
        result = platform.train(shapes_recipe(shapes), resume=1)
        assert result.version.digest == expected


@pytest.mark.parametrize("package", ["pillow", "pydicom"])
def test_run_is_not_resumed_with_another_decoder(
    tmp_path: Path, tiny_resnet: Path, shapes: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    """Another version may give other pixels for the same files."""
    unchanged = run_info.version
    stops = chain(repeat(False, 4), repeat(True))
    for platform in opened_images(tmp_path / "stopped", tiny_resnet):
        with pytest.raises(Interrupted):
            platform.train(shapes_recipe(shapes), should_stop=partial(next, stops))
        monkeypatch.setattr(
            run_info, "version", lambda name: "0.1" if name == package else unchanged(name)
        )
        with pytest.raises(RefusedError, match=rf"{package} was .* and is '0\.1' now"):
            platform.train(shapes_recipe(shapes), resume=1)


def test_number_is_learned_of_pictures(tmp_path: Path, tiny_resnet: Path, shapes: Path) -> None:
    table = tmp_path / "areas.csv"
    rows = [
        f"{shapes / name / f'{index}.png'},{index + 1}" for name in SHAPES for index in range(9)
    ]
    table.write_text("\n".join(["photo,area", *rows]))
    config = make_own_recipe("own/areas", table, {"image": "photo", "target": "area"})
    for platform in opened_images(tmp_path / "numbers", tiny_resnet):
        result = platform.train(config, max_steps=2, r=4)
        assert set(result.evaluation_report.baselines) == {"group-median", "frozen-features", "hog"}
        answer = platform.predict_images("own/areas", [shapes / "circle" / "0.png"])[0]
        assert answer.value is not None


def test_vit_is_trained(tmp_path: Path, shapes: Path) -> None:
    base = make_tiny_image_base(tmp_path / "vit", "vit")
    for platform in opened_images(tmp_path / "workspace", base):
        result = platform.train(shapes_recipe(shapes, max_steps=2))
        assert result.version.task == "classification"


def test_plan_trains_nothing(image_platform: Platform, shapes: Path) -> None:
    plan = image_platform.plan(shapes_recipe(shapes))
    assert (plan.lengths, plan.tokens, plan.longest, plan.training_flops) == (None,) * 4
    assert plan.pictures == image_platform.registry.runs.get(1).report["pictures_trained"]
    assert (plan.picture_size, plan.measured) == ((32, 32), "run")
    larger = image_platform.plan(shapes_recipe(shapes, image_size=64))
    assert (larger.picture_size, larger.measured) == ((64, 64), "step")
    assert plan.trainable_parameters > 0
    assert len(image_platform.registry.runs.list()) == 1


def test_pictures_of_another_size_are_trained_and_answered(
    tmp_path: Path, image_platform: Platform, shapes: Path
) -> None:
    run = image_platform.train(shapes_recipe(shapes, image_size=16, max_steps=2))
    artifact = image_platform.resolve(str(run.version.ref)).artifact()
    assert artifact is not None
    steps = artifact.manifest.make_preprocessing()
    assert (steps.height, steps.width, steps.shortest_edge) == (16, 16, 18)
    assert run.report["proof"]["to_trained"] < 1e-3
    files = [shapes / "circle" / "0.png", shapes / "square" / "1.png"]
    both = image_platform.run(
        [
            Request(f"{NAME}@{number}", image=ImageSource(file))
            for file in files
            for number in (1, 2)
        ]
    )
    alone = [image_platform.predict_images(f"{NAME}@2", [file])[0] for file in files]
    assert [one.probabilities for one in both[1::2]] == [
        pytest.approx(one.probabilities, abs=1e-4) for one in alone
    ]


def test_search_trains_pictures_one_after_another(image_platform: Platform, shapes: Path) -> None:
    space = {"r": "2,4", "lora_dropout": "0,0.1"}
    result = image_platform.tune(shapes_recipe(shapes, max_steps=2), trials=3, space=space)
    assert len(result.trials) == 3
    assert {trial.error for trial in result.trials} == {None}
    assert result.best is not None
    assert len(image_platform.registry.runs.list()) == 1


# -------------------------------------------------------------------------------------- refused


def test_size_that_the_base_can_not_compute_is_refused(tmp_path: Path, shapes: Path) -> None:
    base = make_tiny_image_base(tmp_path / "vit", "vit")
    for platform in opened_images(tmp_path / "workspace", base):
        with pytest.raises(UsageError, match="can't compute pictures of 16 × 16 pixels") as caught:
            platform.train(shapes_recipe(shapes, image_size=16))
        assert "image_size = 16" in (caught.value.hint or "")
        assert platform.registry.runs.list() == []


def test_picture_that_can_not_be_decoded_names_its_row(
    tmp_path: Path, image_platform: Platform, shapes: Path
) -> None:
    folder = Path(shutil.copytree(shapes, tmp_path / "broken"))
    data = (folder / "circle" / "3.png").read_bytes()
    (folder / "circle" / "3.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(
        DataError, match=r"Row 'circle/3\.png': circle/3\.png is damaged or truncated"
    ):
        image_platform.train(shapes_recipe(folder))
    assert len(image_platform.registry.runs.list()) == 1


def test_adapter_for_pictures_answers_no_text(image_platform: Platform) -> None:
    with pytest.raises(UsageError, match="reads pictures, and the request has a text"):
        image_platform.predict(NAME, ["a text"])


def test_damaged_picture_is_refused(image_platform: Platform) -> None:
    with pytest.raises(DataError, match="not a picture"):
        image_platform.predict_images(NAME, [b"text"])
    with pytest.raises(TooLargeError, match="MiB"):
        image_platform.predict_images(NAME, [b"\0" * (33 << 20)])
    for given in (None, 5, bytearray(b"x"), []):
        with pytest.raises(DataError, match="not bytes"):
            image_platform.predict_images(NAME, [given])  # type: ignore[list-item]


def test_other_image_base_is_refused(tmp_path: Path, image_workspace: Path) -> None:
    other = make_tiny_image_base(tmp_path / "other", "resnet", seed=5)
    for platform in opened_images(image_workspace, other):
        with pytest.raises(BaseMismatchError, match="was trained on resnet"):
            platform.predict_images(NAME, [encoded(picture())])


def test_trainings_of_pictures_do_not_share_the_base(
    image_platform: Platform, shapes: Path
) -> None:
    with pytest.raises(UsageError, match="only adapters for text are trained together"):
        image_platform.train_together([shapes_recipe(shapes)])


def test_manifest_without_preprocessing_reads_text(image_platform: Platform) -> None:
    artifact = image_platform.resolve(NAME).artifact()
    assert artifact is not None
    stored = json.loads((artifact.folder / "trunkline.json").read_text())
    assert stored["preprocessing"]["shortest_edge"] == 36
