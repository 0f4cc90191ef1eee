"""Pictures of one batch with different adapters, compared with PEFT picture by picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny_images import SIZE, make_tiny_image_base
from trunkline.adapters.artifact import Artifact, read_artifact, seal
from trunkline.bases import ImageBase, describe_image, load_image, release_image
from trunkline.contracts import Settings, Template
from trunkline.errors import IntegrityError, NotFoundError, UsageError
from trunkline.lora.pool import AdapterPool
from trunkline.lora.routing import ImageRouting
from trunkline.tasks import ClassificationTask
from trunkline.training.image_model import image_lora_model, image_targets

TASK = ClassificationTask(("cat", "dog", "owl"))
RANKS = (4, 12, 8)


@pytest.fixture(scope="module", params=["vit", "resnet"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_image_base(tmp_path_factory.mktemp("base") / request.param, request.param)


@pytest.fixture
def base(folder: Path) -> Iterator[ImageBase]:
    release_image()
    yield load_image(str(folder))
    release_image()


def peft_model(folder: Path, rank: int) -> Any:
    """A model with random matrices, so that the adapter has an effect."""
    model = image_lora_model(str(folder), TASK, Settings(r=rank), "cpu")
    draw = torch.Generator().manual_seed(rank)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.2)
    return model.eval()


def saved(model: Any, base: Path, folder: Path) -> Artifact:
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    info = describe_image(str(base))
    manifest = seal(
        folder,
        base={"name": "tiny", "digest": info.digest},
        task=TASK.to_json(),
        template=Template(),
        data={},
        preprocessing=info.preprocessing,
    )
    return read_artifact(folder, manifest.digest)


def pictures(count: int) -> torch.Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def test_mixed_batch_gives_what_peft_gives(folder: Path, base: ImageBase, tmp_path: Path) -> None:
    models = [peft_model(folder, rank) for rank in RANKS]
    pool = AdapterPool(base.model, base.digest, base.fused_layers, hidden=base.model.features)
    residents = [
        pool.load(saved(model, folder, tmp_path / str(index))) for index, model in enumerate(models)
    ]
    order = [0, 1, 1, None, 2, 0, 2]
    batch = pictures(len(order))
    pages = [() if one is None else residents[one].pages for one in order]
    with torch.inference_mode():
        with pool.route(ImageRouting(pages)):
            features = base.model.pooled(batch)
        bare = base.model.pooled(batch)
        for row, one in enumerate(order):
            if one is None:
                assert torch.allclose(features[row], bare[row], atol=1e-5)
                continue
            head = residents[one].head
            assert head is not None
            expected = models[one](pixel_values=batch[row : row + 1]).logits[0]
            assert torch.allclose(head(features[row]), expected, atol=1e-3)
            assert not torch.allclose(head(features[row]), head(bare[row]), atol=1e-2)


def test_one_adapter_for_all_pictures(folder: Path, base: ImageBase, tmp_path: Path) -> None:
    model = peft_model(folder, 8)
    pool = AdapterPool(base.model, base.digest, base.fused_layers, hidden=base.model.features)
    artifact = saved(model, folder, tmp_path / "artifact")
    head = pool.load(artifact).head
    assert head is not None
    with torch.inference_mode(), pool.activate(artifact.digest):
        actual = head(base.model.pooled(pictures(3)))
        assert torch.allclose(actual, model(pixel_values=pictures(3)).logits, atol=1e-3)


def test_plain_peft_loads_the_artifact_of_a_vit(tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import ViTForImageClassification

    folder = make_tiny_image_base(tmp_path / "vit", "vit")
    model = peft_model(folder, 4)
    saved(model, folder, tmp_path / "artifact")
    plain = ViTForImageClassification.from_pretrained(folder, num_labels=3)
    plain.classifier = torch.nn.Linear(32, 3, bias=False)
    loaded = PeftModel.from_pretrained(plain, tmp_path / "artifact").eval()
    with torch.inference_mode():
        expected = model(pixel_values=pictures(2)).logits
        assert torch.allclose(loaded(pixel_values=pictures(2)).logits, expected, atol=1e-4)


def test_preprocessing_is_part_of_the_identity(folder: Path, tmp_path: Path) -> None:
    artifact = saved(peft_model(folder, 4), folder, tmp_path / "artifact")
    assert artifact.manifest.reads_images
    assert artifact.manifest.make_preprocessing() == describe_image(str(folder)).preprocessing
    file = tmp_path / "artifact" / "trunkline.json"
    file.write_text(file.read_text().replace('"width": 32', '"width": 16'))
    with pytest.raises(IntegrityError, match="is not the version's"):
        read_artifact(tmp_path / "artifact", artifact.digest)


def test_invalid_preprocessing_is_refused(folder: Path, tmp_path: Path) -> None:
    saved(peft_model(folder, 4), folder, tmp_path / "artifact")
    file = tmp_path / "artifact" / "trunkline.json"
    file.write_text(file.read_text().replace('"width": 32', '"width": 0'))
    with pytest.raises(IntegrityError, match="width is 0"):
        read_artifact(tmp_path / "artifact")


# ------------------------------------------------------------------------------------- targets


def test_layers_with_a_name_of_their_own_are_targets(tmp_path: Path) -> None:
    from trunkline.bases import load_fresh_image

    model = load_fresh_image(str(make_tiny_image_base(tmp_path / "vit", "vit")))
    names = image_targets(model, Settings())
    assert "projection" not in names
    assert all("." not in name for name in names)
    assert image_targets(model, Settings(target_modules=names[0])) == [names[0]]


def test_larger_convolutions_of_a_resnet_are_no_targets(tmp_path: Path) -> None:
    from trunkline.bases import load_fresh_image

    model = load_fresh_image(str(make_tiny_image_base(tmp_path / "resnet", "resnet")))
    for name in image_targets(model, Settings()):
        assert model.get_submodule(name).kernel_size == (1, 1)


def test_unknown_layer_is_refused(folder: Path, base: ImageBase) -> None:
    from trunkline.bases import load_fresh_image

    model = load_fresh_image(str(folder))
    with pytest.raises(NotFoundError, match="gate_proj"):
        image_targets(model, Settings(target_modules="gate_proj"))


def test_larger_convolution_is_refused(tmp_path: Path) -> None:
    from trunkline.bases import load_fresh_image

    model = load_fresh_image(str(make_tiny_image_base(tmp_path / "vit", "vit")))
    with pytest.raises(UsageError, match="neither a linear layer"):
        image_targets(model, Settings(target_modules="projection"))


@pytest.mark.parametrize(
    "setting", [{"use_dora": True}, {"layers_to_transform": "0"}, {"init_lora_weights": "pissa"}]
)
def test_settings_of_text_bases_are_refused(folder: Path, setting: dict[str, Any]) -> None:
    from trunkline.bases import load_fresh_image

    with pytest.raises(UsageError, match="not supported for pictures"):
        image_targets(load_fresh_image(str(folder)), Settings(**setting))
