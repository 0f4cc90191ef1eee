"""``trunkline adapters import``: an adapter that was made elsewhere.

Owns: how the user's words about it are read. Must not know: what is checked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import click

from trunkline.cli.command import Command
from trunkline.cli.options import Globals, with_globals
from trunkline.cli.output import bytes_text, json_option, note, plain, print_fields, print_json
from trunkline.contracts import CLEAN_STEPS, TASKS
from trunkline.errors import UsageError


@click.command(
    "import",
    cls=Command,
    example="""
    $ trunkline adapters import ./pubmed-lora --name medical/study-type --base smollm2-135m
    --labels "case report,cohort,trial" --template "Abstract: {text}"
    adapter_config.json says that it was trained on 'HuggingFaceTB/SmolLM2-135M-Instruct'; that this
    is smollm2-135m can't be verified.
    adapter  medical/study-type@1
    task     classification: case report, cohort, trial
    lora     rank 8, alpha 16, 210 modules
    digest   sha256:5f0c9a2b37d1e84406fb1c8a9e6d20735b94ce11a8f2d7063e95b4a87c2d1f60
    size     9.8 MB
    """,
)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--name", required=True, metavar="DOMAIN/NAME", help="The adapter that it becomes.")
@click.option("--base", metavar="NAME", help="The base that it was trained on.")
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
    folder: Path,
    name: str,
    base: str | None,
    labels: str | None,
    labels_file: Path | None,
    template: str | None,
    chat: bool,
    clean: str | None,
    as_json: bool,
    **wishes: Any,
) -> None:
    """Publish an adapter that PEFT saved elsewhere.

    It becomes the next version of --name. FOLDER holds adapter_config.json and
    adapter_model.safetensors; other files in it are not opened. An adapter that would not be
    computed exactly is refused, with the reason.
    """
    from trunkline.contracts import CleanStep, Template

    if (base := base or said.base) is None:
        raise UsageError("An import needs the base.", "Name it with --base smollm2-135m.")
    prompt = Template(
        prompt="{text}" if template is None else template,
        clean=tuple(cast(CleanStep, step) for step in _listed(clean)),
        chat=chat,
    )
    done = said.platform.import_adapter(
        folder,
        name,
        base=base,
        template=prompt,
        labels=_labels(labels, labels_file),
        **wishes,
    )
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
