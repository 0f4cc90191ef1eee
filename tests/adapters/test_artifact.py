"""Verification of artifacts: damaged and forged files are refused, and what the digest covers."""

from __future__ import annotations

import errno
import json
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trunkline.adapters.artifact import read_artifact, seal
from trunkline.contracts import Template
from trunkline.errors import IntegrityError
from workbench import make_artifact, reseal, task_json

CONFIG, WEIGHTS, MANIFEST = "adapter_config.json", "adapter_model.safetensors", "trunkline.json"
FILES = (CONFIG, WEIGHTS, MANIFEST)


def refused(folder: Path, digest: str | None = None) -> str:
    """Expect a refusal with a hint and return its message."""
    with pytest.raises(IntegrityError) as caught:
        read_artifact(folder, digest)
    assert caught.value.hint
    assert "\n" not in caught.value.message
    return caught.value.message


def change_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def change_tensors(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def change_header(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Rewrite the safetensors header and keep the data."""
    data = (folder / WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    change(header)
    raw = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(raw)) + raw + data[8 + length :])


def first_a(names: Any) -> str:
    return next(name for name in sorted(names) if name.endswith("lora_A.weight"))


def test_sound_artifact_is_read(sound: Path) -> None:
    artifact = read_artifact(sound)
    assert artifact.digest.startswith("sha256:")
    assert artifact.lora.rank == 4
    assert artifact.bytes == sum(path.stat().st_size for path in sound.iterdir())


def test_reading_imports_no_torch(sound: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from trunkline.adapters.artifact import "
        "read_artifact; read_artifact(Path(sys.argv[1])); "
        "sys.exit(any(m in sys.modules for m in ('torch', 'peft', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(sound)], check=False).returncode == 0


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_named(artifact: Path, name: str) -> None:
    (artifact / name).unlink()
    assert name in refused(artifact)


@pytest.mark.parametrize("name", FILES)
def test_empty_file_is_refused(artifact: Path, name: str) -> None:
    (artifact / name).write_bytes(b"")
    assert name in refused(artifact)


@pytest.mark.parametrize("name", FILES)
def test_truncated_file_is_refused(artifact: Path, name: str) -> None:
    path = artifact / name
    path.write_bytes(path.read_bytes()[:-3])
    assert name in refused(artifact)


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    assert "no artifact" in refused(tmp_path / "nowhere")


@pytest.mark.parametrize("name", [*FILES, "README.md"])
def test_link_instead_of_file_is_refused(artifact: Path, tmp_path: Path, name: str) -> None:
    path = artifact / name
    target = tmp_path / "target"
    target.write_bytes(path.read_bytes() if path.exists() else b"")
    path.unlink(missing_ok=True)
    path.symlink_to(target)
    assert "not a plain file" in refused(artifact)


def test_folder_in_place_of_the_card_is_refused(artifact: Path) -> None:
    (artifact / "README.md").mkdir()
    assert "not a plain file" in refused(artifact)


def test_read_error_of_the_disk_is_an_integrity_error(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", fail)
    assert "can't be read: Input/output error" in refused(artifact)


@pytest.fixture(scope="module")
def victim(sound: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    import shutil

    folder = Path(shutil.copytree(sound, tmp_path_factory.mktemp("flip") / "artifact"))
    return folder, read_artifact(folder).digest


@pytest.mark.parametrize("name", FILES)
@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_a_flipped_bit_anywhere_is_refused(
    victim: tuple[Path, str], name: str, data: st.DataObject
) -> None:
    folder, digest = victim
    path = folder / name
    original = path.read_bytes()
    position = data.draw(st.integers(0, len(original) - 1))
    bit = data.draw(st.integers(0, 7))
    damaged = bytearray(original)
    damaged[position] ^= 1 << bit
    path.write_bytes(damaged)
    try:
        refused(folder, digest)
    finally:
        path.write_bytes(original)


class _Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize(
    "name", ["adapter_model.bin", "pytorch_model.pt", "optimizer.pt", "x.pkl", "run.py"]
)
def test_pickle_is_refused_unopened(artifact: Path, tmp_path: Path, name: str) -> None:
    marker = tmp_path / "opened"
    (artifact / name).write_bytes(pickle.dumps(_Payload(marker)))
    assert name in refused(artifact)
    assert not marker.exists()


def test_pickle_instead_of_the_weights_is_refused_unopened(artifact: Path, tmp_path: Path) -> None:
    marker = tmp_path / "opened"
    (artifact / WEIGHTS).write_bytes(pickle.dumps(_Payload(marker)))
    reseal(artifact)
    refused(artifact)
    assert not marker.exists()


@pytest.mark.parametrize("claimed", [2**40, 2**63, 2**64 - 1, 0, 1])
def test_absurd_header_length_is_refused(artifact: Path, claimed: int) -> None:
    data = (artifact / WEIGHTS).read_bytes()
    (artifact / WEIGHTS).write_bytes(struct.pack("<Q", claimed) + data[8:])
    reseal(artifact)
    assert "safetensors" in refused(artifact)


HEADERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "huge shape": lambda h: h[first_a(h)].update(shape=[4, 2**40]),
    "negative shape": lambda h: h[first_a(h)].update(shape=[-4, -32]),
    "shape as text": lambda h: h[first_a(h)].update(shape="4,32"),
    "float shape": lambda h: h[first_a(h)].update(shape=[4.0, 32.0]),
    "infinite shape": lambda h: h[first_a(h)].update(shape=[float("inf"), 32]),
    "unknown dtype": lambda h: h[first_a(h)].update(dtype="I64"),
    "dtype as a list": lambda h: h[first_a(h)].update(dtype=["F32"]),
    "overlap": lambda h: h[first_a(h)].update(data_offsets=[8, 8 + 512]),
    "beyond the end": lambda h: h[first_a(h)].update(data_offsets=[2**40, 2**40 + 512]),
    "backwards": lambda h: h[first_a(h)].update(data_offsets=[512, 0]),
    "no offsets": lambda h: h[first_a(h)].pop("data_offsets"),
    "entry is a list": lambda h: h.update({first_a(h): []}),
    "nothing": lambda h: h.clear(),
}


@pytest.mark.parametrize("attack", HEADERS)
def test_forged_header_is_refused(artifact: Path, attack: str) -> None:
    change_header(artifact, HEADERS[attack])
    reseal(artifact)
    assert WEIGHTS in refused(artifact)


@pytest.mark.parametrize("raw", [b"[]", b'{"a":1,"a":2}', b"[" * 5000, b'"\xff"', b"{}{}"])
def test_header_that_is_not_a_json_object_is_refused(artifact: Path, raw: bytes) -> None:
    (artifact / WEIGHTS).write_bytes(struct.pack("<Q", len(raw)) + raw)
    reseal(artifact)
    assert WEIGHTS in refused(artifact)


CONFIGS: dict[str, dict[str, Any]] = {
    "rank of a billion": {"r": 10**9},
    "rank zero": {"r": 0},
    "rank true": {"r": True},
    "rank as text": {"r": "4"},
    "negative alpha": {"lora_alpha": -8},
    "alpha as text": {"lora_alpha": "8"},
    "alpha true": {"lora_alpha": True},
    "dora as text": {"use_dora": "true"},
    "dropout as text": {"lora_dropout": "0.1"},
    "dropout above one": {"lora_dropout": 2},
    "rslora as text": {"use_rslora": "false"},
    "biases": {"bias": "all"},
    "lora bias": {"lora_bias": True},
    "auto_map": {"auto_map": {"AutoConfig": "evil.Config"}},
    "auto_mapping": {"auto_mapping": {"base_model_class": "X", "parent_library": "evil"}},
    "rank pattern": {"rank_pattern": {"q_proj": 8}},
    "alpha pattern": {"alpha_pattern": {"q_proj": 8}},
    "other modules saved": {"modules_to_save": ["embed_tokens"]},
    "modules saved, nested": {"modules_to_save": [["score"]]},
    "modules saved as text": {"modules_to_save": "score"},
    "pissa": {"init_lora_weights": "pissa"},
    "replicated layers": {"layer_replication": [[0, 2], [1, 3]]},
    "trainable tokens": {"trainable_token_indices": [1]},
    "target parameters": {"target_parameters": ["weight"]},
    "activated LoRA": {"alora_invocation_tokens": [1, 2]},
    "arrow": {"arrow_config": {"top_k": 1}},
    "unknown key": {"use_something_new": True},
    "unknown number": {"strength": 3},
    "another method": {"peft_type": "IA3"},
    "another task": {"task_type": "CAUSAL_LM"},
    "no task": {"task_type": None},
    "targets by pattern": {"target_modules": ".*proj"},
    "no targets": {"target_modules": []},
    "layers as text": {"layers_to_transform": "1"},
    "revision": {"revision": "main"},
}


@pytest.mark.parametrize("attack", CONFIGS)
def test_forged_configuration_is_refused(artifact: Path, attack: str) -> None:
    change_json(artifact / CONFIG, lambda config: config.update(CONFIGS[attack]))
    reseal(artifact)
    assert CONFIG in refused(artifact)


def test_refusal_of_a_setting_gives_the_reason(artifact: Path) -> None:
    change_json(artifact / CONFIG, lambda config: config.update(use_bdlora=True))
    reseal(artifact)
    assert "has block-diagonal matrices (BD-LoRA)" in refused(artifact)


@pytest.mark.parametrize("key", ["peft_type", "r", "lora_alpha", "target_modules", "task_type"])
def test_configuration_without_a_required_key_is_refused(artifact: Path, key: str) -> None:
    change_json(artifact / CONFIG, lambda config: config.pop(key))
    reseal(artifact)
    assert CONFIG in refused(artifact)


@pytest.mark.parametrize(
    "text",
    ['{"r": NaN}', '{"r": 1e999}', '{"r": "\\ud800"}', '{"r":1,"r":2}', "[" * 9000, "7", "null"],
)
@pytest.mark.parametrize("name", [CONFIG, MANIFEST])
def test_json_without_a_canonical_form_is_refused(artifact: Path, name: str, text: str) -> None:
    (artifact / name).write_text(text)
    assert name in refused(artifact)


def test_huge_json_is_refused_unread(artifact: Path) -> None:
    (artifact / MANIFEST).write_bytes(b" " * (5 << 20))
    assert "larger than" in refused(artifact)


TENSORS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "A without B": lambda t: t.pop(first_a(t).replace("lora_A", "lora_B")),
    "B without A": lambda t: t.pop(first_a(t)),
    "no head": lambda t: t.pop("base_model.model.score.weight"),
    "no LoRA at all": lambda t: [t.pop(name) for name in list(t) if "lora_" in name],
    "an embedding": lambda t: t.update(
        {"base_model.model.model.embed_tokens.weight": t[first_a(t)].clone()}
    ),
    "a head without the prefix": lambda t: t.update({"score.weight": t[first_a(t)].clone()}),
    "two heads": lambda t: t.update(
        {"base_model.model.classifier.weight": t["base_model.model.score.weight"].clone()}
    ),
    "another rank": lambda t: t.update({first_a(t): t[first_a(t)][:2].clone()}),
    "a vector": lambda t: t.update({first_a(t): t[first_a(t)].flatten()}),
    "a head with too few outputs": lambda t: t.update(
        {"base_model.model.score.weight": t["base_model.model.score.weight"][:2].clone()}
    ),
    "a layer that is not a target": lambda t: [
        t.update({name.replace("q_proj", "o_proj"): t[name].clone()})
        for name in list(t)
        if "layers.0.self_attn.q_proj" in name
    ],
    "a magnitude": lambda t: t.update(
        {first_a(t).replace("lora_A.weight", "lora_magnitude_vector"): t[first_a(t)][0].clone()}
    ),
    "a bias of the head": lambda t: t.update(
        {"base_model.model.score.bias": t["base_model.model.score.weight"][:, 0].clone()}
    ),
    "names without the prefix": lambda t: [
        t.update({name.removeprefix("base_model.model."): t.pop(name)}) for name in list(t)
    ],
}


@pytest.mark.parametrize("attack", TENSORS)
def test_forged_tensors_are_refused(artifact: Path, attack: str) -> None:
    change_tensors(artifact, TENSORS[attack])
    reseal(artifact)
    assert WEIGHTS in refused(artifact)


def test_head_of_a_generation_adapter_is_refused(artifact: Path) -> None:
    change_json(artifact / CONFIG, lambda config: config.update(task_type="CAUSAL_LM"))
    change_json(artifact / MANIFEST, lambda data: data.update(task=task_json("generation")))
    reseal(artifact)
    assert "head" in refused(artifact)


MANIFESTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "newer format": lambda m: m.update(format=2),
    "format as text": lambda m: m.update(format="1"),
    "unknown key": lambda m: m.update(more=1),
    "no base": lambda m: m.pop("base"),
    "base is a list": lambda m: m.update(base=[]),
    "base without digest": lambda m: m["base"].pop("digest"),
    "base digest a number": lambda m: m["base"].update(digest=1),
    "data holds a list": lambda m: m["data"].update(dataset=[]),
    "task is text": lambda m: m.update(task="classification"),
    "unknown task": lambda m: m["task"].update(kind="translation"),
    "task is a list": lambda m: m["task"].update(kind=[]),
    "labels as text": lambda m: m["task"].update(labels="abc"),
    "one label twice": lambda m: m["task"].update(labels=["bird", "bird", "fish"]),
    "template without text": lambda m: m["template"].update(prompt="hello"),
    "template prompt a list": lambda m: m["template"].update(prompt=["{text}"]),
    "clean is text": lambda m: m["template"].update(clean="strip"),
    "unknown cleaning": lambda m: m["template"].update(clean=["rot13"]),
    "chat as text": lambda m: m["template"].update(chat="no"),
    "template with more": lambda m: m["template"].update(code="evil"),
    "no limit": lambda m: m.pop("max_length"),
    "limit as text": lambda m: m.update(max_length="128"),
    "limit is true": lambda m: m.update(max_length=True),
    "limit of zero": lambda m: m.update(max_length=0),
    "limit without room": lambda m: m.update(
        max_length=8, task={"kind": "generation", "max_new_tokens": 8}
    ),
    "unknown field in the template": lambda m: m["template"].update(prompt="{text} {title}"),
    "digest of the weights": lambda m: m.update(weights="0" * 63),
    "digest is a number": lambda m: m.update(weights=5),
}


@pytest.mark.parametrize("attack", MANIFESTS)
def test_forged_manifest_is_refused(artifact: Path, attack: str) -> None:
    change_json(artifact / MANIFEST, MANIFESTS[attack])
    assert MANIFEST in refused(artifact)


def test_unexpected_digest_is_refused(artifact: Path) -> None:
    assert "but the registry has" in refused(artifact, "sha256:" + "0" * 64)


def resealed(folder: Path, **changes: Any) -> str:
    """Seal again with some arguments changed and return the digest."""
    arguments: dict[str, Any] = {
        "base": {"name": "tiny", "digest": "d" * 64},
        "task": task_json("classification"),
        "template": Template(),
        "data": {"dataset": "toy/animals", "fingerprint": "f", "split": "s"},
    }
    return seal(folder, **(arguments | changes)).digest


def test_digest_does_not_depend_on_the_order_of_lists(artifact: Path) -> None:
    first = resealed(artifact)
    change_json(artifact / CONFIG, lambda config: config["target_modules"].reverse())
    assert resealed(artifact) == first


def test_digest_does_not_depend_on_the_version_of_peft(artifact: Path) -> None:
    first = resealed(artifact)
    newer = {"peft_version": "9.9", "some_new_switch": False, "some_new_config": None}
    change_json(artifact / CONFIG, lambda config: config.update(newer))
    assert resealed(artifact) == first


def test_digest_does_not_depend_on_the_path_of_the_base(artifact: Path) -> None:
    first = resealed(artifact)
    path = {"base_model_name_or_path": "/home/user/tiny", "revision": None}
    change_json(artifact / CONFIG, lambda config: config.update(path))
    assert resealed(artifact) == first


def test_digest_does_not_depend_on_whether_alpha_was_written_as_a_float(artifact: Path) -> None:
    first = resealed(artifact)
    change_json(artifact / CONFIG, lambda config: config.update(lora_alpha=8))
    assert resealed(artifact) == first


def test_digest_does_not_depend_on_card_and_provenance(artifact: Path) -> None:
    first = read_artifact(artifact).digest
    (artifact / "README.md").write_text("# another card")
    (artifact / "provenance.json").write_text("{}")
    assert read_artifact(artifact, first).digest == first


@pytest.mark.parametrize(
    "changes",
    [
        {"template": Template(prompt="Animal: {text}")},
        {"template": Template(clean=("lowercase",))},
        {"max_length": 128},
        {"task": {"kind": "classification", "labels": ["fish", "bird", "mammal"]}},
        {"base": {"name": "tiny", "digest": "e" * 64}},
        {"data": {"dataset": "toy/animals", "fingerprint": "g", "split": "s"}},
    ],
    ids=["prompt", "cleaning", "max_length", "labels", "base", "data"],
)
def test_digest_changes_with(artifact: Path, changes: dict[str, Any]) -> None:
    assert resealed(artifact) != resealed(artifact, **changes)


def test_digest_changes_with_a_single_weight(artifact: Path) -> None:
    first = resealed(artifact)
    change_tensors(artifact, lambda tensors: tensors[first_a(tensors)][0, 0].add_(1e-3))
    assert resealed(artifact) != first


def test_digest_changes_with_alpha(artifact: Path) -> None:
    first = resealed(artifact)
    change_json(artifact / CONFIG, lambda config: config.update(lora_alpha=9))
    assert resealed(artifact) != first


def test_sealing_refuses_unsupported_settings(tmp_path: Path, tiny: Path) -> None:
    with pytest.raises(IntegrityError, match="rank_pattern"):
        make_artifact(tmp_path / "ranks", tiny, rank_pattern={"q_proj": 8})
