"""``trunkline plugins``: what is installed, what it brings, and bringing it in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from trunkline.cli.command import Example, Group
from trunkline.cli.options import Globals, with_globals
from trunkline.cli.output import (
    counted,
    heading,
    json_option,
    note,
    print_fields,
    print_json,
    print_table,
)
from trunkline.errors import PluginError, RefusedError

if TYPE_CHECKING:
    from trunkline.plugins import PluginInfo

_ONE = {
    "datasets": "dataset",
    "recipes": "recipe",
    "losses": "loss",
    "metrics": "metric",
    "transforms": "transform",
    "baselines": "baseline",
    "tasks": "task",
}


@click.group(cls=Group, short_help="What is installed, and bringing it in.")
def plugins() -> None:
    """Domain plugins: installed packages that bring data sets, recipes, losses and metrics."""


@plugins.command(
    "list",
    example="trunkline plugins list",
)
@json_option
@with_globals
def list_(said: Globals, as_json: bool) -> None:
    """List the installed plugins and what each contributes."""
    found = said.platform.catalog.plugins
    if as_json:
        print_json(found)
        return
    if len(found) == 1:
        note("No plugin is installed: `trunkline plugins install TARGET`.")
    print_table(
        ["plugin", "distribution", "version", "status", "contributes"],
        [
            (one.domain, one.distribution, one.version, one.status, _contributes(one))
            for one in found
        ],
        fold=("contributes",),
    )


@plugins.command(
    "show",
    example="trunkline plugins show retail",
)
@click.argument("name")
@json_option
@with_globals
def show(said: Globals, name: str, as_json: bool) -> None:
    """Show one plugin: its contributions, or why it was set aside."""
    plugin = said.platform.catalog.plugin(name)
    if as_json:
        print_json(plugin)
        return
    _print_plugin(plugin)
    if plugin.traceback:
        heading("Traceback")
        click.echo(plugin.traceback.rstrip())


@plugins.command(
    "install",
    example=Example("trunkline plugins install ./toys", "writes", "network"),
)
@click.argument("target")
@click.option("--editable", "-e", is_flag=True, help="Link the folder instead of copying it.")
@click.option("--upgrade", "-U", is_flag=True, help="Take a newer version if there is one.")
@json_option
def install(target: str, editable: bool, upgrade: bool, as_json: bool) -> None:
    """Install a plugin with pip, from a name, a folder, a wheel or a URL."""
    from trunkline.plugins import install as install_plugin

    brought = install_plugin(target, editable=editable, upgrade=upgrade, on_line=note)
    if as_json:
        print_json(brought)
    else:
        for plugin in brought:
            _print_plugin(plugin)
    for plugin in brought:
        if plugin.status == "failed":
            raise PluginError(
                f"{plugin.distribution} is installed, but the plugin {plugin.domain!r} is set "
                f"aside: {plugin.reason}.",
                f"`trunkline plugins show {plugin.domain}` shows the traceback.",
            )


@plugins.command(
    "uninstall",
    example=Example("trunkline plugins uninstall toy --yes", "writes"),
)
@click.argument("name")
@click.option("--yes", "-y", is_flag=True, help="Don't ask.")
def uninstall(name: str, yes: bool) -> None:
    """Take a plugin out of this environment with pip; adapters that it made stay."""
    from trunkline.plugins import removable
    from trunkline.plugins import uninstall as uninstall_plugin

    if not yes:
        found = removable(name)
        try:
            agreed = click.confirm(f"Uninstall {found.distribution} {found.version}?", err=True)
        except click.Abort:
            agreed = False
        if not agreed:
            raise RefusedError("Nothing was removed.", "Answer y, or add --yes.")
    plugin = uninstall_plugin(name, on_line=note)
    click.echo(f"Removed {plugin.distribution} {plugin.version}, the plugin {plugin.domain!r}.")


@plugins.command(
    "check",
    example="trunkline plugins check retail",
)
@click.argument("target", metavar="NAME_OR_PATH")
@json_option
def check(target: str, as_json: bool) -> None:
    """Load one plugin alone, read all its rows, and say which rules it breaks."""
    from trunkline.plugins import check as check_plugin

    findings = check_plugin(target)
    if as_json:
        print_json(findings)
    elif findings:
        print_table(
            ["level", "subject", "message"],
            [(one.level, one.subject, one.message) for one in findings],
            fold=("message",),
        )
    else:
        click.echo(f"{target}: no findings")
    errors = sum(finding.level == "error" for finding in findings)
    if errors:
        raise PluginError(f"{target} breaks {counted(errors, 'rule')}.", "See docs/hooks.md.")


def _contributes(plugin: PluginInfo) -> str:
    if plugin.reason:
        return plugin.reason
    parts = [
        f"{count} {_ONE[kind] if count == 1 else kind}"
        for kind, count in plugin.counts.items()
        if count
    ]
    return ", ".join(parts) or "nothing"


def _print_plugin(plugin: PluginInfo) -> None:
    print_fields(
        [
            ("plugin", plugin.domain),
            ("distribution", f"{plugin.distribution} {plugin.version}"),
            ("module", plugin.module),
            ("contract", plugin.api),
            ("status", plugin.status),
            ("reason", plugin.reason),
            *((kind, ", ".join(getattr(plugin, kind)) or None) for kind in plugin.counts),
        ]
    )
