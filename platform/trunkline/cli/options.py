"""The global options, and the platform that they open.

Owns: what stands before the command on the command line, and words that several commands take.
Must not know: what they do with them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import click

from trunkline.errors import UsageError
from trunkline.refs import shown

if TYPE_CHECKING:
    from trunkline.api import Platform
    from trunkline.inference.settings import EngineSettings
    from trunkline.registry.records import VersionRecord

_RUN = re.compile(r"(?:run/)?([1-9][0-9]{0,8})", re.ASCII)


@dataclass
class Globals:
    """What was said before the command; every command receives it through :data:`with_globals`."""

    workspace: str | None = None
    base: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    no_plugins: bool = False
    block: tuple[str, ...] = ()
    strict: bool = False
    debug: bool = False
    engine: EngineSettings | None = None

    @cached_property
    def platform(self) -> Platform:
        """The platform; nothing is loaded yet."""
        from trunkline.api import open

        sized = {} if self.engine is None else {"engine": self.engine}
        return open(
            self.workspace,
            base=self.base,
            device=self.device,
            dtype=self.dtype,
            no_plugins=self.no_plugins,
            block=self.block,
            strict=self.strict,
            **sized,
        )

    @cached_property
    def with_plugins(self) -> Platform:
        """The platform with its plugins loaded; tells once on stderr of those that failed."""
        failed = [
            plugin.domain for plugin in self.platform.catalog.plugins if plugin.status == "failed"
        ]
        for domain in dict.fromkeys(failed):
            click.echo(
                f"Warning: the plugin {domain!r} is set aside; "
                f"`trunkline plugins show {domain}` says why.",
                err=True,
            )
        return self.platform

    def version(self, ref: str) -> VersionRecord:
        """The one version that answers ``ref``, told on stderr with the reason."""
        from trunkline.refs import Ref

        version, how = self.platform.registry.versions.resolve(Ref.parse(ref))
        why = f" ({how})" if how in ("champion", "newest") else ""
        click.echo(f"{version.ref}{why}", err=True)
        return version


def run_number(text: str) -> int:
    """The number of a run that is written ``3`` or ``run/3``; both are printed.

    Raises:
        UsageError: it is neither.
    """
    found = _RUN.fullmatch(text)
    if found is None:
        raise UsageError(
            f"{shown(text)} is not the number of a run.",
            "Write for example 3 or run/3; `trunkline runs list` shows them.",
        )
    return int(found[1])


url_option = click.option(
    "--url",
    metavar="URL",
    help="Ask a running server (`trunkline serve`) instead of loading the base here.",
)

with_globals = click.make_pass_decorator(Globals, ensure=True)
