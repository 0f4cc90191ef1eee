"""``trunkline plugins``: list, show, check, install and uninstall plugins."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import click

from trunkline.cli.command import Example, Group
from trunkline.cli.output import (
    counted,
    heading,
    json_option,
    note,
    print_fields,
    print_json,
    print_table,
)
from trunkline.cli.root import GlobalOptions, pass_options
from trunkline.errors import PluginError, RefusedError

if TYPE_CHECKING:
    from trunkline.plugins import PluginInfo

_SINGULAR = {
    "datasets": "dataset",
    "recipes": "recipe",
    "losses": "loss",
    "metrics": "metric",
    "transforms": "transform",
    "baselines": "baseline",
    "tasks": "task",
}


@click.group(cls=Group, short_help="Domain plugins: list, check, install.")
def plugins() -> None:
    """Domain plugins: installed packages with datasets, recipes, losses and metrics."""


@plugins.command("list", example="trunkline plugins list")
@json_option
@pass_options
def list_(options: GlobalOptions, as_json: bool) -> None:
    """List the installed plugins and what each contributes."""
    infos = options.platform.catalog.plugins
    if as_json:
        print_json(infos)
        return
    if len(infos) == 1:  # the plugin core
        note("No plugins are installed: `trunkline plugins install TARGET`.")
    print_table(
        ["plugin", "distribution", "version", "status", "contributes"],
        [
            (one.domain, one.distribution, one.version, one.status, _contributions(one))
            for one in infos
        ],
        fold=("contributes",),
    )


@plugins.command("show", example="trunkline plugins show retail")
@click.argument("name")
@json_option
@pass_options
def show(options: GlobalOptions, name: str, as_json: bool) -> None:
    """Show a plugin's contributions, or why it failed to load."""
    plugin = options.platform.catalog.plugin(name)
    if as_json:
        print_json(plugin)
        return
    _print_plugin(plugin)
    if plugin.traceback:
        heading("Traceback")
        click.echo(plugin.traceback.rstrip())


@plugins.command(
    "install", example=Example("trunkline plugins install ./trunkline-law", "writes", "network")
)
@click.argument("target")
@click.option("--editable", "-e", is_flag=True, help="Link the folder instead of copying it.")
@click.option("--upgrade", "-U", is_flag=True, help="Install a newer version if there is one.")
@json_option
def install(target: str, editable: bool, upgrade: bool, as_json: bool) -> None:
    """Install a plugin with pip, from a name, a folder, a wheel or a URL."""
    from trunkline.plugins import install as install_plugin

    installed = install_plugin(target, editable=editable, upgrade=upgrade, on_line=note)
    if as_json:
        print_json(installed)
    else:
        for plugin in installed:
            _print_plugin(plugin)
    for plugin in installed:
        if plugin.status == "failed":
            raise PluginError(
                f"{plugin.distribution} is installed, but the plugin {plugin.domain!r} failed to "
                f"load: {plugin.reason}.",
                f"`trunkline plugins show {plugin.domain}` shows the traceback.",
            )


@plugins.command("uninstall", example=Example("trunkline plugins uninstall law --yes", "writes"))
@click.argument("name")
@click.option("--yes", "-y", is_flag=True, help="Don't ask for confirmation.")
def uninstall(name: str, yes: bool) -> None:
    """Uninstall a plugin with pip; the adapters trained with it stay."""
    from trunkline.plugins import removable
    from trunkline.plugins import uninstall as uninstall_plugin

    if not yes:
        plugin = removable(name)
        try:
            confirmed = click.confirm(
                f"Uninstall {plugin.distribution} {plugin.version}?", err=True
            )
        except click.Abort:
            confirmed = False
        if not confirmed:
            raise RefusedError("Nothing was removed.", "Answer y, or add --yes.")
    removed = uninstall_plugin(name, on_line=note)
    click.echo(f"Removed {removed.distribution} {removed.version}, the plugin {removed.domain!r}.")


@plugins.command("check", example="trunkline plugins check retail")
@click.argument("target", metavar="NAME_OR_PATH")
@json_option
@pass_options
def check(options: GlobalOptions, target: str, as_json: bool) -> None:
    """Load one plugin by itself, read all its rows, and report every rule that it breaks.

    Its data is prepared for each recipe as a training would. The lengths of texts are counted with
    the tokenizer of --base, if that base is on this machine.
    """
    from trunkline.data.findings import Examiner
    from trunkline.plugins import check as check_plugin

    findings = check_plugin(target, examine=Examiner(_tokenizer(options)))
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


def _tokenizer(options: GlobalOptions) -> Callable[[], tuple[Any, int] | None]:
    """Loads the base's tokenizer once, when it is called: importing it first would hide imports."""

    @cache
    def load() -> tuple[Any, int] | None:
        from trunkline.bases import DEFAULT_BASE, local_tokenizer

        name = options.base or DEFAULT_BASE
        if (known := local_tokenizer(name)) is None:
            note(
                f"The lengths of texts were not checked: the base {name!r} is not on this machine."
            )
        return known

    return load


def _contributions(plugin: PluginInfo) -> str:
    if plugin.reason:
        return plugin.reason
    parts = [
        f"{count} {_SINGULAR.get(kind, kind) if count == 1 else kind}"
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
