"""``trunkline adapters merge``: one version from several, by their weights or their answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import click

from trunkline.cli.command import Command, Example
from trunkline.cli.eval import print_evaluation_report
from trunkline.cli.lineage import merge_text, weight_text
from trunkline.cli.output import (
    READS,
    interval,
    json_option,
    note,
    plain,
    print_fields,
    print_json,
)
from trunkline.cli.progress import working
from trunkline.cli.root import GlobalOptions, pass_options
from trunkline.contracts import FUSION_METHODS, FusionMethod
from trunkline.errors import UsageError

if TYPE_CHECKING:
    from trunkline.training.fusion import FusionResult
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
    type=click.Choice(("linear", "ties", "dare", "svd", *FUSION_METHODS)),
    help="linear: the weighted sum; svd: the sum, cut to a rank; ties, dare: pruned first. With "
    "--fuse, average: of the probabilities; stacked: logistic regression on them.  [default: "
    "linear; with --fuse average]",
)
@click.option(
    "--fuse",
    type=click.Choice(("text+image",)),
    help="Combine the answers of a text and an image adapter, for rows that have both.",
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
    method: str | None,
    fuse: str | None,
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

    With --fuse, the version answers with both adapters, which stay as they are. They must have been
    trained on the same rows and split; the weight is chosen on their validation rows.
    """
    platform = options.with_plugins
    if fuse is not None:
        given = {"weights": weights, "density": density, "rank": rank, "seed": seed}
        _check_fusion(refs, method, [key for key, value in given.items() if value is not None])
        with working() as listener:
            listener.stage("opening the bases")
            fused = platform.files.fuse_adapters(
                refs[0],
                refs[1],
                name,
                method=cast("FusionMethod", method or "average"),
                listener=listener,
            )
        print_fusion(fused, as_json)
        return
    if method in FUSION_METHODS:
        raise UsageError(f"--method {method} needs --fuse.", "Add --fuse text+image.")
    with working() as listener:
        listener.stage("opening the base")
        result = platform.files.merge_adapters(
            refs,
            name,
            method=method or "linear",
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


def _check_fusion(refs: Sequence[str], method: str | None, given: Sequence[str]) -> None:
    """Refuse options of a merge of weights together with --fuse."""
    if given:
        raise UsageError(
            f"--{given[0]} and --fuse can't be combined.",
            "The weights of a fusion are chosen on validation rows.",
        )
    if method is not None and method not in FUSION_METHODS:
        raise UsageError(
            f"The method {method} merges weights, and --fuse combines answers.",
            f"Use --method {' or '.join(FUSION_METHODS)}.",
        )
    if len(refs) != 2:
        raise UsageError(
            f"{len(refs)} versions can't be fused.",
            "Name one that reads text and one for pictures.",
        )


def print_fusion(result: FusionResult, as_json: bool) -> None:
    """Write a fusion with its parents, its scores, and whether it beats the better parent."""
    for sentence in result.notes:
        note(sentence)
    version = result.version
    if as_json:
        details = {
            "fusion": result.fusion.to_json(),
            "evaluation_report": result.evaluation_report,
            "better_parent": result.better_parent,
            "difference": result.difference,
            "verdict": result.verdict,
            "notes": result.notes,
        }
        print_json({"adapter": str(version.ref), **plain(version), **details})
        return
    assert version.merge is not None
    print_fields(
        [
            ("adapter", version.ref),
            ("task", version.task),
            ("reads", READS[version.modality]),
            ("method", merge_text(version.merge)),
            *(
                ("parent", f"{one.ref}, {weight_text(version.merge, one)}{one.digest}")
                for one in version.merge.parents
            ),
            ("digest", version.digest),
        ]
    )
    print_evaluation_report(result.evaluation_report)
    outcome = {
        "beats": "The fusion beats its better parent",
        "ties": "The fusion is not clearly better than its better parent",
        "loses": "The fusion is worse than its better parent",
    }[result.verdict]
    click.echo(
        f"{outcome} {result.better_parent}: difference in {result.evaluation_report.metric} "
        f"{interval(result.difference, sign=True)}."
    )
    if result.verdict != "beats":
        note(f"Serve {result.better_parent} alone: it needs one base and half of the time.")


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
