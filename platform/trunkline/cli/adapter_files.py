"""``adapters export``, ``import`` and ``sign``, and ``trunkline gc``: the files of versions."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from trunkline.cli.command import Command, Example
from trunkline.cli.file_options import with_line_breaks
from trunkline.cli.output import (
    bytes_text,
    counted,
    json_option,
    note,
    plain,
    print_fields,
    print_json,
    print_table,
)
from trunkline.cli.progress import working
from trunkline.cli.root import GlobalOptions, pass_options
from trunkline.contracts import CLEAN_STEPS, TASKS
from trunkline.errors import NotFoundError, UsageError
from trunkline.redaction import redact_source, remember
from trunkline.refs import EXAMPLE, shown, valid_name

if TYPE_CHECKING:
    from trunkline.adapters.archive import ImportResult
    from trunkline.adapters.gc import Garbage
    from trunkline.adapters.peft_import import ImportedAdapter
    from trunkline.api import Platform
    from trunkline.training.export import ModelFormat

_FOLDER_OPTIONS = {
    "task": "--task",
    "labels": "--labels",
    "labels_file": "--labels-file",
    "template": "--template",
    "chat": "--chat",
    "system": "--system",
    "clean": "--clean",
    "max_new_tokens": "--max-new-tokens",
    "unit": "--unit",
}
"""Options that describe a folder; an archive contains these values."""

_ADAPTER_FILES = (".safetensors", ".json", ".bin", ".npz", ".gguf")
"""Endings of files that are found in an adapter's folder."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
"""The beginning of a URL; a path has one slash of the two."""

_OTHER_ARCHIVES = (".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z")
"""Endings of archives in which adapters are sent, but which are never unpacked."""


@click.command(
    "export",
    cls=Command,
    example=Example("trunkline adapters export retail/department@1 department.tar", "writes"),
)
@click.argument("ref")
@click.argument("target", type=click.Path(path_type=Path))
@click.option(
    "--format",
    type=click.Choice(("archive", "merged", "gguf-lora")),
    default="archive",
    show_default=True,
    help="archive: for another workspace; merged: a folder for transformers; gguf-lora: a file for "
    "llama.cpp.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing archive.")
@json_option
@pass_options
def export(
    options: GlobalOptions, ref: str, target: Path, format: str, overwrite: bool, as_json: bool
) -> None:
    """Write a version into an archive, or as a model for other programs.

    An archive is a plain tar file with artifact, lineage, card and signature, which `trunkline
    adapters import FILE` imports in another workspace. To check the transfer, send the digest
    separately and pass it to the import with --digest.

    A model is read back and must repeat the test predictions of the version's evaluation, or it is
    not written.
    """
    if str(target) in ("-", "."):
        raise UsageError(f"{str(target)!r} can't be a target.", "Name a file, such as out.tar.")
    if _URL.match(str(target)):
        raise UsageError(
            "The target is a URL, and an export is written to this machine.",
            "Name a path, and upload what was written.",
        )
    version = options.version(ref)
    if format != "archive":
        if overwrite:
            raise UsageError("--overwrite applies to archives.", "Name a new file or folder.")
        _export_model(options, str(version.ref), target, format, as_json)
        return
    with working() as listener:
        listener.stage(f"writing {target}")
        exported = options.platform.files.export_adapter(
            str(version.ref), target, overwrite=overwrite
        )
    if as_json:
        print_json(
            {
                "adapter": str(version.ref),
                "file": exported.file,
                "bytes": exported.bytes,
                "files": exported.names,
                "digest": exported.digest,
                "signed_by": exported.signed_by,
            }
        )
        return
    print_fields(
        [
            ("archive", exported.file),
            ("size", bytes_text(exported.bytes)),
            ("files", ", ".join(exported.names)),
            ("signed", f"by {exported.signed_by}" if exported.signed_by else "no"),
            ("digest", exported.digest),
        ]
    )


def _export_model(
    options: GlobalOptions, ref: str, target: Path, format: str, as_json: bool
) -> None:
    with working("rows") as listener:
        exported = options.with_plugins.files.export_model(
            ref, target, cast("ModelFormat", format), listener=listener
        )
    if as_json:
        print_json({**plain(exported), "adapter": ref, "version": exported.version.number})
        return
    largest = exported.largest_difference
    detail = f"; the largest difference is {largest:.1e}" if largest else ""
    ties = exported.near_ties
    detail += f"; {counted(ties, 'text')} with a near-tie" if ties else ""
    print_fields(
        [
            (exported.format, exported.path),
            ("size", bytes_text(exported.bytes)),
            ("proof", f"repeats {counted(exported.rows, 'stored prediction')}{detail}"),
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
    help="The environment variable with the key's password.",
)
@json_option
@pass_options
def sign(
    options: GlobalOptions, ref: str, key: Path, password_from: str | None, as_json: bool
) -> None:
    """Sign the three files that identify a version; they are checked against its digest first."""
    version = options.version(ref)
    password = None if password_from is None else _password(password_from)
    fingerprint = options.platform.files.sign_adapter(str(version.ref), key, password=password)
    if as_json:
        print_json(
            {"adapter": str(version.ref), "digest": version.digest, "signed_by": fingerprint}
        )
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
    remember(value)
    return value


# -------------------------------------------------------------------------------------- import


@click.command(
    "import",
    cls=Command,
    example=(
        Example(
            "trunkline adapters import ./away --name retail/imported --base smollm2-135m "
            '--template "Product: {text}"',
            "writes",
        ),
        Example("trunkline adapters import department.tar --name retail/copied", "writes"),
    ),
)
@click.argument("source")
@click.option("--name", metavar="DOMAIN/NAME", help="The name of the adapter to publish.")
@click.option("--base", metavar="NAME", help="The base that it was trained on.")
@click.option("--digest", metavar="SHA256", help="Archives: refuse a version with another digest.")
@click.option("--task", type=click.Choice(TASKS), help="The task.  [default: from its files]")
@click.option("--labels", metavar="A,B,C", help="The labels, in the order of the head's outputs.")
@click.option(
    "--labels-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The labels, one per line.",
)
@click.option(
    "--template",
    metavar="TEXT",
    help="The prompt, with {text} in it; \\n is a line break.  [default: {text}]",
)
@click.option("--chat", is_flag=True, help="Send the prompt as a user's chat message.")
@click.option(
    "--system", metavar="TEXT", help="With --chat: the system message; \\n is a line break."
)
@click.option("--clean", metavar="A,B", help=f"Cleaning steps: {', '.join(CLEAN_STEPS)}.")
@click.option("--max-new-tokens", type=int, metavar="N", help="Limit of a generated answer.")
@click.option("--unit", metavar="UNIT", help="Unit of a regression's number.")
@json_option
@pass_options
def import_(
    options: GlobalOptions,
    /,
    source: str,
    name: str | None,
    base: str | None,
    digest: str | None,
    as_json: bool,
    **details: Any,
) -> None:
    """Publish an adapter that PEFT saved, or a version from an archive.

    SOURCE is a folder, hf:<repo>[/subfolder][@revision] on the Hugging Face Hub, or an archive
    made by `trunkline adapters export`. It becomes the next version of --name.

    A folder needs adapter_config.json and adapter_model.safetensors; of its other files, only
    those of a tokenizer are read, to note where they differ from the base's. Adapters with
    features that can't be computed exactly are refused, with the reason.

    An archive contains its name, task and lineage. Of the options, only --name, --digest and
    --base apply to it, and none is required.
    """
    _check_import_name(name)
    is_hub = source.startswith("hf:")
    if not is_hub and Path(source).suffix in _ADAPTER_FILES and Path(source).is_file():
        raise UsageError(
            f"{source!r} is a file of an adapter, not its folder.",
            f"Name the folder: {Path(source).parent}",
        )
    if source.lower().endswith(_OTHER_ARCHIVES) and os.path.isfile(source):
        raise UsageError(
            f"{shown(source)} is not an archive that `trunkline adapters export` writes.",
            "If it contains the folder of an adapter, unpack it and import the folder.",
        )
    if not is_hub and _is_archive(source):
        for key, option in _FOLDER_OPTIONS.items():
            if details[key]:
                raise UsageError(
                    f"{option} applies to folders; an archive contains its own value.",
                    f"Leave out {option}.",
                )
        with working() as listener:
            listener.stage(f"checking {source}")
            version = options.platform.files.import_archive(source, name, digest=digest, base=base)
        _print_archive_import(version, as_json)
        return
    if not is_hub and not (source and os.path.exists(source)):
        raise NotFoundError(
            f"There is no file or folder {shown(redact_source(source))} to import.",
            f"Give a folder, an archive, or hf:<repo>[@revision].{_hub_hint(source)}",
        )
    if digest is not None:
        raise UsageError(
            f"--digest applies to archives, and {source!r} is not one.", "Leave out --digest."
        )
    if name is None:
        raise UsageError("An import needs a name.", "Pass --name DOMAIN/NAME.")
    if (base := base or options.base) is None:
        raise UsageError("An import needs the base.", "Pass --base, such as --base smollm2-135m.")
    with working() as listener:
        if is_hub:
            listener.stage(f"fetching {redact_source(source)} from the hub")
        imported = options.platform.files.import_adapter(
            source, name, base=base, **_import_options(details)
        )
    _print_import(imported, as_json)


def _check_import_name(name: str | None) -> None:
    """Check for exactly one slash; the parts are checked where they are used."""
    if name is None or name.count("/") == 1:
        return
    example = EXAMPLE.partition("@")[0]
    valid = "" if "/" in name else valid_name(name)
    raise UsageError(
        f"{shown(name)} is not the name of an adapter.",
        f"Write --name domain/name, for example --name {f'DOMAIN/{valid}' if valid else example}.",
    )


def _hub_hint(source: str) -> str:
    """What to write for a repository that was named as on the hub's pages; else empty."""
    path = source.removeprefix("https://").removeprefix("huggingface.co/")
    page = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:/tree/([\w.-]+)(/[\w./-]+)?)?/?", path, re.ASCII)
    if page is None or source.startswith((".", "/")):
        return ""
    repo, revision, folder = page.groups()
    end = f"@{revision}" if revision and revision != "main" else ""
    return f" For a repository on the hub, write hf:{repo}{(folder or '').rstrip('/')}{end}."


def _is_archive(source: str) -> bool:
    """Whether the source is a file, or does not exist and is named like an archive."""
    try:
        path = Path(source)
        return path.is_file() or (path.suffix == ".tar" and not path.is_dir())
    except ValueError:  # a NUL character
        return False


def _import_options(details: dict[str, Any]) -> dict[str, Any]:
    from trunkline.contracts import CleanStep, Template

    prompt, system = details["template"], details["system"]
    if system is not None and not details["chat"]:
        raise UsageError("--system is for chat prompts only.", "Pass --chat too.")
    template = Template(
        prompt="{text}" if prompt is None else with_line_breaks(prompt),
        clean=tuple(cast(CleanStep, step) for step in _split(details["clean"])),
        chat=details["chat"],
        system=None if system is None else with_line_breaks(system),
    )
    return {
        "template": template,
        "labels": _labels(details["labels"], details["labels_file"]),
        **{key: details[key] for key in ("task", "max_new_tokens", "unit")},
    }


def _labels(names: str | None, file: Path | None) -> tuple[str, ...]:
    """The labels from either option."""
    if names is not None and file is not None:
        raise UsageError("--labels and --labels-file can't be combined.", "Use one of them.")
    from trunkline.data.readers import read_entries

    return _split(names) if file is None else read_entries(file)


def _split(names: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in names.split(",")) if names else ()


def _print_import(imported: ImportedAdapter, as_json: bool) -> None:
    for sentence in imported.notes:
        note(sentence)
    version = imported.version
    if as_json:
        print_json({"adapter": str(version.ref), **plain(version), "notes": imported.notes})
        return
    labels = ", ".join(imported.task.get("labels", ()))
    lora = imported.lora
    print_fields(
        [
            ("adapter", version.ref),
            ("task", f"{version.task}: {labels}" if labels else version.task),
            ("lora", f"r {lora.rank}, lora_alpha {lora.alpha:g}, {imported.modules} modules"),
            ("digest", version.digest),
            ("size", bytes_text(version.bytes)),
        ]
    )


def _print_archive_import(imported: ImportResult, as_json: bool) -> None:
    for sentence in imported.notes:
        note(sentence)
    version, run = imported.version, imported.provenance.run
    if as_json:
        print_json({"adapter": str(version.ref), **plain(version), "notes": imported.notes})
        return
    transfer = imported.provenance.transfers[-1]
    print_fields(
        [
            ("adapter", version.ref),
            ("exported as", transfer.origin),
            ("task", version.task),
            ("base", f"{version.base_name} ({version.base_digest})"),
            ("dataset", version.dataset),
            ("run", run and f"{run.number} of {run.recipe} (in its workspace {transfer.run})"),
            ("evaluations", len(imported.provenance.evaluations) or None),
            ("digest", version.digest),
            ("size", bytes_text(version.bytes)),
        ]
    )


# ------------------------------------------------------------------------------------------ gc


@click.command(
    "gc",
    cls=Command,
    short_help="Delete files left by interrupted work.",
    example="trunkline gc --dry-run",
)
@click.option("--dry-run", is_flag=True, help="Only list what would be deleted.")
@click.option(
    "--unknown",
    is_flag=True,
    help="Also delete complete versions that this registry does not know.",
)
@json_option
@pass_options
def gc(options: GlobalOptions, dry_run: bool, unknown: bool, as_json: bool) -> None:
    """Delete files and reservations left by interrupted publications, removals and trainings.

    Versions, files behind an alias, adapters loaded by a running server, and running publications
    are never deleted. A publication ends when its process on this host does; one from another
    host expires after an hour. Missing versions and versions of another registry are reported.
    """
    from trunkline.adapters.gc import find_garbage

    platform = options.platform
    items = find_garbage(platform.store, unknown=unknown)
    garbage = [item for item in items if item.deletable]
    reported = [item for item in items if not item.deletable]
    deleted = garbage if dry_run else _delete(platform, garbage)
    if as_json:
        print_json({"dry_run": dry_run, "deleted": deleted, "reported": reported})
        return
    if deleted:
        print_table(
            ["would delete" if dry_run else "deleted", "name", "size", "reason"],
            [(item.kind, item.name, bytes_text(item.bytes), item.reason) for item in deleted],
            right=("size",),
            fold=("name", "reason"),
        )
    for item in reported:
        note(f"{item.kind}: {item.name}: {item.reason}")
    size = bytes_text(sum(item.bytes for item in deleted))
    end = " Nothing was deleted." if dry_run else ""
    note(f"{counted(len(deleted), 'item')}, {size}.{end}" if deleted else "Nothing to delete.")


def _delete(platform: Platform, garbage: list[Garbage]) -> list[Garbage]:
    from trunkline.adapters.gc import collect

    deleted = []
    with working("items") as listener:
        if garbage:
            listener.stage("deleting")
        for item in collect(platform.store, garbage):
            deleted.append(item)
            listener.progress(len(deleted), len(garbage), {})
    return deleted
