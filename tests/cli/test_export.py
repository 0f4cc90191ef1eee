"""``adapters export``, ``import FILE`` and ``sign``: words, places and codes."""

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
    """A workspace with ``toy/kinds@1``, to copy."""
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
def there(made: Path, tmp_path: Path) -> Run:
    """Run ``trunkline adapters`` in the workspace with the version."""
    folder = Path(shutil.copytree(made, tmp_path / "there"))
    return lambda *args: invoke("--workspace", str(folder), "adapters", *args)


@pytest.fixture
def here(tmp_path: Path) -> Run:
    """Run ``trunkline adapters`` in an empty workspace."""
    (tmp_path / "here").mkdir()
    return lambda *args: invoke("--workspace", str(tmp_path / "here"), "adapters", *args)


@pytest.fixture
def archive(tmp_path: Path) -> str:
    return str(tmp_path / "kinds.tar")


@pytest.fixture
def digest(there: Run) -> str:
    return str(json.loads(there("show", "toy/kinds", "--json").stdout)["digest"])


def test_export_prints_digest_and_files_on_stdout(there: Run, archive: str, digest: str) -> None:
    result = there("export", "toy/kinds", archive)
    assert result.exit_code == 0, result.output
    for part in (digest, archive, "adapter_model.safetensors", "signed   no"):
        assert part in result.stdout
    assert "toy/kinds@1 (newest)" in result.stderr


def test_export_json_parses(there: Run, archive: str, digest: str) -> None:
    data = json.loads(there("export", "toy/kinds", archive, "--json").stdout)
    assert (data["digest"], data["signed_by"]) == (digest, None)
    assert data["bytes"] == Path(archive).stat().st_size


def test_export_overwrites_only_with_the_option(there: Run, archive: str) -> None:
    there("export", "toy/kinds", archive)
    result = there("export", "toy/kinds", archive)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--overwrite" in result.stderr
    assert there("export", "toy/kinds", archive, "--overwrite").exit_code == 0


def test_archive_is_imported_without_options(
    there: Run, here: Run, archive: str, digest: str
) -> None:
    there("export", "toy/kinds", archive)
    result = here("import", archive)
    assert result.exit_code == 0, result.output
    for part in ("toy/kinds@1", "classification", digest):
        assert part in result.stdout


def test_archive_json_parses(there: Run, here: Run, archive: str, digest: str) -> None:
    there("export", "toy/kinds", archive)
    data = json.loads(here("import", archive, "--json").stdout)
    assert (data["adapter"], data["digest"]) == ("toy/kinds@1", digest)


def test_archive_takes_name_digest_and_base(
    there: Run, here: Run, archive: str, digest: str, base: Path
) -> None:
    there("export", "toy/kinds", archive)
    args = ("--name", "shop/kinds", "--digest", digest, "--base", str(base))
    assert "shop/kinds@1" in here("import", archive, *args).stdout


WRONG_USE = [
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
    ("args", "code", "expected"), WRONG_USE, ids=[" ".join(w) for w, _, _ in WRONG_USE]
)
def test_option_that_does_not_apply_to_an_archive_is_refused(
    there: Run, here: Run, archive: str, args: tuple[str, ...], code: int, expected: str
) -> None:
    there("export", "toy/kinds", archive)
    result = here("import", archive, *args)
    assert (result.exit_code, result.stdout) == (code, "")
    assert expected in result.stderr
    assert "Hint: " in result.stderr
    assert here("list", "--json").stdout.strip() in ("[]", '{"adapters": []}')


def test_file_that_is_no_archive_is_refused(here: Run, tmp_path: Path) -> None:
    (tmp_path / "x.tar.gz").write_bytes(b"\x1f\x8b" + bytes(600))
    result = here("import", str(tmp_path / "x.tar.gz"))
    assert result.exit_code == 1
    assert "is damaged" in result.stderr


def test_missing_archive_is_wrong_use(here: Run, archive: str) -> None:
    result = here("import", archive)
    assert result.exit_code == 2
    assert "There is no file" in result.stderr


def test_folder_needs_a_name(here: Run, tmp_path: Path, base: Path) -> None:
    result = here("import", str(tmp_path), "--base", str(base))
    assert "needs a name" in result.stderr


def test_folder_has_no_digest_yet(here: Run, tmp_path: Path) -> None:
    result = here("import", str(tmp_path), "--name", "toy/x", "--digest", "sha256:" + "0" * 64)
    assert "is not one" in result.stderr


def test_malformed_hub_name_is_wrong_use(here: Run, base: Path) -> None:
    result = here("import", "hf:../x", "--name", "toy/x", "--base", str(base))
    assert result.exit_code == 2
    assert "hf:<owner>/<repo>" in result.stderr


def test_sign_prints_the_key(there: Run, tmp_path: Path, archive: str) -> None:
    key = make_key(tmp_path, "release")
    result = there("sign", "toy/kinds", "--key", str(key))
    assert result.exit_code == 0, result.output
    assert "signed by  sha256:" in result.stdout
    assert "by sha256:" in there("export", "toy/kinds", archive).stdout


def test_sign_json_parses(there: Run, tmp_path: Path, digest: str) -> None:
    key = make_key(tmp_path, "release")
    data = json.loads(there("sign", "toy/kinds", "--key", str(key), "--json").stdout)
    assert (data["adapter"], data["digest"]) == ("toy/kinds@1", digest)


def test_password_comes_out_of_the_environment(
    there: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = make_key(tmp_path, "release", password="hidden")
    args = ("sign", "toy/kinds", "--key", str(key), "--password-from", "KEY_PASSWORD")
    result = there(*args)
    assert result.exit_code == 2
    assert "'KEY_PASSWORD' is not set" in result.stderr
    monkeypatch.setenv("KEY_PASSWORD", "hidden")
    result = there(*args)
    assert result.exit_code == 0
    assert "hidden" not in result.output


def test_missing_key_is_wrong_use(there: Run, tmp_path: Path) -> None:
    result = there("sign", "toy/kinds", "--key", str(tmp_path / "none.pem"))
    assert (result.exit_code, result.stdout) == (2, "")
    assert "openssl" in result.stderr


def test_unsigned_version_is_refused_where_signatures_are_demanded(
    there: Run, tmp_path: Path
) -> None:
    key = make_key(tmp_path, "release")
    public = json.dumps(str(key.with_suffix(".pub")))
    args = f"[signatures]\nrequired = true\nkeys = [{public}]\n"
    (tmp_path / "there" / "trunkline.toml").write_text(args)
    assert "is not signed" in there("card", "toy/kinds").stderr
    advice = there("verify", "toy/kinds").stderr
    assert "adapters sign" in advice
    assert "train it again" not in advice
    there("sign", "toy/kinds", "--key", str(key))
    assert there("card", "toy/kinds").exit_code == 0
