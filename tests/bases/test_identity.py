"""The identity of a base: what moves it, and what must not."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from trunkline.bases import describe, load_fresh
from trunkline.bases.identity import base_digest, cached_digest


def test_one_flipped_bit_of_a_weight_changes_it(copy: Path) -> None:
    before = base_digest(copy)
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert base_digest(copy) != before


def test_tokenizer_changes_it(copy: Path) -> None:
    before = base_digest(copy)
    file = copy / "tokenizer.json"
    file.write_text(file.read_text().replace("<|endoftext|>", "<|endofpage|>"))
    assert base_digest(copy) != before


def test_special_token_changes_it(copy: Path) -> None:
    before = base_digest(copy)
    file = copy / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token": "<|im_start|>"}))
    assert base_digest(copy) != before


def test_chat_template_changes_it(copy: Path) -> None:
    before = base_digest(copy)
    file = copy / "chat_template.jinja"
    file.write_text(file.read_text() + " ")
    assert base_digest(copy) != before


def test_place_of_the_chat_template_does_not_change_it(copy: Path) -> None:
    before = base_digest(copy)
    template = (copy / "chat_template.jinja").read_text()
    (copy / "chat_template.jinja").unlink()
    file = copy / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))
    assert base_digest(copy) == before


def test_division_into_shards_does_not_change_it(copy: Path) -> None:
    before = base_digest(copy)
    model = load_fresh(str(copy), device="cpu")
    (copy / "model.safetensors").unlink()
    model.save_pretrained(copy, max_shard_size="20KB")
    assert len(list(copy.glob("model-*.safetensors"))) > 1
    assert base_digest(copy) == before


def test_place_of_the_folder_does_not_change_it(copy: Path) -> None:
    before = describe(str(copy)).digest
    assert describe(str(copy.rename(copy.parent / "moved"))).digest == before


def test_same_seed_gives_the_same_digest_and_another_another(tmp_path: Path, tiny: Path) -> None:
    from tiny_base import make_tiny_base

    other = make_tiny_base(tmp_path / "other", seed=1)
    again = make_tiny_base(tmp_path / "again", seed=0)
    assert base_digest(again) == base_digest(tiny) != base_digest(other)


def test_second_look_does_not_read_the_weights(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = cached_digest(copy, tmp_path / "digests")
    monkeypatch.setattr("trunkline.bases.identity.base_digest", pytest.fail)
    assert cached_digest(copy, tmp_path / "digests") == first


def test_changed_file_of_the_same_size_is_read_again(copy: Path, tmp_path: Path) -> None:
    first = cached_digest(copy, tmp_path / "digests")
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(1, 1))
    assert cached_digest(copy, tmp_path / "digests") != first


def test_torn_memory_is_ignored(copy: Path, tmp_path: Path) -> None:
    first = cached_digest(copy, tmp_path / "digests")
    for file in (tmp_path / "digests").iterdir():
        file.write_text('{"dig')
    assert cached_digest(copy, tmp_path / "digests") == first


def test_cache_that_can_not_be_made_costs_only_time(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert cached_digest(copy, tmp_path / "file" / "digests") == base_digest(copy)


def test_removed_template_is_noticed(copy: Path, tmp_path: Path) -> None:
    first = cached_digest(copy, tmp_path / "digests")
    shutil.move(copy / "chat_template.jinja", tmp_path)
    assert cached_digest(copy, tmp_path / "digests") != first
