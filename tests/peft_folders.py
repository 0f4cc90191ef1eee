"""Adapters that plain PEFT saved, and fixtures that import them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tiny_base import make_tiny_base
from trunkline.adapters.artifact import Artifact
from trunkline.adapters.peft_import import ImportedAdapter, ImportOptions, import_adapter
from trunkline.adapters.store import AdapterStore
from trunkline.bases import describe, load_fresh
from trunkline.errors import (
    IntegrityError,
    TrunklineError,
)
from trunkline.refs import Ref
from trunkline.registry.registry import Registry
from trunkline.workspace import Workspace

ImportFolder = Callable[..., ImportedAdapter]

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
def import_folder(store: AdapterStore, registry: Registry, tiny: Path) -> ImportFolder:
    """Import a folder as ``toy/elsewhere`` on the tiny Llama."""

    def import_folder(
        folder: Path, ref: Ref = REF, base: Path = tiny, **options: Any
    ) -> ImportedAdapter:
        return import_adapter(
            store, registry, describe(str(base)), folder, ref, ImportOptions(**options)
        )

    return import_folder


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
    """Compute the logits with plain PEFT; checks that the adapter changes them."""
    import torch
    from peft import PeftModel

    model = load_fresh(str(base), outputs, device="cpu", dtype="fp32")
    ids = torch.arange(5, 21).reshape(2, 8)
    with torch.no_grad():
        bare = model(input_ids=ids).logits
        adapted = PeftModel.from_pretrained(model, folder).eval()(input_ids=ids).logits
    assert not torch.allclose(bare, adapted)
    return adapted


def fetched(store: AdapterStore, imported: ImportedAdapter) -> Artifact:
    return store.fetch(imported.version)


@pytest.fixture
def refused(import_folder: ImportFolder, registry: Registry, tmp_path: Path) -> Callable[..., str]:
    """Import, expect a refusal that leaves no trace, and return its message."""

    def refused(folder: Path, kind: type[TrunklineError] = IntegrityError, **options: Any) -> str:
        with pytest.raises(kind) as caught:
            import_folder(folder, **options)
        assert caught.value.hint
        assert "\n" not in caught.value.message
        assert registry.adapters.list() == []
        assert registry.sources.list_bases() == []
        assert registry.events.list() == []
        assert not (tmp_path / "workspace" / "adapters").exists()
        return caught.value.message

    return refused


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
