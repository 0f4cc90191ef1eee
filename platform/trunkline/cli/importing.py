"""``trunkline adapters import``: an adapter that was made elsewhere, or a version on its way.

Owns: how the user's words about it are read, and which kind of source they name. Must not know:
what is checked.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from trunkline.cli.command import Command, Example
from trunkline.cli.options import Globals, with_globals
from trunkline.cli.output import bytes_text, json_option, note, plain, print_fields, print_json
from trunkline.cli.progress import working
from trunkline.contracts import CLEAN_STEPS, TASKS
from trunkline.errors import NotFoundError, UsageError
from trunkline.refs import EXAMPLE, shown

if TYPE_CHECKING:
    from trunkline.adapters.archive import ImportResult
    from trunkline.adapters.peft_import import ImportedAdapter

_OF_A_FOLDER = {
    "task": "--task",
    "labels": "--labels",
    "labels_file": "--labels-file",
    "template": "--template",
    "chat": "--chat",
    "clean": "--clean",
    "max_new_tokens": "--max-new-tokens",
    "unit": "--unit",
}
"""What is said of a folder; an archive says it itself."""


@click.command(
    "import",
    cls=Command,
    example=(
        Example(
            "trunkline adapters import ./pubmed-lora --name medical/study-type "
            '--base smollm2-135m --labels "case report,cohort,trial" '
            '--template "Abstract: {text}"',
            "writes",
        ),
        Example("trunkline adapters import department.tar", "writes"),
    ),
)
@click.argument("source")
@click.option("--name", metavar="DOMAIN/NAME", help="The adapter that it becomes.")
@click.option("--base", metavar="NAME", help="The base that it was trained on.")
@click.option(
    "--digest", metavar="SHA256", help="Of an archive: the version in it must have this digest."
)
@click.option("--task", type=click.Choice(TASKS), help="By default what its files suggest.")
@click.option("--labels", metavar="A,B,C", help="Of the head's outputs, in their order.")
@click.option(
    "--labels-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The same, one a line.",
)
@click.option("--template", metavar="TEXT", help="The prompt; holds {text}.  [default: {text}]")
@click.option("--chat", is_flag=True, help="The prompt is a user's message in the base's chat.")
@click.option("--clean", metavar="A,B", help=f"Steps on the text: {', '.join(CLEAN_STEPS)}.")
@click.option("--max-new-tokens", type=int, metavar="N", help="Of a generated answer.")
@click.option("--unit", metavar="UNIT", help="Of a regression's number.")
@json_option
@with_globals
def import_(
    said: Globals,
    /,
    source: str,
    name: str | None,
    base: str | None,
    digest: str | None,
    as_json: bool,
    **wishes: Any,
) -> None:
    """Publish an adapter that PEFT saved elsewhere, or a version out of an archive.

    SOURCE is a folder, hf:<repo>[@revision] on the Hugging Face hub, or an archive made by
    `trunkline adapters export`. It becomes the next version of --name.

    A folder holds adapter_config.json and adapter_model.safetensors; other files in it are not
    opened. An adapter that would not be computed exactly is refused, with the reason.

    An archive brings its own name, task and lineage; of the options, --name, --digest and --base
    are for it, and all three may be left away.
    """
    if name is not None and name.count("/") != 1:
        raise UsageError(
            f"{shown(name)} is no adapter's name.",
            f"Write --name domain/name, for example --name {EXAMPLE.partition('@')[0]}.",
        )
    is_hub = source.startswith("hf:")
    if not is_hub and _is_archive(source):
        for key, option in _OF_A_FOLDER.items():
            if wishes[key]:
                raise UsageError(
                    f"An archive says itself what {option} says of a folder.",
                    f"Leave {option} away.",
                )
        with working() as listener:
            listener.stage(f"checking {source}")
            arrived = said.platform.import_archive(source, name, digest=digest, base=base)
        _tell_arrived(arrived, as_json)
        return
    if not is_hub and not (source and Path(source).exists()):
        raise NotFoundError(
            f"There is nothing at {source!r} to import.",
            "Give a folder, an archive, or hf:<repo>[@revision].",
        )
    if digest is not None:
        raise UsageError(
            f"{source!r} is no archive, so it has no digest yet.", "Leave --digest away."
        )
    if name is None:
        raise UsageError("An import needs a name.", "Name it with --name DOMAIN/NAME.")
    if (base := base or said.base) is None:
        raise UsageError("An import needs the base.", "Name it with --base smollm2-135m.")
    with working() as listener:
        if is_hub:
            listener.stage(f"fetching {source} from the hub")
        done = said.platform.import_adapter(source, name, base=base, **_wishes(wishes))
    _tell_imported(done, as_json)


def _is_archive(source: str) -> bool:
    """Whether it is no folder: a file, or something that is not there but looks like one."""
    try:
        path = Path(source)
        return path.is_file() or (path.suffix == ".tar" and not path.is_dir())
    except ValueError:  # a NUL
        return False


def _wishes(said: dict[str, Any]) -> dict[str, Any]:
    from trunkline.contracts import CleanStep, Template

    words = said["template"]
    prompt = Template(
        prompt="{text}" if words is None else words,
        clean=tuple(cast(CleanStep, step) for step in _listed(said["clean"])),
        chat=said["chat"],
    )
    return {
        "template": prompt,
        "labels": _labels(said["labels"], said["labels_file"]),
        **{key: said[key] for key in ("task", "max_new_tokens", "unit")},
    }


def _tell_imported(done: ImportedAdapter, as_json: bool) -> None:
    for sentence in done.notes:
        note(sentence)
    version = done.version
    if as_json:
        print_json({"adapter": str(version.ref), **plain(version), "notes": done.notes})
        return
    task = ", ".join(done.task.get("labels", ()))
    print_fields(
        [
            ("adapter", version.ref),
            ("task", f"{version.task}: {task}" if task else version.task),
            ("lora", f"rank {done.lora.rank}, alpha {done.lora.alpha:g}, {done.modules} modules"),
            ("digest", version.digest),
            ("size", bytes_text(version.bytes)),
        ]
    )


def _tell_arrived(done: ImportResult, as_json: bool) -> None:
    for sentence in done.notes:
        note(sentence)
    version, run = done.version, done.provenance.run
    if as_json:
        print_json({"adapter": str(version.ref), **plain(version), "notes": done.notes})
        return
    moved = done.provenance.transfers[-1]
    print_fields(
        [
            ("adapter", version.ref),
            ("was", moved.origin),
            ("task", version.task),
            ("base", f"{version.base_name} ({version.base_digest})"),
            ("dataset", version.dataset),
            ("run", run and f"{run.number} of {run.recipe} (there {moved.run})"),
            ("evaluations", len(done.provenance.evaluations) or None),
            ("digest", version.digest),
            ("size", bytes_text(version.bytes)),
        ]
    )


def _labels(words: str | None, file: Path | None) -> tuple[str, ...]:
    """The labels that were given in one way or the other."""
    if words is not None and file is not None:
        raise UsageError("--labels and --labels-file say the same.", "Give one of the two.")
    if file is None:
        return _listed(words)
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UsageError(f"{str(file)!r} is no UTF-8 text.", "Save it as UTF-8.") from error
    return tuple(line.strip() for line in lines if line.strip())


def _listed(words: str | None) -> tuple[str, ...]:
    return tuple(word.strip() for word in words.split(",")) if words else ()
