"""``trunkline plugins``: list, show, check, install and uninstall plugins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

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
    without_controls,
)
from trunkline.cli.progress import working
from trunkline.cli.root import GlobalOptions, pass_options
from trunkline.errors import PluginError, RefusedError, UsageError

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
    for plugin in infos:
        for text in (*plugin.notes, *plugin.restrictions):
            note(f"{plugin.domain}: {text}")
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
        click.echo(without_controls(plugin.traceback.rstrip()))


@plugins.command(
    "install", example=Example("trunkline plugins install ./trunkline-law", "writes", "network")
)
@click.argument("target")
@click.option("--editable", "-e", is_flag=True, help="Link the folder instead of copying it.")
@click.option("--upgrade", "-U", is_flag=True, help="Install a newer version if there is one.")
@json_option
@pass_options
def install(
    options: GlobalOptions, target: str, editable: bool, upgrade: bool, as_json: bool
) -> None:
    """Install a plugin with pip, from a name, a folder, a wheel or a URL."""
    from trunkline.plugins import install as install_plugin

    installed = install_plugin(
        target, editable=editable, upgrade=upgrade, owners=_owners(options), on_line=note
    )
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
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=300,
    show_default=True,
    metavar="SECONDS",
    help="Stop if a step takes longer: importing the plugin, reading a dataset and so on.",
)
@json_option
@pass_options
def check(options: GlobalOptions, target: str, timeout: float, as_json: bool) -> None:
    """Try one plugin, before it is trained with, and report every rule that it breaks.

    The plugin is imported in a process of its own. Its rows are read, cleaned and split; its
    transforms, losses, metrics and baselines are called as a training calls them. Lengths of texts
    are counted with the tokenizer of --base, if that base is on this machine. Nothing is trained.
    For a folder, the wheel is built and checked.
    """
    from trunkline.bases import DEFAULT_BASE
    from trunkline.plugins import check as check_plugin

    with working() as listener:
        findings = check_plugin(
            target,
            owners=_owners(options),
            base=options.base or DEFAULT_BASE,
            timeout=timeout,
            on_stage=listener.stage,
        )
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


def _owners(options: GlobalOptions) -> Mapping[str, str]:
    """Which distribution a domain belongs to; nothing outside a workspace."""
    from trunkline.workspace import Workspace

    try:
        workspace = Workspace.locate(options.workspace)
    except UsageError:
        if options.workspace is not None:
            raise
        return {}
    return workspace.configuration.plugins.owners


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
            ("notes", "; ".join(plugin.notes) or None),
            ("restrictions", " ".join(plugin.restrictions) or None),
            *((kind, ", ".join(getattr(plugin, kind)) or None) for kind in plugin.counts),
        ]
    )
