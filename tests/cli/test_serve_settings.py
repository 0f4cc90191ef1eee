"""Options of ``serve`` come from the command line, variables or trunkline.toml, in this order."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from cli_runner import invoke
from trunkline.cli.root import GlobalOptions, trunkline
from trunkline.cli.serve import read_settings, serve
from trunkline.errors import TrunklineError, UsageError
from trunkline.inference.settings import EngineSettings
from trunkline.serving.settings import ServerSettings
from trunkline.workspace import Workspace

EVERY = """
[serve]
host = "0.0.0.0"
port = 0
rows = 5
kv_mib = 100
adapter_mib = 200
slots = 3
chunk_tokens = 64
queue = 7
no_prefix_cache = true
no_request_log = true
open_metrics = true
cors_origins = ["https://a.example.org", "https://b.example.org"]

[serve.limits]
request_timeout = 60
max_new_tokens = 99
"""


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for option in serve.params:
        monkeypatch.delenv(f"TRUNKLINE_SERVE_{option.name}".upper(), raising=False)


def settings(folder: Path, text: str = "") -> tuple[EngineSettings, ServerSettings]:
    (folder / "trunkline.toml").write_text(text)
    return read_settings(click.Context(trunkline, obj=GlobalOptions(workspace=str(folder))))


def test_without_a_file_and_variables_each_setting_has_its_default(tmp_path: Path) -> None:
    assert settings(tmp_path) == (EngineSettings(), ServerSettings())


def test_file_sets_everything(tmp_path: Path) -> None:
    engine, server = settings(tmp_path, EVERY)
    assert engine == EngineSettings(
        rows=5, kv_mib=100, adapter_mib=200, slots=3, chunk_tokens=64, queue=7, prefix_cache=False
    )
    assert server == ServerSettings(
        host="0.0.0.0", port=0, log_requests=False, open_metrics=True, request_timeout=60,
        max_new_tokens=99, cors_origins=("https://a.example.org", "https://b.example.org"),
    )  # fmt: skip


def test_variables_win_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("ROWS", "6"), ("NO_PREFIX_CACHE", "0"), ("OPEN_METRICS", "false"),
        ("CORS_ORIGINS", "https://c.example.org https://d.example.org"),
        ("LIMITS", "request_timeout=5 max_inputs=9"),
    ):  # fmt: skip
        monkeypatch.setenv(f"TRUNKLINE_SERVE_{name}", value)
    engine, server = settings(tmp_path, EVERY)
    assert (engine.rows, engine.kv_mib, engine.prefix_cache) == (6, 100, True)
    assert server.cors_origins == ("https://c.example.org", "https://d.example.org")
    assert (server.request_timeout, server.max_inputs, server.max_new_tokens) == (5, 9, None)
    assert not server.open_metrics


def test_each_option_has_a_key_in_the_file(tmp_path: Path) -> None:
    values = {"host": '"x"', "log_text": "true", "preload": '["a/b"]', "cors_origins": '["x"]'}
    for option in serve.params:
        value = values.get(str(option.name))
        if value is None:
            value = "true" if getattr(option, "is_flag", False) else "1"
        line = (
            "[serve.limits]\nport = 1\n" if option.name == "limits" else f"{option.name} = {value}"
        )
        (tmp_path / "trunkline.toml").write_text(f"[serve]\n{line}\n")
        assert option.name in Workspace(tmp_path).configuration.serve


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[serve]\nrow = 1\n", "unknown key 'row'"),
        ('[serve]\nrows = "1"\n', "wrong type"),
        ("[serve]\npreload = [1]\n", "list of texts"),
        ("[serve]\nrows = 0\n", "The setting rows in [serve] of trunkline.toml can't be used"),
        ("[serve]\nport = 70000\n", "The setting port in [serve]"),
        ("[serve.limits]\nrequest_timout = 1\n", "There is no limit 'request_timout'"),
        ("[serve]\nlog_text = true\nno_request_log = true\n", "can't be combined"),
    ],
)
def test_wrong_value_in_the_file_is_named(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(TrunklineError) as caught:
        settings(tmp_path, text)
    assert expected in caught.value.message


def test_wrong_variable_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUNKLINE_SERVE_ROWS", "many")
    with pytest.raises(UsageError, match="The variable TRUNKLINE_SERVE_ROWS can't be used"):
        settings(tmp_path)


def test_option_wins_over_a_wrong_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUNKLINE_SERVE_ROWS", "many")
    monkeypatch.setenv("TRUNKLINE_SERVE_HOST", "0.0.0.0")
    result = invoke("--workspace", str(tmp_path), "serve", "--rows", "2")
    assert result.exit_code == 2
    assert "can't listen on 0.0.0.0" in result.stderr


def test_help_needs_no_workspace(tmp_path: Path) -> None:
    result = invoke("--workspace", str(tmp_path / "gone"), "serve", "--help")
    assert result.exit_code == 0


def test_variables_set_the_options_before_the_verb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUNKLINE_BASE", "smollm2-135n")
    result = invoke("--workspace", str(tmp_path), "base", "show")
    assert result.exit_code == 2
    assert "There is no base 'smollm2-135n'" in result.stderr
