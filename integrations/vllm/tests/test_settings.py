"""Settings, the command, and what is remembered of the registry."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from trunkline.api import Platform
from trunkline.errors import NotFoundError, RegistryError, UsageError
from trunkline_vllm import probes
from trunkline_vllm.command import main
from trunkline_vllm.probes import PROBED, record_probes, stored_probes
from trunkline_vllm.settings import Settings
from trunkline_vllm.versions import Remembered


def test_settings_are_read_from_variables(tmp_path: Path) -> None:
    settings = Settings.read(
        {
            "TRUNKLINE_VLLM_CACHE": str(tmp_path),
            "TRUNKLINE_VLLM_MAX_BYTES": "5000",
            "TRUNKLINE_VLLM_LOAD_SECONDS": "2.5",
            "TRUNKLINE_VLLM_PROBE": "",
        }
    )
    assert (settings.cache, settings.max_bytes, settings.load_seconds) == (tmp_path, 5000, 2.5)
    assert settings.probe == "required"


@pytest.mark.parametrize(
    ("name", "value"), [("MAX_BYTES", "1"), ("LOAD_SECONDS", "soon"), ("PROBE", "never")]
)
def test_invalid_setting_is_named(name: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"TRUNKLINE_VLLM_{name}") as caught:
        Settings.read({f"TRUNKLINE_VLLM_{name}": value})
    assert caught.value.hint


def test_registry_that_fails_is_left_alone_for_a_while() -> None:
    now, calls = [0.0], []

    def fail() -> str:
        calls.append(now[0])
        raise RegistryError("away")

    remembered: Remembered[str] = Remembered(10, lambda: now[0])
    assert remembered.call("a", lambda: "answer") == "answer"
    for now[0] in (1.0, 2.0, 3.5):
        assert remembered.call("a", fail) == "answer"
    assert calls == [1.0, 3.5]
    now[0] = 11.0
    with pytest.raises(RegistryError):
        remembered.call("a", fail)


def test_what_the_registry_denies_is_forgotten() -> None:
    def deny() -> str:
        raise NotFoundError("removed")

    def fail() -> str:
        raise RegistryError("away")

    remembered: Remembered[str] = Remembered(10)
    remembered.call("a", lambda: "answer")
    for query, error in ((deny, NotFoundError), (fail, RegistryError)):
        with pytest.raises(error):
            remembered.call("a", query)


def test_command_stores_probes(platform: Platform, tiny: Path) -> None:
    workspace = str(platform.workspace.root)
    arguments = ["probe", "toy/unproved", "--workspace", workspace, "--base", str(tiny)]
    result = CliRunner().invoke(main, [*arguments, "--count", "2"])
    assert result.output == "toy/unproved: 2 probes stored.\n"
    version = platform.resolve("toy/unproved").version
    assert len(stored_probes(platform.registry, version)) == 2
    assert stored_probes(platform.registry, platform.resolve("toy/wide").version) == ()


def test_probes_are_test_rows_with_the_stored_answers(
    trained_platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "MARGIN", 0.0)  # a few steps on a tiny base decide little
    registry, version = trained_platform.registry, trained_platform.resolve("toy/plurals").version
    assert record_probes(trained_platform, "toy/plurals", 3) >= 1
    event = registry.events.list("toy/plurals", PROBED)[0]
    assert event.detail["source"] == "evaluation"
    stored = registry.evaluations.predictions(registry.evaluations.list(version=version.ref)[0].id)
    decode = trained_platform.engine.base.tokenizer.decode
    for probe in stored_probes(registry, version):
        assert any(one.prediction.startswith(decode(probe.expected).strip()) for one in stored)


def test_command_names_the_problem(platform: Platform, tiny: Path) -> None:
    workspace = str(platform.workspace.root)
    result = CliRunner().invoke(
        main, ["probe", "toy/animals", "--workspace", workspace, "--base", str(tiny)]
    )
    assert result.exit_code == 2
    assert "is for classification" in result.output
