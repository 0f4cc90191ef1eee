"""``trunkline adapters merge``: one version from several."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from trunkline.cli.command import Command, Example
from trunkline.cli.eval import print_evaluation_report
from trunkline.cli.lineage import merge_text
from trunkline.cli.output import json_option, note, plain, print_fields, print_json
from trunkline.cli.progress import working
from trunkline.cli.root import GlobalOptions, pass_options
from trunkline.errors import UsageError

if TYPE_CHECKING:
    from trunkline.training.merge import MergeResult


@click.command(
    "merge",
    cls=Command,
    short_help="Merge versions of the same task into one.",
    example=Example(
        "trunkline adapters merge finance/naics-sector@1 finance/naics-sector@2 "
        "--name finance/merged --method svd",
        "writes",
    ),
)
@click.argument("refs", nargs=-1, required=True, metavar="REF REF...")
@click.option("--name", required=True, metavar="DOMAIN/NAME", help="The adapter to publish.")
@click.option(
    "--method",
    type=click.Choice(("linear", "ties", "dare", "svd")),
    default="linear",
    show_default=True,
    help="linear: the weighted sum; svd: the sum, cut to a rank; ties, dare: pruned first.",
)
@click.option(
    "--weights",
    metavar="W,W",
    help="One number per version, in their order.  [default: equal, with the sum 1]",
)
@click.option(
    "--density",
    type=float,
    metavar="SHARE",
    help="ties, dare: the share of the elements to keep.  [default: 0.5]",
)
@click.option(
    "--rank",
    type=int,
    metavar="N",
    help="svd, ties, dare: the rank of the result.  [default: the highest of the versions]",
)
@click.option("--seed", type=int, metavar="N", help="dare: which elements are dropped.")
@json_option
@pass_options
def merge(
    options: GlobalOptions,
    refs: tuple[str, ...],
    name: str,
    method: str,
    weights: str | None,
    density: float | None,
    rank: int | None,
    seed: int | None,
    as_json: bool,
) -> None:
    """Merge versions with the same task, labels, template and base into a new version.

    The versions are its parents in the lineage. Heads are averaged with the weights. If all were
    trained on the same rows and split, the result is evaluated on their test rows, and `trunkline
    eval` and `trunkline adapters promote` apply to it.
    """
    platform = options.with_plugins
    with working() as listener:
        listener.stage("opening the base")
        result = platform.files.merge_adapters(
            refs,
            name,
            method=method,
            weights=_numbers(weights),
            density=density,
            rank=rank,
            seed=seed,
            listener=listener,
        )
    for sentence in result.notes:
        note(sentence)
    version = result.version
    if as_json:
        print_json({"adapter": str(version.ref), **plain(version), **_details(result)})
        return
    assert version.merge is not None
    print_fields(
        [
            ("adapter", version.ref),
            ("task", version.task),
            ("method", merge_text(version.merge)),
            *(("parent", f"{one.ref}, weight {one.weight:g}") for one in version.merge.parents),
            ("rank", result.rank),
            ("digest", version.digest),
        ]
    )
    if result.evaluation_report is not None:
        print_evaluation_report(result.evaluation_report)


def _details(result: MergeResult) -> dict[str, Any]:
    return {
        "rank": result.rank,
        "proof": result.proof,
        "evaluation_report": result.evaluation_report,
        "notes": result.notes,
    }


def _numbers(text: str | None) -> tuple[float, ...]:
    if text is None:
        return ()
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"{text!r} is not a list of weights.", "Write numbers with commas: --weights 0.5,0.5."
        ) from None
