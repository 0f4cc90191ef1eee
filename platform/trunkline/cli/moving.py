"""``trunkline adapters export`` and ``sign``: a version that goes out, and the word for it.

Owns: their words. Must not know: what stands in an archive or a signature.
"""

from __future__ import annotations

import os
from pathlib import Path

import click

from trunkline.cli.command import Command, Example
from trunkline.cli.options import Globals, with_globals
from trunkline.cli.output import bytes_text, json_option, print_fields, print_json
from trunkline.cli.progress import working
from trunkline.errors import UsageError


@click.command(
    "export",
    cls=Command,
    example=Example("trunkline adapters export retail/department@1 department.tar", "writes"),
)
@click.argument("ref")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--overwrite", is_flag=True, help="Put it in the place of a file that is there.")
@json_option
@with_globals
def export(said: Globals, ref: str, file: Path, overwrite: bool, as_json: bool) -> None:
    """Write a version into a plain tar archive: artifact, lineage, card and signature.

    `trunkline adapters import FILE` reads it in another workspace. Compare the digest there with
    this one, brought on another way: `--digest` does it.
    """
    if str(file) in ("-", "."):
        raise UsageError(f"{str(file)!r} is no file for an archive.", "Name one, such as out.tar.")
    version = said.version(ref)
    with working() as listener:
        listener.stage(f"writing {file}")
        done = said.platform.export_adapter(str(version.ref), file, overwrite=overwrite)
    if as_json:
        told = {"file": done.file, "bytes": done.bytes, "files": done.names}
        told |= {"digest": done.digest, "signed_by": done.signed_by}
        print_json({"adapter": str(version.ref), **told})
        return
    print_fields(
        [
            ("archive", done.file),
            ("size", bytes_text(done.bytes)),
            ("files", ", ".join(done.names)),
            ("signed", f"by {done.signed_by}" if done.signed_by else "no"),
            ("digest", done.digest),
        ]
    )


@click.command(
    "sign",
    cls=Command,
    example=Example("trunkline adapters sign retail/department@1 --key release.pem", "writes"),
)
@click.argument("ref")
@click.option(
    "--key",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The private key: P-256, P-384 or P-521, in PEM.",
)
@click.option(
    "--password-from",
    metavar="VARIABLE",
    help="The environment variable that holds the key's password.",
)
@json_option
@with_globals
def sign(said: Globals, ref: str, key: Path, password_from: str | None, as_json: bool) -> None:
    """Sign a version's three identifying files with a key; verified against its digest first."""
    version = said.version(ref)
    password = None if password_from is None else _password(password_from)
    fingerprint = said.platform.sign_adapter(str(version.ref), key, password=password)
    if as_json:
        told = {"digest": version.digest, "signed_by": fingerprint}
        print_json({"adapter": str(version.ref), **told})
        return
    print_fields([("digest", version.digest), ("signed by", fingerprint)])


def _password(variable: str) -> str:
    value = os.environ.get(variable)
    if not value:
        raise UsageError(
            f"The environment variable {variable!r} is not set.",
            f"Put the key's password into it, for example with: read -rs {variable}; "
            f"export {variable}",
        )
    return value
