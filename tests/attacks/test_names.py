"""Malformed names at every entry point: each is refused, and nothing is written."""

from __future__ import annotations

import http.client
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from cli_runner import invoke
from hostile import ALIASES, REFS, contents, record_base
from server_process import ServerProcess
from trunkline.adapters.artifact import read_artifact
from trunkline.api import Platform, open
from trunkline.errors import UsageError
from trunkline.refs import Ref
from trunkline.workspace import Workspace

REF_COMMANDS: dict[str, tuple[str, ...]] = {
    "show": ("adapters", "show", "REF"),
    "promote": ("adapters", "promote", "REF", "--force", "--reason", "because"),
    "rollback": ("adapters", "rollback", "REF"),
    "unalias": ("adapters", "unalias", "REF", "canary"),
    "history": ("adapters", "history", "REF"),
    "diff": ("adapters", "diff", "toy/animals@1", "REF"),
    "card": ("adapters", "card", "REF", "--write"),
    "verify": ("adapters", "verify", "REF"),
    "rm": ("adapters", "rm", "REF", "--reason", "because"),
    "export": ("adapters", "export", "REF", "OUT"),
    "sign": ("adapters", "sign", "REF", "--key", "OUT"),
    "lineage": ("lineage", "REF"),
    "tag": ("tag", "REF", "color=red"),
    "note": ("note", "REF", "a note"),
    "predict": ("predict", "REF", "a text"),
    "generate": ("generate", "REF", "a text"),
    "train": ("train", "REF", "--dry-run"),
    "eval": ("eval", "REF"),
    "recipe": ("recipes", "show", "REF"),
    "dataset": ("datasets", "show", "REF"),
}
FEW = ("climbing", "absolute", "NUL", "Cyrillic o")


@pytest.fixture(scope="session")
def workspace_template(
    tmp_path_factory: pytest.TempPathFactory, artifacts: dict[str, Path]
) -> Path:
    """A workspace with ``toy/animals`` 1 (champion) and 2, only to be copied."""
    folder = tmp_path_factory.mktemp("parent") / "workspace"
    folder.mkdir()
    platform = open(folder, no_plugins=True)
    for name in ("sound", "other"):
        manifest = read_artifact(artifacts[name]).manifest
        record_base(platform.registry, manifest.base["digest"])
        platform.store.publish(
            artifacts[name],
            Ref("toy", "animals"),
            task="classification",
            run=None,
            base_digest=manifest.base["digest"],
        )
    platform.promote("toy/animals@1", force=True, reason="a test")
    platform.registry.close()
    return folder


@pytest.fixture
def workspace(tmp_path: Path, workspace_template: Path) -> Path:
    """A copy of the workspace; its parent folder must not change either."""
    return Path(shutil.copytree(workspace_template, tmp_path / "parent" / "workspace"))


@pytest.fixture
def own(workspace: Path, tiny: Path) -> Iterator[Platform]:
    platform = open(workspace, base=str(tiny), no_plugins=True)
    yield platform
    platform.registry.close()


@pytest.mark.parametrize("what", REFS)
def test_grammar_refuses_the_name(what: str) -> None:
    with pytest.raises(UsageError):
        Ref.parse(REFS[what])


@pytest.mark.parametrize("what", REFS)
def test_refusal_is_one_line_of_ascii(what: str) -> None:
    with pytest.raises(UsageError) as caught:
        Ref.parse(REFS[what])
    message = caught.value.message.replace("…", "")
    assert message.isascii()
    assert message.isprintable()
    assert len(message) < 200


@pytest.mark.parametrize("part", ["../x", "a/b", "", "..", "A", "x" * 65, "x\0", "\u0430"])
def test_malformed_part_gives_no_path(part: str, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    for domain, name in ((part, "animals"), ("toy", part)):
        with pytest.raises(UsageError):
            workspace.version_path(domain, name, 1)


def refused(workspace: Path, *arguments: str) -> None:
    """Run a command, expect an error with code 1 or 2, and check that no file changed."""
    before = contents(workspace.parent)
    result = invoke("--workspace", str(workspace), "--no-plugins", *arguments)
    assert result.exit_code in (1, 2), result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    assert "Error" in result.stderr
    assert result.stdout == ""
    assert contents(workspace.parent) == before


def filled(arguments: tuple[str, ...], ref: str, workspace: Path) -> list[str]:
    out = str(workspace.parent / "out")
    return [{"REF": ref, "OUT": out}.get(item, item) for item in arguments]


@pytest.mark.parametrize("what", FEW)
@pytest.mark.parametrize("command", REF_COMMANDS)
def test_every_command_refuses_the_name(workspace: Path, command: str, what: str) -> None:
    refused(workspace, *filled(REF_COMMANDS[command], REFS[what], workspace))


@pytest.mark.parametrize("command", ["export", "rm", "promote"])
def test_commands_that_write_refuse_every_name(workspace: Path, command: str) -> None:
    for ref in REFS.values():
        refused(workspace, *filled(REF_COMMANDS[command], ref, workspace))


def test_import_refuses_every_name(workspace: Path, sound: Path, tiny: Path) -> None:
    for what, ref in REFS.items():
        if "@" not in ref:
            refused(workspace, "adapters", "import", str(sound), "--name", ref, "--base", str(tiny))
            assert not (workspace / "adapters" / "x").exists(), what


@pytest.mark.parametrize("what", ALIASES)
def test_promote_refuses_the_alias(workspace: Path, what: str) -> None:
    arguments = ("adapters", "promote", "toy/animals@2", "--force", "--reason", "because")
    refused(workspace, *arguments, "--alias", ALIASES[what])


@pytest.mark.parametrize("what", ["climbing", "NUL", "newline", "300 characters"])
def test_import_of_a_file_with_such_a_name_is_refused(workspace: Path, what: str) -> None:
    for name in (REFS[what], f"{REFS[what]}.tar", f"hf:{REFS[what]}"):
        refused(workspace, "adapters", "import", name, "--name", "toy/new", "--base", "./none")


def test_names_are_case_sensitive(workspace: Path) -> None:
    result = invoke("--workspace", str(workspace), "adapters", "show", "toy/ANIMALS")
    assert result.exit_code == 2
    assert "is not a valid adapter name" in result.stderr


def test_api_refuses_every_name(own: Platform, workspace: Path, tmp_path: Path) -> None:
    before = contents(workspace.parent)
    for ref in REFS.values():
        for call in (
            lambda ref=ref: own.resolve(ref).version,
            lambda ref=ref: own.predict(ref, ["a text"]),
            lambda ref=ref: own.files.export_adapter(ref, tmp_path / "out.tar"),
            lambda ref=ref: own.files.sign_adapter(ref, tmp_path / "key.pem"),
            lambda ref=ref: own.promote(ref, force=True, reason="because"),
            lambda ref=ref: own.rollback(ref),
            lambda ref=ref: own.remove_version(ref, "because"),
            lambda ref=ref: own.files.import_archive(tmp_path / "in.tar", ref),
            lambda ref=ref: own.files.import_adapter(tmp_path, ref),
        ):
            with pytest.raises(UsageError):
                call()
    assert contents(workspace.parent) == before
    assert not (tmp_path / "out.tar").exists()


def test_registry_reserves_no_version_for_such_a_name(own: Platform) -> None:
    for ref in REFS.values():
        domain, _, name = ref.partition("@")[0].partition("/")
        if (domain, name) == ("toy", "animals"):
            continue
        with pytest.raises(UsageError):
            own.registry.versions.reserve(domain, name, task="classification")


def test_name_in_an_archive_is_checked(own: Platform, workspace: Path, tmp_path: Path) -> None:
    """A name in an archive passes the same grammar as a name that a user types."""
    from trunkline.adapters.archive import pack, unpack
    from trunkline.errors import TrunklineError

    own.files.export_adapter("toy/animals@1", tmp_path / "good.tar")
    (tmp_path / "unpacked").mkdir()
    unpack(tmp_path / "good.tar", tmp_path / "unpacked")
    provenance = json.loads((tmp_path / "unpacked" / "provenance.json").read_text())
    before = contents(workspace.parent)
    for what, ref in REFS.items():
        provenance["version"]["adapter"] = ref
        (tmp_path / "unpacked" / "provenance.json").write_text(json.dumps(provenance))
        pack(tmp_path / "unpacked", tmp_path / "bad.tar", overwrite=True)
        with pytest.raises(TrunklineError):
            own.files.import_archive(tmp_path / "bad.tar")
        assert contents(workspace.parent) == before, what


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, workspace_template: Path, tiny: Path
) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("served") / "workspace"
    with ServerProcess(Path(shutil.copytree(workspace_template, folder)), tiny) as running:
        yield running
        assert running.stop() == 0


def send(server: ServerProcess, method: str, path: str, body: Any = None) -> tuple[int, str]:
    """Send a request with exactly this path and return status and text."""
    address = urlsplit(server.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
    try:
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def adapters_of(server: ServerProcess) -> dict[str, str]:
    return {
        name: digest
        for name, digest in contents(server.workspace.parent).items()
        if "registry" not in name
    }


@pytest.mark.merge
def test_server_refuses_every_model_name(server: ServerProcess) -> None:
    before = adapters_of(server)
    for what, ref in REFS.items():
        status, text = send(server, "GET", f"/v1/models/{quote(ref, safe='')}?")
        assert status in (400, 404) or ref == "", what
        assert "passwd:" not in text, what
        for path, body in (
            ("/v1/classify", {"model": ref, "input": "a text"}),
            ("/v1/chat/completions", {"model": ref, "messages": [
                {"role": "user", "content": "a text"}]}),
            ("/admin/load", {"ref": ref}),
            ("/admin/promote", {"ref": ref, "force": True, "reason": "because"}),
            ("/admin/rollback", {"ref": ref}),
        ):  # fmt: skip
            status, text = send(server, "POST", path, body)
            assert 400 <= status < 500, (what, path, text)
            assert "Traceback" not in text
            assert "error" in json.loads(text)
    assert adapters_of(server) == before


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/../../etc/passwd",
        "/v1/models/..%2f..%2fetc%2fpasswd",
        "/v1/models/%2e%2e/%2e%2e/registry.db",
        "/v1/models/%252e%252e%252fregistry.db",
        "/v1/models//etc/passwd",
        "/v1/models/toy%5canimals",
        "/v1/models/toy/animals%00",
        "/v1/models/toy/animals%0a",
        "/v1/models/toy/%C0%AE%C0%AE",
        "/v1/models/t%D0%BEy/animals",
    ],
)
def test_path_traversal_is_refused(server: ServerProcess, path: str) -> None:
    status, text = send(server, "GET", path)
    assert status in (400, 404)
    assert "SQLite" not in text
    assert "root:" not in text


def test_server_refuses_every_alias(server: ServerProcess) -> None:
    for what, alias in ALIASES.items():
        body = {"ref": "toy/animals@2", "alias": alias, "force": True, "reason": "because"}
        status, text = send(server, "POST", "/admin/promote", body)
        assert 400 <= status < 500, (what, text)
    status, text = send(server, "GET", "/v1/models?limit=100")
    assert [one["id"] for one in json.loads(text)["data"] if "animals" in one["id"]] == [
        "toy/animals", "toy/animals@champion", "toy/animals@2", "toy/animals@1",
    ]  # fmt: skip


def test_server_still_answers_a_valid_name(server: ServerProcess) -> None:
    status, text = send(server, "POST", "/v1/classify", {"model": "toy/animals", "input": "a text"})
    assert status == 200, text
