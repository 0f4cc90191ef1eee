"""``trunkline explain``: where in a picture an adapter looks, as a heat map."""

from __future__ import annotations

from pathlib import Path

import click

from trunkline.cli.command import Command, Example
from trunkline.cli.output import READS, check_output, json_option, note, print_json
from trunkline.cli.predict import print_answers
from trunkline.cli.predict_rows import likeliest
from trunkline.cli.progress import working
from trunkline.cli.root import GlobalOptions, pass_options
from trunkline.errors import UsageError
from trunkline.files import output_file


@click.command(
    "explain",
    cls=Command,
    short_help="Show where in a picture an adapter looks, as a heat map.",
    example=Example("trunkline explain plant/parts parts/nut/1.png --out heat.png", "writes"),
)
@click.argument("ref")
@click.argument("picture", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    required=True,
    help="The picture with the map over it, a .png; replaced if it exists.",
)
@click.option("--label", metavar="LABEL", help="Explain this label.  [default: the answer]")
@json_option
@pass_options
def explain(
    options: GlobalOptions, ref: str, picture: Path, out: Path, label: str | None, as_json: bool
) -> None:
    """Show where in a picture an adapter looks, as a heat map.

    Grad-CAM on the base's last feature map: red and yellow parts speak for the label, or for a
    higher number; what the adapter does not read is gray. It shows where the answer comes from, not
    whether it is right. Only convolutional bases have such a map. Needs trunkline[explain].
    """
    if out.suffix.lower() != ".png":
        raise UsageError(f"{str(out)!r} is not a PNG.", "Name a file.png for --out.")
    check_output(out, picture)
    model = options.resolve(ref)
    if model.modality != "image":
        raise UsageError(
            f"{model.name} reads {READS[model.modality]}, and only answers to pictures are "
            "explained.",
            "Name an adapter that reads pictures.",
        )
    from trunkline.images import ImageSource
    from trunkline.inference.heat_map import explain as heat_map_of

    with working() as listener:
        listener.stage("opening the base")
        base = options.platform.engines.image.base
        listener.stage(f"explaining {picture.name}")
        artifact = options.platform.store.fetch(model.version)
        heat_map = heat_map_of(artifact, base, ImageSource(picture), label)
        (answer,) = options.platform.predict_images(model.name, [picture])
        with output_file(out, binary=True) as file:
            file.write(heat_map.to_png())
    if as_json:
        print_json(
            {
                "image": picture,
                "adapter": model.name,
                "label": answer.label,
                "labels": answer.labels,
                "value": answer.value,
                "probabilities": likeliest(answer, 3) or None,
                "explained": heat_map.output,
                "region": heat_map.region,
                "map": heat_map.values.round(4).tolist(),
                "out": out,
            }
        )
        return
    print_answers([picture.name], [answer], 3)
    note(f"What speaks for {heat_map.output!r} is in {out}.")
