"""Which installation of a distribution is loaded, and which distribution owns a domain."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from trunkline.api import open as open_platform
from trunkline.errors import PluginError, UsageError
from trunkline.plugins import PluginInfo, load_plugins

AddPlugin = Callable[..., Path]


def plugins_of(domain: str, **options: object) -> list[PluginInfo]:
    catalog = load_plugins(**options)  # type: ignore[arg-type]
    return [plugin for plugin in catalog.plugins if plugin.domain == domain]


def set_installed(site: Path, distribution: str, time: int) -> None:
    """Set the time at which a distribution was installed."""
    (info,) = site.glob(f"{distribution.replace('-', '_')}-*.dist-info")
    (info / "RECORD").touch()
    os.utime(info / "RECORD", (time, time))


# --------------------------------------------------------------------- several installations


def leave_behind(site: Path, version: str, *, source: str = "fake_good-1.0.dist-info") -> Path:
    """Copy the metadata of a distribution as that of another version."""
    info = shutil.copytree(site / source, site / f"fake_good-{version}.dist-info")
    text = (info / "METADATA").read_text()
    (info / "METADATA").write_text(text.replace("Version: 1.0", f"Version: {version}"))
    return info


@pytest.mark.parametrize("version", ["0.9", "0.10", "0.0.1.dev3"])
def test_metadata_left_over_from_an_older_version_is_noted_and_not_used(
    version: str, add_plugin: AddPlugin, site: Path
) -> None:
    add_plugin("good")
    info = leave_behind(site, version)
    (plugin,) = plugins_of("good")
    assert (plugin.status, plugin.version) == ("loaded", "1.0")
    assert plugin.notes == (
        f"fake-good is installed in two versions: 1.0 is loaded, {version} is ignored; "
        f"remove {info}",
    )


def test_newest_of_two_versions_is_the_one_that_is_loaded(
    add_plugin: AddPlugin, site: Path
) -> None:
    add_plugin("good")
    leave_behind(site, "1.10")
    leave_behind(site, "1.9")
    (plugin,) = plugins_of("good")
    assert plugin.version == "1.10"
    assert len(plugin.notes) == 2


def test_metadata_without_a_name_is_read_from_its_folder(add_plugin: AddPlugin, site: Path) -> None:
    add_plugin("good")
    info = leave_behind(site, "0.9")
    (info / "METADATA").unlink()
    (plugin,) = plugins_of("good")
    assert (plugin.status, plugin.version) == ("loaded", "1.0")
    assert "0.9 is ignored" in plugin.notes[0]


def test_half_removed_distribution_is_not_a_plugin(add_plugin: AddPlugin, site: Path) -> None:
    add_plugin("good")
    leave_behind(site, "0.9").rename(site / "~ake_good-0.9.dist-info")
    (plugin,) = plugins_of("good")
    assert plugin.notes == ()
    os.rename(site / "fake_good-1.0.dist-info", site / "~ake_good-1.0.dist-info")
    assert plugins_of("good") == []


def second_folder(tmp_path: Path, site: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder before ``site`` on the path, with a copy of everything in it."""
    again = shutil.copytree(site, tmp_path / "again")
    monkeypatch.syspath_prepend(str(again))
    return again


def test_distribution_on_the_path_twice_is_loaded_once(
    add_plugin: AddPlugin, tmp_path: Path, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_plugin("good")
    again = second_folder(tmp_path, site, monkeypatch)
    metadata = again / "fake_good-1.0.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("fake-good", "Fake_Good"))
    (plugin,) = plugins_of("good")
    sys.modules.pop("module_of_fake_good", None)
    assert (plugin.status, plugin.notes) == ("loaded", ())


def test_version_of_the_first_folder_is_the_one_that_python_imports(
    add_plugin: AddPlugin, tmp_path: Path, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_plugin("good")
    again = second_folder(tmp_path, site, monkeypatch)
    metadata = again / "fake_good-1.0.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("1.0", "0.5"))
    (plugin,) = plugins_of("good")
    module = sys.modules.pop("module_of_fake_good")
    assert plugin.version == "0.5"
    assert str(module.__file__).startswith(str(again))
    assert "0.5 is loaded, 1.0 is ignored" in plugin.notes[0]


def test_domain_declared_twice_by_one_distribution_is_ambiguous(
    add_plugin: AddPlugin, site: Path
) -> None:
    add_plugin("good")
    points = site / "fake_good-1.0.dist-info" / "entry_points.txt"
    points.write_text("[trunkline]\ngood = module_of_fake_good\ngood = os\n")
    (plugin,) = plugins_of("good")
    assert plugin.status == "failed"
    assert "declares 'good' twice, as module_of_fake_good and as os" in (plugin.reason or "")


@pytest.mark.parametrize("value", ["", "1+2", "a b", ":x"])
def test_entry_point_that_names_no_module_is_a_failure(
    value: str, add_plugin: AddPlugin, site: Path
) -> None:
    add_plugin("good")
    points = site / "fake_good-1.0.dist-info" / "entry_points.txt"
    points.write_text(f"[trunkline]\ngood = {value}\n")
    (plugin,) = plugins_of("good")
    assert plugin.status == "failed"
    assert "is no module" in (plugin.reason or "")


def test_second_distribution_of_the_same_name_and_version_is_named(
    add_plugin: AddPlugin, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_plugin("one", distribution="my-plugin")
    other = shutil.copytree(site, tmp_path / "other")
    points = other / "my_plugin-1.0.dist-info" / "entry_points.txt"
    points.write_text("[trunkline]\ntwo = another_module\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(other)])
    (one,) = plugins_of("one")
    assert plugins_of("two") == []
    (note,) = one.notes
    assert "two distributions are named my-plugin 1.0" in note
    assert f"that of {points.parent} is ignored" in note


def test_module_that_two_distributions_have_is_named_in_a_note(
    add_plugin: AddPlugin, site: Path
) -> None:
    for domain in ("one", "two"):
        add_plugin(domain, distribution=f"fake-{domain}")
    points = site / "fake_two-1.0.dist-info" / "entry_points.txt"
    points.write_text("[trunkline]\ntwo = module_of_fake_one\n")
    (one,), (two,) = plugins_of("one"), plugins_of("two")
    assert (one.status, two.status) == ("loaded", "failed")
    assert "its module module_of_fake_one is also that of fake-one 1.0" in two.notes[0]
    assert "its module module_of_fake_one is also that of fake-two 1.0" in one.notes[0]


# -------------------------------------------------------------------------- claims on a domain


@pytest.fixture
def rivals(add_plugin: AddPlugin, site: Path) -> dict[str, Path]:
    """Two distributions with the domain ``shared``; ``b-owner`` was installed first."""
    markers = {name: add_plugin("shared", distribution=name) for name in ("a-rival", "b-owner")}
    set_installed(site, "a-rival", 2_000_000_000)
    set_installed(site, "b-owner", 1_000_000_000)
    return markers


def test_distribution_that_was_installed_first_keeps_its_domain(rivals: dict[str, Path]) -> None:
    owner, rival = plugins_of("shared")
    assert (owner.distribution, owner.status) == ("b-owner", "loaded")
    assert (rival.distribution, rival.status) == ("a-rival", "failed")
    assert "belongs to b-owner 1.0, which was installed first" in (rival.reason or "")
    assert rivals["b-owner"].exists()
    assert not rivals["a-rival"].exists()


def test_names_of_a_domain_are_those_of_its_owner(rivals: dict[str, Path]) -> None:
    catalog = load_plugins()
    assert catalog.plugin("shared").distribution == "b-owner"
    assert catalog.plugin("a-rival").status == "failed"
    assert catalog.recipe("shared/letters").name == "shared/letters"
    with pytest.raises(UsageError, match="There is no recipe 'shared/other'"):
        catalog.recipe("shared/other")


@pytest.mark.parametrize("trusted", ["a-rival", "A_Rival"])
def test_distribution_that_the_workspace_trusts_owns_the_domain(
    trusted: str, rivals: dict[str, Path], tmp_path: Path
) -> None:
    workspace = tmp_path / "trusting"
    workspace.mkdir()
    (workspace / "trunkline.toml").write_text(f'[plugins.owners]\nshared = "{trusted}"\n')
    catalog = open_platform(workspace).catalog
    assert catalog.plugin("shared").distribution == "a-rival"
    assert catalog.plugin("b-owner").reason == (
        f"trunkline.toml gives the domain 'shared' to {trusted}"
    )
    assert not rivals["b-owner"].exists()


def test_only_claimant_is_set_aside_if_another_is_trusted(add_plugin: AddPlugin) -> None:
    marker = add_plugin("shared", distribution="a-rival")
    (plugin,) = plugins_of("shared", owners={"shared": "b-owner"})
    assert plugin.status == "failed"
    assert not marker.exists()


def test_owner_that_fails_is_not_replaced_by_a_rival(add_plugin: AddPlugin, site: Path) -> None:
    add_plugin("shared", "raise ValueError('no')", distribution="b-owner")
    marker = add_plugin("shared", distribution="a-rival")
    set_installed(site, "a-rival", 2_000_000_000)
    owner, rival = plugins_of("shared")
    assert (owner.distribution, owner.status, rival.status) == ("b-owner", "failed", "failed")
    assert not marker.exists()


def test_of_two_installed_at_once_the_first_by_name_owns_the_domain(
    add_plugin: AddPlugin, site: Path
) -> None:
    for name in ("z-one", "A-two", "m-three"):
        add_plugin("shared", distribution=name)
        set_installed(site, name, 1_500_000_000)
    owner, *others = plugins_of("shared")
    assert owner.distribution == "A-two"
    assert {other.status for other in others} == {"failed"}


def test_strict_refuses_a_second_claim(rivals: dict[str, Path]) -> None:
    with pytest.raises(PluginError, match="belongs to b-owner"):
        load_plugins(strict=True)


@pytest.mark.parametrize("value", ['"b-owner"', "{ shared = 1 }", '{ shared = " " }', "[]"])
def test_owners_that_are_no_names_are_refused(value: str, tmp_path: Path) -> None:
    (tmp_path / "trunkline.toml").write_text(f"[plugins]\nowners = {value}\n")
    with pytest.raises(UsageError, match=r"trunkline\.toml: \[plugins\] owners"):
        open_platform(tmp_path).catalog  # noqa: B018
