"""Hostile names at every edge: refused there, in words, with nothing written."""

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
def made_ground(tmp_path_factory: pytest.TempPathFactory, artifacts: dict[str, Path]) -> Path:
    """A workspace with ``toy/animals`` 1 (champion) and 2, to copy."""
    folder = tmp_path_factory.mktemp("ground") / "workspace"
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
def ground(tmp_path: Path, made_ground: Path) -> Path:
    """The test's own workspace, in a folder of which nothing else may change either."""
    return Path(shutil.copytree(made_ground, tmp_path / "ground" / "workspace"))


@pytest.fixture
def own(ground: Path, tiny: Path) -> Iterator[Platform]:
    platform = open(ground, base=str(tiny), no_plugins=True)
    yield platform
    platform.registry.close()


# ------------------------------------------------------------------------------------ the grammar


@pytest.mark.parametrize("what", REFS)
def test_grammar_refuses_it(what: str) -> None:
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
def test_no_path_is_made_of_it(part: str, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    for domain, name in ((part, "animals"), ("toy", part)):
        with pytest.raises(UsageError):
            workspace.version_path(domain, name, 1)


# ---------------------------------------------------------------------------------- command line


def refused(ground: Path, *words: str) -> None:
    """A command must end with code 2 (or 1) and words, and leave everything as it was."""
    before = contents(ground.parent)
    result = invoke("--workspace", str(ground), "--no-plugins", *words)
    assert result.exit_code in (1, 2), result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    assert "Error" in result.stderr
    assert result.stdout == ""
    assert contents(ground.parent) == before


def filled(words: tuple[str, ...], ref: str, ground: Path) -> list[str]:
    out = str(ground.parent / "out")
    return [{"REF": ref, "OUT": out}.get(word, word) for word in words]


@pytest.mark.parametrize("what", FEW)
@pytest.mark.parametrize("command", REF_COMMANDS)
def test_every_command_refuses_it(ground: Path, command: str, what: str) -> None:
    refused(ground, *filled(REF_COMMANDS[command], REFS[what], ground))


@pytest.mark.parametrize("command", ["export", "rm", "promote"])
def test_commands_that_write_refuse_every_one(ground: Path, command: str) -> None:
    for ref in REFS.values():
        refused(ground, *filled(REF_COMMANDS[command], ref, ground))


def test_import_takes_no_such_name(ground: Path, sound: Path, tiny: Path) -> None:
    for what, ref in REFS.items():
        if "@" not in ref:
            refused(ground, "adapters", "import", str(sound), "--name", ref, "--base", str(tiny))
            assert not (ground / "adapters" / "x").exists(), what


@pytest.mark.parametrize("what", ALIASES)
def test_promote_takes_no_such_alias(ground: Path, what: str) -> None:
    words = ("adapters", "promote", "toy/animals@2", "--force", "--reason", "because")
    refused(ground, *words, "--alias", ALIASES[what])


@pytest.mark.parametrize("what", ["climbing", "NUL", "newline", "300 characters"])
def test_file_of_such_a_name_is_told_as_missing(ground: Path, what: str) -> None:
    for name in (REFS[what], f"{REFS[what]}.tar", f"hf:{REFS[what]}"):
        refused(ground, "adapters", "import", name, "--name", "toy/new", "--base", "./none")


def test_names_that_differ_by_case_only_are_not_taken_for_one_another(ground: Path) -> None:
    result = invoke("--workspace", str(ground), "adapters", "show", "toy/ANIMALS")
    assert result.exit_code == 2
    assert "is not a valid adapter name" in result.stderr


# -------------------------------------------------------------------------------------- the API


def test_api_refuses_every_one(own: Platform, ground: Path, tmp_path: Path) -> None:
    before = contents(ground.parent)
    for ref in REFS.values():
        for ask in (
            lambda ref=ref: own.resolve(ref).version,
            lambda ref=ref: own.predict(ref, ["a text"]),
            lambda ref=ref: own.export_adapter(ref, tmp_path / "out.tar"),
            lambda ref=ref: own.sign_adapter(ref, tmp_path / "key.pem"),
            lambda ref=ref: own.promote(ref, force=True, reason="because"),
            lambda ref=ref: own.rollback(ref),
            lambda ref=ref: own.remove_version(ref, "because"),
            lambda ref=ref: own.import_archive(tmp_path / "in.tar", ref),
            lambda ref=ref: own.import_adapter(tmp_path, ref),
        ):
            with pytest.raises(UsageError):
                ask()
    assert contents(ground.parent) == before
    assert not (tmp_path / "out.tar").exists()


def test_registry_gives_no_number_to_such_a_name(own: Platform) -> None:
    for ref in REFS.values():
        domain, _, name = ref.partition("@")[0].partition("/")
        if (domain, name) == ("toy", "animals"):
            continue
        with pytest.raises(UsageError):
            own.registry.versions.reserve(domain, name, task="classification")


def test_archives_own_name_is_not_trusted(own: Platform, ground: Path, tmp_path: Path) -> None:
    """What an archive says of itself passes the same grammar as what a user types."""
    from trunkline.adapters.archive import pack, unpack
    from trunkline.errors import TrunklineError

    own.export_adapter("toy/animals@1", tmp_path / "good.tar")
    (tmp_path / "open").mkdir()
    unpack(tmp_path / "good.tar", tmp_path / "open")
    provenance = json.loads((tmp_path / "open" / "provenance.json").read_text())
    before = contents(ground.parent)
    for what, ref in REFS.items():
        provenance["version"]["adapter"] = ref
        (tmp_path / "open" / "provenance.json").write_text(json.dumps(provenance))
        pack(tmp_path / "open", tmp_path / "bad.tar", overwrite=True)
        with pytest.raises(TrunklineError):
            own.import_archive(tmp_path / "bad.tar")
        assert contents(ground.parent) == before, what


# ------------------------------------------------------------------------------------------ HTTP


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, made_ground: Path, tiny: Path
) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("served") / "workspace"
    with ServerProcess(Path(shutil.copytree(made_ground, folder)), tiny) as running:
        yield running
        assert running.stop() == 0


def ask(server: ServerProcess, method: str, path: str, body: Any = None) -> tuple[int, str]:
    """Status and text; the path goes out exactly as it stands."""
    where = urlsplit(server.url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=60)
    try:
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def adapters_of(server: ServerProcess) -> dict[str, str]:
    return {
        name: digest
        for name, digest in contents(server.workspace.parent).items()
        if "registry" not in name
    }


def test_server_answers_no_such_model(server: ServerProcess) -> None:
    before = adapters_of(server)
    for what, ref in REFS.items():
        status, text = ask(server, "GET", f"/v1/models/{quote(ref, safe='')}?")
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
            status, text = ask(server, "POST", path, body)
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
def test_path_that_climbs_finds_nothing(server: ServerProcess, path: str) -> None:
    status, text = ask(server, "GET", path)
    assert status in (400, 404)
    assert "SQLite" not in text
    assert "root:" not in text


def test_server_moves_no_such_alias(server: ServerProcess) -> None:
    for what, alias in ALIASES.items():
        body = {"ref": "toy/animals@2", "alias": alias, "force": True, "reason": "because"}
        status, text = ask(server, "POST", "/admin/promote", body)
        assert 400 <= status < 500, (what, text)
    status, text = ask(server, "GET", "/v1/models?limit=100")
    assert [one["id"] for one in json.loads(text)["data"] if "animals" in one["id"]] == [
        "toy/animals", "toy/animals@champion", "toy/animals@2", "toy/animals@1",
    ]  # fmt: skip


def test_server_still_answers_an_honest_name(server: ServerProcess) -> None:
    status, text = ask(server, "POST", "/v1/classify", {"model": "toy/animals", "input": "a text"})
    assert status == 200, text
