"""The program ``trunkline``: its commands, the global options, and options that nouns share."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import click

from trunkline import __version__
from trunkline.cli.command import Group, asks_for_json
from trunkline.cli.errors import exit_code_of
from trunkline.cli.output import print_error_json
from trunkline.errors import UsageError
from trunkline.redaction import redact_logs, remember_arguments
from trunkline.refs import BASE, Ref, shown

if TYPE_CHECKING:
    from trunkline.api import Platform
    from trunkline.inference.settings import EngineSettings
    from trunkline.registry.records import VersionRecord
    from trunkline.resolution import ResolvedModel

COMMANDS = {
    "plugins": "trunkline.cli.plugins:plugins",
    "base": "trunkline.cli.base:base",
    "datasets": "trunkline.cli.datasets:datasets",
    "recipes": "trunkline.cli.recipes:recipes",
    "train": "trunkline.cli.train:train",
    "eval": "trunkline.cli.eval:evaluate",
    "tune": "trunkline.cli.tune:tune",
    "predict": "trunkline.cli.predict:predict",
    "explain": "trunkline.cli.explain:explain",
    "generate": "trunkline.cli.predict:generate",
    "chat": "trunkline.cli.chat:chat",
    "serve": "trunkline.cli.serve:serve",
    "console": "trunkline.cli.console:console",
    "ps": "trunkline.cli.ps:ps",
    "adapters": "trunkline.cli.adapters:adapters",
    "runs": "trunkline.cli.runs:runs",
    "keys": "trunkline.cli.keys:keys",
    "requests": "trunkline.cli.requests:requests",
    "lineage": "trunkline.cli.lineage:lineage",
    "tag": "trunkline.cli.tags:tag",
    "note": "trunkline.cli.tags:note_",
    "audit": "trunkline.cli.audit:audit",
    "gc": "trunkline.cli.adapter_files:gc",
    "db": "trunkline.cli.db:db",
    "doctor": "trunkline.cli.doctor:doctor",
}

_RUN = re.compile(r"(?:run/)?([1-9][0-9]{0,8})", re.ASCII)


@dataclass
class GlobalOptions:
    """The options before the command; commands receive them through :data:`pass_options`."""

    workspace: str | None = None
    base: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    no_plugins: bool = False
    block: tuple[str, ...] = ()
    strict: bool = False
    debug: bool = False
    engine: EngineSettings | None = None
    image_base: str | None = None

    @cached_property
    def platform(self) -> Platform:
        """The platform; nothing is loaded yet."""
        from trunkline.api import open
        from trunkline.plugins import unfinished_imports

        for marker in unfinished_imports():
            click.echo(
                f"Warning: an earlier command ended while it imported the plugin "
                f"{marker.domain!r} of {marker.distribution} {marker.version}. "
                f"`trunkline --no-plugin {marker.domain} …` leaves it out; "
                f"`trunkline plugins check {marker.domain}` shows how it ends.",
                err=True,
            )
        extra = {} if self.engine is None else {"engine": self.engine}
        return open(
            self.workspace,
            base=self.base,
            device=self.device,
            dtype=self.dtype,
            no_plugins=self.no_plugins,
            block=self.block,
            strict=self.strict,
            image_base=self.image_base,
            **extra,
        )

    @cached_property
    def with_plugins(self) -> Platform:
        """The platform with its plugins loaded; warns once of each that failed or has notes."""
        plugins = self.platform.catalog.plugins
        loaded = {plugin.domain for plugin in plugins if plugin.status == "loaded"}
        failed = [plugin for plugin in plugins if plugin.status == "failed"]
        texts = [
            f"the plugin {one.domain!r} of {one.distribution} is ignored: {one.reason}."
            if one.domain in loaded
            else f"the plugin {one.domain!r} failed to load and is ignored; "
            f"`trunkline plugins show {one.domain}` shows the error."
            for one in failed
        ]
        texts += [f"{one.domain}: {text}." for one in plugins for text in one.notes]
        for text in dict.fromkeys(texts):
            click.echo(f"Warning: {text}", err=True)
        return self.platform

    def resolve(self, ref: str) -> ResolvedModel:
        """The model that ``ref`` selects, printed on stderr with the reason."""
        model = self.platform.resolve(ref)
        reason = f" ({model.selected_by})" if model.selected_by in ("champion", "newest") else ""
        click.echo(f"{model.name}{reason}", err=True)
        return model

    def version(self, ref: str) -> VersionRecord:
        """The version that ``ref`` selects, printed as :meth:`resolve` does.

        Raises:
            UsageError: ``ref`` is malformed or the bare base.
        """
        if ref == BASE:
            Ref.parse(ref)
        return self.resolve(ref).version


def run_number(text: str) -> int:
    """The number of a run, written ``3`` or ``run/3``.

    Raises:
        UsageError: the text is neither.
    """
    match = _RUN.fullmatch(text)
    if match is None:
        raise UsageError(
            f"{shown(text)} is not the number of a run.",
            "Write for example 3 or run/3; `trunkline runs list` shows them.",
        )
    return int(match[1])


pass_options = click.make_pass_decorator(GlobalOptions, ensure=True)

url_option = click.option(
    "--url",
    metavar="URL",
    help="Send the request to a running server (`trunkline serve`); this process loads no base.",
)

limit_option = click.option(
    "--limit",
    type=click.IntRange(min=1, max=10_000),
    default=100,
    show_default=True,
    metavar="N",
    help="List at most N.",
)


class Program(Group):
    """The root group: reports every exception in two lines on stderr, with an exit code."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        options = GlobalOptions()
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")

        redact_logs()
        remember_arguments(sys.argv[1:] if args is None else args)

        def run() -> Any:
            try:
                return super(Program, self).main(
                    args,
                    prog_name,
                    complete_var,
                    standalone_mode=False,
                    windows_expand_args=windows_expand_args,
                    obj=options,
                    **extra,
                )
            except click.UsageError as error:  # a command reports its own
                is_group = error.ctx is not None and isinstance(error.ctx.command, click.Group)
                if is_group and asks_for_json(sys.argv[1:] if args is None else args):
                    print_error_json(error)
                raise

        if not standalone_mode:
            return run()
        sys.exit(exit_code_of(run, debug=lambda: options.debug))


@click.group(
    "trunkline",
    cls=Program,
    lazy=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Adapters are named domain/name, domain/name@3 or domain/name@champion; `base` is "
    "the bare base. `ls` is short for `list`. Results go to stdout, everything else to stderr.",
)
@click.option(
    "--workspace",
    metavar="DIR",
    help="Folder with registry.db and adapters/.  "
    "[default: $TRUNKLINE_WORKSPACE, else the current folder]",
)
@click.option(
    "--base",
    metavar="NAME",
    envvar="TRUNKLINE_BASE",
    show_envvar=True,
    help="The base: a name, hf:<repo>[@revision] or a folder.",
)
@click.option(
    "--image-base",
    metavar="NAME",
    envvar="TRUNKLINE_IMAGE_BASE",
    show_envvar=True,
    help="The base for pictures, if --base names one for text.  [default: efficientnet-lite0]",
)
@click.option(
    "--device",
    metavar="NAME",
    default="auto",
    envvar="TRUNKLINE_DEVICE",
    show_envvar=True,
    help="auto, cpu, cuda, cuda:1 or mps.",
)
@click.option(
    "--dtype",
    "--base-dtype",
    "dtype",
    metavar="NAME",
    default="auto",
    envvar="TRUNKLINE_DTYPE",
    show_envvar=True,
    help="Data type of the base: auto, fp32, bf16, fp16, int8 or nf4.",
)
@click.option("--no-plugins", is_flag=True, help="Load no plugins.")
@click.option(
    "--no-plugin",
    "block",
    metavar="NAME",
    multiple=True,
    help="Don't load this plugin; may be repeated.",
)
@click.option("--strict", is_flag=True, help="Fail if a plugin can't be loaded.")
@click.option("--debug", is_flag=True, help="Show tracebacks and warnings.")
@click.version_option(__version__, message="%(prog)s %(version)s")
@pass_options
def trunkline(options: GlobalOptions, /, **values: Any) -> None:
    """Train LoRA adapters on one foundation model, evaluate them, and serve them together.

    \b
    To get started:
      trunkline base pull
      trunkline recipes list
      trunkline train RECIPE --dry-run
      trunkline train RECIPE
      trunkline predict RECIPE "a text"
    """
    for name, value in values.items():
        setattr(options, name, value)
    if not options.debug and not sys.warnoptions:
        warnings.simplefilter("ignore")
