"""Damaged and forged artifacts: each is a typed error, and other adapters are still served."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hostile import record_base
from trunkline.adapters.artifact import REQUIRED, read_artifact
from trunkline.api import Platform, open
from trunkline.errors import IntegrityError, TrunklineError
from trunkline.refs import Ref
from workbench import opened, reseal

CONFIG, WEIGHTS, MANIFEST = "adapter_config.json", "adapter_model.safetensors", "trunkline.json"
A0 = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
B0 = A0.replace("lora_A", "lora_B")


@pytest.fixture(scope="module")
def platform(
    tmp_path_factory: pytest.TempPathFactory, tiny: Path, artifacts: dict[str, Path]
) -> Iterator[Platform]:
    """A platform that serves ``toy/sound``; each test publishes and damages its own."""
    folder = tmp_path_factory.mktemp("damage") / "workspace"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRUNKLINE_CACHE", str(folder.parent / "cache"))
        patch.delenv("TRUNKLINE_REGISTRY", raising=False)
        for made in opened(folder, tiny):
            publish(made, artifacts["sound"], "toy/sound")
            yield made


def publish(platform: Platform, folder: Path, name: str) -> Path:
    """Publish a sound folder and return its path in the store."""
    base = read_artifact(folder).manifest.base
    record_base(platform.registry, base["digest"], base["name"])
    version = platform.store.publish(
        folder, Ref.parse(name), task="classification", run=None, base_digest=base["digest"]
    )
    return Path(platform.store.location(version))


def evict(platform: Platform, digest: str) -> None:
    """Unload a version if it is resident."""
    if platform.engine.pool.get(digest) is not None:
        platform.engine.pool.unload(digest)


@pytest.fixture
def answers(platform: Platform) -> Callable[[], Any]:
    def answers() -> Any:
        return platform.predict("toy/sound", ["a text"])[0].probabilities

    return answers


@pytest.fixture
def damaged(platform: Platform, artifacts: dict[str, Path]) -> Iterator[Path]:
    """A published version that is not resident and that a test may damage."""
    evict(platform, read_artifact(artifacts["other"]).digest)
    place = publish(platform, artifacts["other"], "toy/damaged")
    yield place
    shutil.rmtree(place, ignore_errors=True)


def check_refused(platform: Platform, answers: Callable[[], Any], *kinds: type[Exception]) -> str:
    """Expect a one-sentence error, and the same answer as before from the other version."""
    before = answers()
    with pytest.raises(kinds or (IntegrityError,)) as caught:
        platform.predict("toy/damaged", ["a text"])
    assert answers() == before
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", [CONFIG, MANIFEST])
def test_any_flipped_bit_in_a_json_file_is_refused(sound: Path, tmp_path: Path, name: str) -> None:
    """One bit of every byte."""
    folder = Path(shutil.copytree(sound, tmp_path / "a"))
    digest = read_artifact(sound).digest
    original = (sound / name).read_bytes()
    for position in range(len(original)):
        data = bytearray(original)
        data[position] ^= 1 << position % 8
        (folder / name).write_bytes(data)
        with pytest.raises(IntegrityError):
            read_artifact(folder, digest)


def test_any_flipped_bit_in_the_weights_is_refused(sound: Path, tmp_path: Path) -> None:
    """Every seventh byte of the header, and a sample of the tensors' bytes."""
    folder = Path(shutil.copytree(sound, tmp_path / "a"))
    digest = read_artifact(sound).digest
    original = (sound / WEIGHTS).read_bytes()
    header = 8 + struct.unpack("<Q", original[:8])[0]
    draw = random.Random(0)
    places = [
        *range(0, header, 7),
        *draw.sample(range(header, len(original)), 200),
        len(original) - 1,
    ]
    for position in places:
        data = bytearray(original)
        data[position] ^= 1 << draw.randrange(8)
        (folder / WEIGHTS).write_bytes(data)
        with pytest.raises(IntegrityError):
            read_artifact(folder, digest)


@pytest.mark.parametrize("name", REQUIRED)
def test_flipped_bit_is_refused_when_a_request_loads_the_version(
    platform: Platform, answers: Callable[[], Any], damaged: Path, name: str
) -> None:
    data = bytearray((damaged / name).read_bytes())
    data[len(data) // 2] ^= 16
    (damaged / name).write_bytes(data)
    check_refused(platform, answers)


def test_damage_outside_the_digest_changes_no_answer(platform: Platform, damaged: Path) -> None:
    """Card and provenance may be rewritten; inference does not read them."""
    before = platform.predict("toy/damaged", ["a text"])[0].probabilities
    evict(platform, platform.resolve("toy/damaged").digest)
    (damaged / "README.md").write_bytes(b"\xff\x00")
    (damaged / "provenance.json").write_bytes(b"\xff\x00")
    assert platform.predict("toy/damaged", ["a text"])[0].probabilities == before


@pytest.mark.parametrize("name", REQUIRED)
@pytest.mark.parametrize("keep", ["nothing", "a byte", "half", "all but a byte"])
def test_truncated_file_is_refused(
    platform: Platform, answers: Callable[[], Any], damaged: Path, name: str, keep: str
) -> None:
    size = (damaged / name).stat().st_size
    kept = {"nothing": 0, "a byte": 1, "half": size // 2, "all but a byte": size - 1}[keep]
    if keep == "all but a byte" and name != WEIGHTS:
        kept -= 1
    os.truncate(damaged / name, kept)
    check_refused(platform, answers)


@pytest.mark.parametrize("name", REQUIRED)
def test_missing_file_is_refused(
    platform: Platform, answers: Callable[[], Any], damaged: Path, name: str
) -> None:
    (damaged / name).unlink()
    assert name in check_refused(platform, answers)


@pytest.mark.parametrize("name", REQUIRED)
def test_link_folder_or_pipe_instead_of_a_file_is_refused(
    platform: Platform, answers: Callable[[], Any], damaged: Path, name: str, tmp_path: Path
) -> None:
    kept = tmp_path / name
    (damaged / name).rename(kept)
    for make in (
        lambda: (damaged / name).symlink_to(kept),
        lambda: (damaged / name).mkdir(),
        lambda: os.mkfifo(damaged / name),
    ):
        make()
        assert "not a plain file" in check_refused(platform, answers)
        if (damaged / name).is_dir() and not (damaged / name).is_symlink():
            (damaged / name).rmdir()
        else:
            (damaged / name).unlink()


def test_missing_folder_is_refused(
    platform: Platform, answers: Callable[[], Any], damaged: Path
) -> None:
    shutil.rmtree(damaged)
    check_refused(platform, answers)


def test_bytes_after_the_tensors_are_refused(
    platform: Platform, answers: Callable[[], Any], damaged: Path
) -> None:
    with (damaged / WEIGHTS).open("ab") as file:
        file.write(bytes(64))
    check_refused(platform, answers)


def forge(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change tensors and make the digests match."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    reseal(folder)


def raw_header(folder: Path, header: bytes, length: int | None = None, data: bytes = b"") -> None:
    size = struct.pack("<Q", len(header) if length is None else length)
    (folder / WEIGHTS).write_bytes(size + header + data)
    reseal(folder)


def _set(name: str, *shape: int, fill: float = 1.0) -> Callable[[dict[str, Any]], None]:
    def change(tensors: dict[str, Any]) -> None:
        import torch

        tensors[name] = torch.full(shape, fill)

    return change


TENSORS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "missing A": lambda tensors: tensors.pop(A0),
    "missing B": lambda tensors: tensors.pop(B0),
    "missing pair": lambda tensors: (tensors.pop(A0), tensors.pop(B0)),
    "no head": lambda tensors: tensors.pop("base_model.model.score.weight"),
    "nothing": lambda tensors: tensors.clear(),
    "extra bias": _set("base_model.model.score.bias", 3),
    "extra layer": _set(A0.replace("layers.0", "layers.9"), 4, 32),
    "extra pair": lambda tensors: (
        _set(A0.replace("q_proj", "k_proj"), 4, 32)(tensors),
        _set(B0.replace("q_proj", "k_proj"), 16, 4)(tensors),
    ),
    "weight of the base": _set("base_model.model.model.layers.0.self_attn.q_proj.weight", 32, 32),
    "other rank": _set(A0, 5, 32),
    "other width": _set(A0, 4, 31),
    "other height": _set(B0, 31, 4),
    "transposed": _set(A0, 32, 4),
    "vector": _set(A0, 128),
    "cube": _set(A0, 4, 32, 1),
    "empty matrix": _set(A0, 0, 32),
    "head of other width": _set("base_model.model.score.weight", 3, 31),
    "head of other labels": _set("base_model.model.score.weight", 4, 32),
    "NaN": lambda tensors: tensors[A0].__setitem__((0, 0), float("nan")),
    "infinity": lambda tensors: tensors[B0].__setitem__((0, 0), float("inf")),
    "NaN in the head": lambda tensors: tensors["base_model.model.score.weight"].fill_(float("nan")),
}


@pytest.mark.parametrize("what", TENSORS)
def test_forged_tensors_are_refused(
    platform: Platform, answers: Callable[[], Any], artifact: Path, what: str
) -> None:
    forge(artifact, TENSORS[what])
    check_forged(platform, answers, artifact)


def check_forged(platform: Platform, answers: Callable[[], Any], folder: Path) -> None:
    """Expect that a forged artifact is not loaded and that the other adapter still answers."""
    before = answers()
    with pytest.raises(IntegrityError) as caught:
        platform.engine.pool.load(read_artifact(folder), "toy/forged")
    assert str(caught.value).endswith(".")
    assert answers() == before


HEADERS: dict[str, tuple[bytes, int | None]] = {
    "2^40 bytes": (b"{}", 1 << 40),
    "2^63 bytes": (b"{}", 1 << 63),
    "2^64 - 1 bytes": (b"{}", (1 << 64) - 1),
    "no header": (b"", None),
    "not an object": (b"[]", None),
    "not JSON": (b"{nothing", None),
    "nested too deeply": (b'{"a":' * 50_000, None),
    "not UTF-8": (b'{"\xff": 1}', None),
    "key twice": (b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},' * 2, None),
    "a tensor of 2^40": (
        b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}', None,
    ),
    "a shape that overflows": (
        b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}', None,
    ),
    "a negative offset": (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}}', None),
    "an end before its start": (b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[4,0]}}', None),
    "an unknown dtype": (b'{"a":{"dtype":"PICKLE","shape":[0],"data_offsets":[0,0]}}', None),
    "a fractional shape": (b'{"a":{"dtype":"F32","shape":[0.5],"data_offsets":[0,2]}}', None),
    "a shape of true": (b'{"a":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}}', None),
    "a huge number": (
        b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,0]}}', None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", HEADERS)
def test_forged_header_is_refused(artifact: Path, what: str) -> None:
    header, length = HEADERS[what]
    raw_header(artifact, header, length)
    with pytest.raises(IntegrityError):
        read_artifact(artifact)


def test_forged_header_length_allocates_nothing(artifact: Path) -> None:
    import tracemalloc

    raw_header(artifact, b"{}", 1 << 40)
    tracemalloc.start()
    try:
        with pytest.raises(IntegrityError):
            read_artifact(artifact)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_tensors_that_overlap_are_refused(artifact: Path) -> None:
    entry = {"dtype": "F32", "shape": [4, 32], "data_offsets": [0, 512]}
    raw_header(artifact, json.dumps({"a": entry, "b": entry}).encode(), data=bytes(512))
    with pytest.raises(IntegrityError, match="overlap"):
        read_artifact(artifact)


SETTINGS: dict[str, dict[str, Any]] = {
    "rank 10^9": {"r": 10**9},
    "rank 0": {"r": 0},
    "rank -1": {"r": -1},
    "rank true": {"r": True},
    "rank as text": {"r": "4"},
    "rank 10^4000": {"r": 10**4000},
    "another rank": {"r": 5},
    "negative alpha": {"lora_alpha": -8},
    "alpha 0": {"lora_alpha": 0},
    "alpha 1e300": {"lora_alpha": 1e300},
    "alpha as text": {"lora_alpha": "8"},
    "no alpha": {"lora_alpha": None},
    "a regular expression that explodes": {"target_modules": "(x+x+)+y" * 10},
    "exploding exclusion": {"exclude_modules": "^(([a-z])+.)+[A-Z]([a-z])+$"},
    "exploding layers": {"layers_pattern": "(a|a)*b", "layers_to_transform": [0]},
    "pattern of ranks": {"rank_pattern": {"(.*)*": 4}},
    "auto_map": {"auto_map": {"AutoModel": "evil--module.Class"}},
    "auto_mapping": {"auto_mapping": {"base_model_class": "Evil", "parent_library": "evil"}},
    "code revision": {"code_revision": "main"},
    "trust_remote_code": {"trust_remote_code": True},
    "unknown key": {"run_this": "os.system"},
    "another method": {"peft_type": "IA3"},
    "no method": {"peft_type": None},
    "another task": {"task_type": "CAUSAL_LM"},
    "a list of tasks": {"task_type": ["SEQ_CLS"]},
    "modules of the base": {"modules_to_save": ["lm_head"]},
    "no targets": {"target_modules": []},
    "targets of numbers": {"target_modules": [1, 2]},
    "biases": {"bias": "all"},
    "DoRA": {"use_dora": True},
    "layers of text": {"layers_to_transform": ["0"]},
    "layer 10^12": {"layers_to_transform": [10**12]},
    "dropout 2": {"lora_dropout": 2},
    "dropout NaN": {"lora_dropout": float("nan")},
}


@pytest.mark.parametrize("what", SETTINGS)
def test_forged_configuration_is_refused(
    platform: Platform, answers: Callable[[], Any], artifact: Path, what: str
) -> None:
    config = json.loads((artifact / CONFIG).read_text()) | SETTINGS[what]
    (artifact / CONFIG).write_text(json.dumps(config))
    if what != "dropout NaN":
        reseal(artifact)
    check_forged(platform, answers, artifact)


@pytest.mark.parametrize("what", [
    "rank 10^9", "negative alpha", "a regular expression that explodes", "auto_map", "rank 10^4000",
])  # fmt: skip
def test_forged_configuration_is_not_imported(
    platform: Platform, artifact: Path, what: str
) -> None:
    config = json.loads((artifact / CONFIG).read_text()) | SETTINGS[what]
    (artifact / CONFIG).write_text(json.dumps(config))
    if what == "a regular expression that explodes":
        assert platform.files.import_adapter(artifact, "toy/pattern").lora.targets == (
            "q_proj",
            "v_proj",
        )
        return
    with pytest.raises(IntegrityError):
        platform.files.import_adapter(artifact, "toy/imported")


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[]", b"null", b"{" * 100_000, b"\xff", b'{"format": 2}', b" " * (5 << 20)],
    ids=["empty", "empty object", "list", "null", "deep", "not UTF-8", "newer format", "5 MB"],
)
@pytest.mark.parametrize("name", [CONFIG, MANIFEST])
def test_malformed_json_file_is_refused(
    platform: Platform, answers: Callable[[], Any], damaged: Path, name: str, data: bytes
) -> None:
    (damaged / name).write_bytes(data)
    check_refused(platform, answers)


def test_resident_version_answers_while_its_files_are_damaged(
    platform: Platform, damaged: Path
) -> None:
    before = platform.predict("toy/damaged", ["a text"])[0].probabilities
    (damaged / WEIGHTS).write_bytes(b"")
    assert platform.predict("toy/damaged", ["a text"])[0].probabilities == before


def test_damaged_version_in_a_mixed_batch_fails_alone(
    platform: Platform, answers: Callable[[], Any], damaged: Path
) -> None:
    """The batch is refused before anything is computed, and the next one is served."""
    from trunkline.inference.request import Request

    (damaged / WEIGHTS).write_bytes(b"")
    before = answers()
    with pytest.raises(TrunklineError):
        platform.run([Request("toy/sound", "a text"), Request("toy/damaged", "a text")])
    assert answers() == before


def test_repaired_version_is_served_again(
    platform: Platform, answers: Callable[[], Any], damaged: Path, artifacts: dict[str, Path]
) -> None:
    (damaged / WEIGHTS).write_bytes(b"")
    check_refused(platform, answers)
    shutil.copyfile(artifacts["other"] / WEIGHTS, damaged / WEIGHTS)
    assert platform.predict("toy/damaged", ["a text"])


def test_second_platform_detects_the_damage_too(
    platform: Platform, damaged: Path, tiny: Path
) -> None:
    (damaged / MANIFEST).write_text("{}")
    fresh = open(platform.workspace.root, base=str(tiny), no_plugins=True)
    try:
        with pytest.raises(IntegrityError):
            fresh.store.fetch(fresh.resolve("toy/damaged").version)
    finally:
        fresh.registry.close()
