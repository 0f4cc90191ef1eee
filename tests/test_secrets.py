"""Passwords, keys and tokens appear nowhere in what is printed, raised, logged or stored."""

from __future__ import annotations

import json
import traceback
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st

from cli_runner import invoke
from trunkline.adapters.hub import fetch_adapter
from trunkline.adapters.object_store import ArtifactCache, ObjectStorage
from trunkline.api import Platform
from trunkline.bases.sources import resolve
from trunkline.cli.http_client import Server
from trunkline.cli.root import trunkline
from trunkline.errors import TrunklineError, UsageError
from trunkline.registry.registry import Registry
from trunkline.registry.session import inspect_database, upgrade
from trunkline.training.config import make_config
from trunkline.workspace import Configuration
from workbench import platform, tiny, trained_platform, trained_workspace

__all__ = ["platform", "tiny", "trained_platform", "trained_workspace"]

LEFT, RIGHT = "Kx9qZ7w", "Vb3mN5t"
SEPARATORS = ["", "@@", "%40", *"@:/?#%&= '\\[ü\n"]
PASSWORDS = [f"{LEFT}{separator}{RIGHT}" for separator in SEPARATORS]
ODD = st.text(alphabet="@:/?#%&=+[]\\ '\"`;,.~|<>ü☃", max_size=4)

POSTGRESQL = (
    "postgresql://me:{}@127.0.0.1:1/db",
    "postgresql+psycopg://me:{}@[::1]:1/db",
    "postgresql://{}@127.0.0.1:1/db",
    "postgresql://127.0.0.1:1/db?password={}",
    "postgresql://127.0.0.1:1/db?sslpassword={}&user=me",
    "postgresql://me:{}@/db?host=/nowhere",
    "postgresql:///me:{}@127.0.0.1/db",
    "postgresql:/me:{}@127.0.0.1/db",
    "postgresql:me:{}@127.0.0.1/db",
    "me:{}@127.0.0.1/db",
    "mysql://me:{}@127.0.0.1/db",
    "sqlite+pysqlcipher://:{}@/registry.db?kdf_iter=1",
    "postgresql://127.0.0.1:1/db;password={}",
    "postgresql://127.0.0.1:1/db&password={}",
    "host=127.0.0.1 user=me password={}",
    "Host=127.0.0.1;Username=me;Password={}",
    "postgresql%3A%2F%2Fme%3A{}%40127.0.0.1%2Fdb",
    "postgresql%253A%252F%252Fme%253A{}%2540127.0.0.1%252Fdb",
    "postgresql://me:{}@127.0.0.1:1,127.0.0.1:2/db",
)
"""Registry URLs that can't be used, or where nothing answers."""

STORES = (
    "s3://key:{}@bucket/models",
    "s3:/key:{}@bucket/models",
    "key:{}@bucket/models",
    "ftp://me:{}@127.0.0.1:1/models",
    "nosuch://me:{}@host/models",
    "sftp://{}@127.0.0.1:1/models",
    "ftp://127.0.0.1:1/models;password={}",
    "s3%3A%2F%2Fkey%3A{}%40bucket",
)
SERVERS = (
    "http://me:{}@127.0.0.1:1",
    "http:/me:{}@127.0.0.1:1",
    "me:{}@127.0.0.1:1",
    "http://{}@127.0.0.1:1/v1",
    "http://127.0.0.1:1/v1?api_key={}",
    "http://127.0.0.1:1/v1#{}",
    "http://me:{}",
    "ftp://me:{}@127.0.0.1",
)
SOURCES = (
    "hf:me:{}@main",
    "hf:https://me:{}@127.0.0.1/owner/repo",
    "hf:owner/repo?token={}",
    "https://me:{}@127.0.0.1/model",
    "https:/me:{}@127.0.0.1/model",
    "me:{}@model",
    "hf:owner/repo;token={}",
    "hf:owner/repo#token={}",
    "hf:owner/repo token={}",
)


def everything(error: BaseException) -> str:
    """All that an exception and those that led to it can show."""
    texts = ["".join(traceback.format_exception(error))]
    pending, seen = [error], set()
    while pending:
        current = pending.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        texts += [
            str(current),
            repr(current),
            repr(current.args),
            str(getattr(current, "hint", "")),
        ]
        links = (getattr(current, name, None) for name in ("__cause__", "__context__", "orig"))
        pending += [link for link in links if isinstance(link, BaseException)]
    return "\n".join(texts)


def assert_hidden(text: str) -> None:
    for part in (LEFT, RIGHT):
        assert part.lower() not in text.lower(), text


def refused(action: Any) -> str:
    """Run an action that must fail; returns its message and checks that it shows no secret."""
    with pytest.raises(TrunklineError) as caught:
        action()
    assert_hidden(everything(caught.value))
    return caught.value.message


# ---------------------------------------------------------------------------------- registry


@pytest.mark.parametrize("form", POSTGRESQL)
def test_password_of_a_registry_url_is_not_shown(form: str) -> None:
    connects = ":1/db" in form or "nowhere" in form
    for password in PASSWORDS[:6] if connects else PASSWORDS:
        url = form.format(password)
        refused(lambda: Registry.open(url, busy_seconds=0.2))  # noqa: B023
    for action in (upgrade, inspect_database):
        refused(lambda: action(form.format(PASSWORDS[1])))  # noqa: B023


@given(ODD, st.sampled_from([form for form in POSTGRESQL if "127.0.0.1:1" not in form]))
@settings(max_examples=50, deadline=None)
def test_no_random_password_is_shown(odd: str, form: str) -> None:
    url = form.format(f"{LEFT}{odd}{RIGHT}")
    refused(lambda: Registry.open(url, busy_seconds=0.2))


@pytest.mark.parametrize(
    ("url", "part"),
    [
        (f"postgresql://me:{LEFT}@{RIGHT}@host/db", "'@' that could belong to its password"),
        (f"postgresql:/me:{LEFT}@host/db", "one slash after its scheme"),
        (f"me:{LEFT}@host/db", "no scheme"),
        (f"postgresql://me:{LEFT}/db", "port that is not a number"),
        (f"postgresql://me:{LEFT}@ho st/db", "space in its host"),
        (f"postgresql://me:{LEFT}@::1/db", "IPv6 address in brackets"),
        (f"postgresql://me:{LEFT}@host:99999/db", "port that is not a number up to 65535"),
        (f"mysql://me:{LEFT}@host/db", "names neither SQLite nor PostgreSQL"),
    ],
)
def test_error_names_the_part_of_a_url_that_can_not_be_read(url: str, part: str) -> None:
    assert part in refused(lambda: Registry.open(url))


@pytest.mark.parametrize(
    "command", [("db", "current"), ("db", "upgrade"), ("runs", "list"), ("keys", "create", "me")]
)
@pytest.mark.parametrize("form", POSTGRESQL[:3] + POSTGRESQL[7:8])
def test_command_prints_no_password(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, form: str, command: tuple[str, ...]
) -> None:
    monkeypatch.setenv("TRUNKLINE_REGISTRY", form.format(f"{LEFT}@{RIGHT}"))
    result = invoke("--debug", "--workspace", str(tmp_path), *command)
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert_hidden(result.output + result.stderr)
    assert_hidden_in(tmp_path)


# -------------------------------------------------------------------------------------- store


@pytest.mark.parametrize("form", STORES)
def test_password_of_a_store_url_is_not_shown(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for password in PASSWORDS:
        url = form.format(password)
        if "\n" in url:
            continue
        monkeypatch.setenv("TRUNKLINE_STORE", url)
        refused(lambda: list_store(tmp_path))


def list_store(folder: Path) -> None:
    """Read the store of a workspace; fails even if it can be read."""
    store = Configuration.read(folder).store
    assert_hidden(repr(store))
    assert store.url is not None
    list(ObjectStorage(store.url, {}, ArtifactCache(folder / "cache")).folders())
    raise TrunklineError("The store was read.")


@pytest.mark.parametrize(
    "text",
    [
        '[store]\noptions = "{}"\n',
        '[store]\nurl = ["{}"]\n',
        '[store]\nurl = "s3://key:{}@bucket"\n',
        '[store]\nurl = "s3://key:{}\n',
        '[store]\nurl = "s3:/key:{}@bucket"\n',
    ],
)
def test_secret_in_trunkline_toml_is_not_shown(tmp_path: Path, text: str) -> None:
    (tmp_path / "trunkline.toml").write_text(text.format(f"{LEFT}-{RIGHT}"))
    refused(lambda: Configuration.read(tmp_path))


def test_secret_among_a_store_s_options_is_not_shown(tmp_path: Path) -> None:
    options = {"password": f"{LEFT}-{RIGHT}", "host": f"{LEFT}-{RIGHT}"}
    storage = ObjectStorage("ftp://127.0.0.1:1/x", options, ArtifactCache(tmp_path))
    refused(lambda: list(storage.folders()))


def test_location_in_a_store_shows_no_password(tmp_path: Path) -> None:
    url = f"sftp://me:{LEFT}@host/models?sig={RIGHT}"
    assert_hidden(ObjectStorage(url, {}, ArtifactCache(tmp_path)).location("a/b/1"))


# --------------------------------------------------------------------------- servers and keys


@pytest.mark.parametrize("form", SERVERS)
def test_password_of_a_server_url_is_not_shown(form: str) -> None:
    for password in PASSWORDS:
        refused(lambda: Server(form.format(password)))  # noqa: B023


@pytest.mark.parametrize("key", PASSWORDS)
def test_api_key_is_not_shown(monkeypatch: pytest.MonkeyPatch, key: str, tmp_path: Path) -> None:
    monkeypatch.setenv("TRUNKLINE_API_KEY", key)
    result = invoke("--debug", "predict", "toy/animals", "a cat", "--url", "http://127.0.0.1:1")
    assert result.exit_code != 0
    assert_hidden(result.output + result.stderr)


def test_api_key_in_the_address_of_a_proxy_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for separator in ("", "@", ":", "/"):
        monkeypatch.setenv("HTTP_PROXY", f"http://me:{LEFT}{separator}{RIGHT}@127.0.0.1:1")
        result = invoke("--debug", "predict", "toy/animals", "a cat", "--url", "http://192.0.2.1")
        assert result.exit_code != 0
        assert_hidden(result.output + result.stderr)


@pytest.mark.parametrize(
    "command", [("runs", "list"), ("plugins", "show"), ("ps",), ("predict", "--temperature")]
)
@pytest.mark.parametrize("password", [PASSWORDS[0], f"{LEFT} {RIGHT}", f"{LEFT}@{RIGHT}"])
def test_url_in_the_wrong_place_of_a_command_shows_no_password(
    command: tuple[str, ...], password: str, tmp_path: Path
) -> None:
    for form in ("postgresql://me:{}@host/db", "--uri=http://me:{}@host", "hf:a/b?token={}"):
        result = invoke("--workspace", str(tmp_path), *command, form.format(password), "--json")
        assert result.exit_code == 2
        assert_hidden(result.output + result.stderr)


def test_url_as_an_alias_becomes_no_suggestion(tmp_path: Path) -> None:
    for url in (f"http://me:{LEFT}@host", f"hf:a/b?token={LEFT}"):
        where = ("--workspace", str(tmp_path), "adapters", "promote", "toy/animals", "--alias", url)
        result = invoke(*where, "--json")
        assert result.exit_code == 2
        assert_hidden(result.output + result.stderr)


def test_no_option_takes_a_secret_as_its_value() -> None:
    """Arguments are visible in the list of processes."""

    def options(command: click.Command, context: click.Context) -> Iterator[str]:
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.is_flag:
                yield from parameter.opts
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                nested = command.get_command(context, name)
                assert nested is not None
                yield from options(nested, context)

    names = set(options(trunkline, click.Context(trunkline)))
    assert "--password-from" in names
    assert not {name for name in names if name.endswith(("password", "token", "secret", "api-key"))}


# ------------------------------------------------------------------------------------ sources


@pytest.mark.parametrize("form", SOURCES)
def test_secret_in_the_name_of_a_source_is_not_shown(form: str) -> None:
    for password in PASSWORDS:
        name = form.format(password)
        refused(lambda: resolve(name))  # noqa: B023
        if name.startswith("hf:"):
            refused(lambda: fetch_adapter(name))  # noqa: B023


@pytest.mark.parametrize("form", SOURCES)
def test_command_prints_no_secret_of_a_source(form: str, tmp_path: Path, tiny: Path) -> None:
    name = form.format(f"{LEFT}@{RIGHT}")
    where = ("--debug", "--workspace", str(tmp_path), "--base", str(tiny))
    for command in (("base", "show", name), ("adapters", "import", name, "--name", "toy/animals")):
        result: Result = invoke(*where, *command)
        assert result.exit_code != 0
        assert "no option" not in result.stderr
        assert_hidden(result.output + result.stderr)


# ------------------------------------------------------------------------- what a run records


def test_nothing_that_a_run_writes_holds_a_secret(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "TRUNKLINE_API_KEY", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD"):
        monkeypatch.setenv(name, f"{LEFT}-{name}-{RIGHT}")
    training_job = Platform.training_job

    def with_source(self: Platform, recipe: str, settings: Any) -> Any:
        job = training_job(self, recipe, settings)
        source = f"https://me:{LEFT}@host/rows.csv?X-Amz-Signature={RIGHT}"
        return replace(job, dataset=replace(job.dataset, source=source))

    monkeypatch.setattr(Platform, "training_job", with_source)
    result = platform.train("toy/animals", max_steps=1)
    card = (platform.workspace.adapters / result.version.path / "README.md").read_text()
    assert "https://…@host/rows.csv" in card

    def broken(scored: Any) -> float:
        raise ConnectionError(f"login with {LEFT}-HF_TOKEN-{RIGHT} failed")

    broken_metric = replace(platform.metric("toy/hit_rate"), compute=broken)
    monkeypatch.setattr(
        Platform,
        "training_job",
        lambda self, recipe, settings: replace(
            training_job(self, recipe, settings),
            metrics=(training_job(self, recipe, settings).metrics[0], broken_metric),
        ),
    )
    message = refused(lambda: platform.train("toy/animals", max_steps=1))
    assert "login with …" in message
    assert "login with …" in (platform.registry.runs.get(2).error or "")
    assert_hidden(json.dumps([str(event) for event in platform.registry.events.list()]))
    platform.registry.close()
    assert_hidden_in(platform.workspace.root)


def assert_hidden_in(folder: Path) -> None:
    """No file below a folder holds a part of the secret, nor does its name."""
    for path in folder.rglob("*"):
        assert_hidden(path.name)
        if path.is_file():
            assert_hidden(path.read_bytes().decode("latin-1"))


@pytest.mark.parametrize(
    "url", ["s3://bucket/models;secret={}", "AccountName=me;AccountKey={}", "az://c/p&sig={}"]
)
def test_location_shows_no_setting_of_a_secret(tmp_path: Path, url: str) -> None:
    storage = ObjectStorage(url.format(f"{LEFT};{RIGHT}"), {}, ArtifactCache(tmp_path))
    assert_hidden(storage.location("a/b/1"))


# --------------------------------------------------------------------- what people type


PASTED = (
    f"as in postgresql://me:{LEFT}-{RIGHT}@host/db",
    f"https://host/rows?token={LEFT}{RIGHT}",
    b64encode(f"me:{LEFT}{RIGHT}".encode()).decode(),
)


@pytest.mark.parametrize("text", PASTED)
def test_text_that_a_person_types_is_stored_without_its_secret(
    trained_platform: Platform, text: str
) -> None:
    platform, version = trained_platform, "toy/animals@1"
    registry = platform.registry
    platform.promote("toy/animals", force=True, reason=text)
    platform.unalias("toy/animals", "champion", reason=text)
    registry.tags.set(version, "origin", text)
    registry.tags.add_note(version, text)
    assert "…" in registry.tags.get(version).tags["origin"]
    registry.keys.create(text)
    with pytest.raises(UsageError, match="target_modules") as caught:
        platform.train("toy/animals", target_modules=text)
    assert_hidden(everything(caught.value))
    platform.remove_version("toy/prices@1", text)
    for chain in ("events", "requests"):
        assert_hidden(json.dumps(list(registry.audit.export(chain)), default=str))
    registry.close()
    assert_hidden_in(platform.workspace.root)


@pytest.mark.parametrize("text", PASTED[:2])
def test_recipe_of_own_files_is_stored_without_a_secret(tmp_path: Path, text: str) -> None:
    data = {"file": "claims.csv", "label": "kind", "license": text}
    config = make_config({"name": "own/claims", "description": text, "data": data}, "It fails")
    assert_hidden(json.dumps(config.to_json()))
    assert_hidden(repr(config.recipe()))
