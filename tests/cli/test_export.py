"""``adapters export``, ``import FILE`` and ``sign``: options, output and exit codes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from cli_runner import invoke
from made_keys import make_key
from tiny_base import make_tiny_base
from workbench import make_artifact

Run = Callable[..., Result]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("moving") / "tiny")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """A workspace with ``toy/kinds@1``, for copies."""
    folder = tmp_path_factory.mktemp("moving-site")
    make_artifact(folder / "artifact", base, target_modules=["q_proj"])
    (folder / "workspace").mkdir()
    args = ("adapters", "import", str(folder / "artifact"), "--name", "toy/kinds")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TRUNKLINE_REGISTRY", raising=False)
        result = invoke("--workspace", str(folder / "workspace"), *args, "--base", str(base))
    assert result.exit_code == 0, result.output
    return folder / "workspace"


@pytest.fixture
def source(made: Path, tmp_path: Path) -> Run:
    """Run ``trunkline adapters`` in the workspace with the version."""
    folder = Path(shutil.copytree(made, tmp_path / "source"))
    return lambda *args: invoke("--workspace", str(folder), "adapters", *args)


@pytest.fixture
def target(tmp_path: Path) -> Run:
    """Run ``trunkline adapters`` in an empty workspace."""
    (tmp_path / "target").mkdir()
    return lambda *args: invoke("--workspace", str(tmp_path / "target"), "adapters", *args)


@pytest.fixture
def archive(tmp_path: Path) -> str:
    return str(tmp_path / "kinds.tar")


@pytest.fixture
def digest(source: Run) -> str:
    return str(json.loads(source("show", "toy/kinds", "--json").stdout)["digest"])


def test_export_prints_digest_and_files_on_stdout(source: Run, archive: str, digest: str) -> None:
    result = source("export", "toy/kinds", archive)
    assert result.exit_code == 0, result.output
    for part in (digest, archive, "adapter_model.safetensors", "signed   no"):
        assert part in result.stdout
    assert "toy/kinds@1 (newest)" in result.stderr


def test_export_json_parses(source: Run, archive: str, digest: str) -> None:
    data = json.loads(source("export", "toy/kinds", archive, "--json").stdout)
    assert (data["digest"], data["signed_by"]) == (digest, None)
    assert data["bytes"] == Path(archive).stat().st_size


def test_export_overwrites_only_with_the_option(source: Run, archive: str) -> None:
    source("export", "toy/kinds", archive)
    result = source("export", "toy/kinds", archive)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--overwrite" in result.stderr
    assert source("export", "toy/kinds", archive, "--overwrite").exit_code == 0


def test_archive_is_imported_without_options(
    source: Run, target: Run, archive: str, digest: str
) -> None:
    source("export", "toy/kinds", archive)
    result = target("import", archive)
    assert result.exit_code == 0, result.output
    for part in ("toy/kinds@1", "classification", digest):
        assert part in result.stdout


def test_archive_json_parses(source: Run, target: Run, archive: str, digest: str) -> None:
    source("export", "toy/kinds", archive)
    data = json.loads(target("import", archive, "--json").stdout)
    assert (data["adapter"], data["digest"]) == ("toy/kinds@1", digest)


def test_archive_takes_name_digest_and_base(
    source: Run, target: Run, archive: str, digest: str, base: Path
) -> None:
    source("export", "toy/kinds", archive)
    args = ("--name", "shop/kinds", "--digest", digest, "--base", str(base))
    assert "shop/kinds@1" in target("import", archive, *args).stdout


WRONG_USAGE = [
    (("--labels", "a,b"), 2, "--labels applies to folders"),
    (("--template", "{text}"), 2, "Leave out --template"),
    (("--chat",), 2, "--chat"),
    (("--task", "regression"), 2, "--task"),
    (("--max-new-tokens", "3"), 2, "--max-new-tokens"),
    (("--name", "kinds"), 2, "is not the name of an adapter"),
    (("--name", "toy/kinds@2"), 2, "names a version"),
    (("--digest", "5f0c"), 2, "is not a digest"),
    (("--digest", "sha256:" + "0" * 64), 1, "holds sha256:"),
]


@pytest.mark.parametrize(
    ("args", "code", "expected"), WRONG_USAGE, ids=[" ".join(w) for w, _, _ in WRONG_USAGE]
)
def test_option_that_does_not_apply_to_an_archive_is_refused(
    source: Run, target: Run, archive: str, args: tuple[str, ...], code: int, expected: str
) -> None:
    source("export", "toy/kinds", archive)
    result = target("import", archive, *args)
    assert (result.exit_code, result.stdout) == (code, "")
    assert expected in result.stderr
    assert "Hint: " in result.stderr
    assert target("list", "--json").stdout.strip() in ("[]", '{"adapters": []}')


def test_file_that_is_not_a_archive_is_refused(target: Run, tmp_path: Path) -> None:
    (tmp_path / "x.tar.gz").write_bytes(b"\x1f\x8b" + bytes(600))
    result = target("import", str(tmp_path / "x.tar.gz"))
    assert result.exit_code == 2
    assert "is not an archive" in result.stderr


def test_missing_archive_is_wrong_usage(target: Run, archive: str) -> None:
    result = target("import", archive)
    assert result.exit_code == 2
    assert "There is no file" in result.stderr


def test_folder_needs_a_name(target: Run, tmp_path: Path, base: Path) -> None:
    result = target("import", str(tmp_path), "--base", str(base))
    assert "needs a name" in result.stderr


def test_folder_has_no_digest_yet(target: Run, tmp_path: Path) -> None:
    result = target("import", str(tmp_path), "--name", "toy/x", "--digest", "sha256:" + "0" * 64)
    assert "is not one" in result.stderr


def test_malformed_hub_name_is_wrong_usage(target: Run, base: Path) -> None:
    result = target("import", "hf:../x", "--name", "toy/x", "--base", str(base))
    assert result.exit_code == 2
    assert "hf:<owner>/<repo>" in result.stderr


def test_sign_prints_the_key(source: Run, tmp_path: Path, archive: str) -> None:
    key = make_key(tmp_path, "release")
    result = source("sign", "toy/kinds", "--key", str(key))
    assert result.exit_code == 0, result.output
    assert "signed by  sha256:" in result.stdout
    assert "by sha256:" in source("export", "toy/kinds", archive).stdout


def test_sign_json_parses(source: Run, tmp_path: Path, digest: str) -> None:
    key = make_key(tmp_path, "release")
    data = json.loads(source("sign", "toy/kinds", "--key", str(key), "--json").stdout)
    assert (data["adapter"], data["digest"]) == ("toy/kinds@1", digest)


def test_password_comes_out_of_the_environment(
    source: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = make_key(tmp_path, "release", password="hidden")
    args = ("sign", "toy/kinds", "--key", str(key), "--password-from", "KEY_PASSWORD")
    result = source(*args)
    assert result.exit_code == 2
    assert "'KEY_PASSWORD' is not set" in result.stderr
    monkeypatch.setenv("KEY_PASSWORD", "hidden")
    result = source(*args)
    assert result.exit_code == 0
    assert "hidden" not in result.output


def test_missing_key_is_wrong_usage(source: Run, tmp_path: Path) -> None:
    result = source("sign", "toy/kinds", "--key", str(tmp_path / "none.pem"))
    assert (result.exit_code, result.stdout) == (2, "")
    assert "openssl" in result.stderr


def test_unsigned_version_is_refused_where_signatures_are_demanded(
    source: Run, tmp_path: Path
) -> None:
    key = make_key(tmp_path, "release")
    public = json.dumps(str(key.with_suffix(".pub")))
    args = f"[signatures]\nrequired = true\nkeys = [{public}]\n"
    (tmp_path / "source" / "trunkline.toml").write_text(args)
    assert "is not signed" in source("card", "toy/kinds").stderr
    advice = source("verify", "toy/kinds").stderr
    assert "adapters sign" in advice
    assert "train it again" not in advice
    source("sign", "toy/kinds", "--key", str(key))
    assert source("card", "toy/kinds").exit_code == 0


@pytest.mark.parametrize("format", ["archive", "merged"])
def test_target_that_is_a_url_is_refused_without_its_password(
    source: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    monkeypatch.chdir(tmp_path)
    target = "s3://key:hidden@bucket/model"
    done = source("export", "toy/kinds@1", target, "--format", format)
    assert done.exit_code == 2
    assert "The target is a URL" in done.stderr
    assert "hidden" not in done.output
    assert not (tmp_path / "s3:").exists()
