"""Names of bases, and the errors for one that can't be located."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from trunkline.bases import DEFAULT_BASE, describe, known_bases, pull
from trunkline.errors import BaseModelError, NotFoundError, UsageError


def test_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(NotFoundError, match="smollm-135m") as caught:
        describe("smollm-135m")
    assert "smollm2-135m" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["hf:", "hf:a/b/c", "hf:../x", "hf:a/b@", "hf:a b"])
def test_malformed_hub_name_is_wrong_use(name: str) -> None:
    with pytest.raises(UsageError, match="hub base"):
        describe(name)


@pytest.mark.parametrize("name", ["./nowhere", "no/where", "a" * 5000, "a/" * 3000, "\0", ""])
def test_unknown_name_is_refused(name: str) -> None:
    with pytest.raises(NotFoundError):
        describe(name)


def test_default_base_that_is_not_pulled_hints_at_pull() -> None:
    with pytest.raises(BaseModelError, match="not on this machine") as caught:
        describe(DEFAULT_BASE)
    assert caught.value.hint == "Run `trunkline base pull`."


def test_known_bases_begin_with_the_default_and_say_that_it_is_missing() -> None:
    first = known_bases()[0]
    assert (first.name, first.pulled) == (DEFAULT_BASE, False)


def test_bare_directory_name_is_a_folder(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy.parent)
    assert describe("copy").name == str(copy)


@pytest.fixture
def hub_cache(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The hub library's cache, offline, with the tiny base as ``hf:acme/tiny`` in it."""
    from huggingface_hub import constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repo = tmp_path / "hub" / "models--acme--tiny"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    shutil.copytree(tiny, repo / "snapshots" / commit)
    return commit


def test_hub_base_is_described_from_the_hub_cache(hub_cache: str, tiny: Path) -> None:
    info = describe("hf:acme/tiny")
    assert (info.name, info.digest) == ("hf:acme/tiny", describe(str(tiny)).digest)
    assert hub_cache in info.source


def test_hub_base_at_a_revision_is_located(hub_cache: str) -> None:
    assert describe(f"hf:acme/tiny@{hub_cache}").folder.name == hub_cache


def test_absent_hub_base_hints_at_pull(hub_cache: str) -> None:
    with pytest.raises(BaseModelError, match="not on this machine") as caught:
        describe("hf:acme/other")
    assert "trunkline base pull hf:acme/other" in str(caught.value.hint)


def test_pull_of_hub_base_without_network_says_what_was_tried(hub_cache: str) -> None:
    with pytest.raises(BaseModelError, match=r"tried snapshot_download.*acme/other at main"):
        pull("hf:acme/other")
