"""`trunkline plugins check` on datasets of pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from trunkline.plugins.discovery import find_plugins
from trunkline.training.plugin_check import plugin_findings

AddPlugin = Callable[..., Path]

BODY = (
    "def draw(seed):\n"
    "    import io, random\n"
    "    from PIL import Image\n"
    "    stream = io.BytesIO()\n"
    "    pixels = random.Random(seed).randbytes(256)\n"
    "    Image.frombytes('L', (16, 16), pixels).save(stream, 'PNG')\n"
    "    return stream.getvalue()\n"
    "@hookimpl\ndef trunkline_datasets():\n    yield dataset('farm/x', {})\n"
    "@hookimpl\ndef trunkline_recipes():\n    yield recipe('farm/x')\n"
)


def errors_of(domain: str) -> list[str]:
    (candidate,) = (one for one in find_plugins() if one.domain == domain)
    findings = plugin_findings(candidate)
    return [finding.message for finding in findings if finding.level == "error"]


PICTURES = (
    "load=lambda: [Row(id=f'r{i}', target='ab'[i % 2], group=f'g{i}', "
    "image=lambda i=i: draw(i)) for i in range(12)], modality='image'"
)


def test_rows_of_pictures_are_checked(add_plugin: AddPlugin) -> None:
    add_plugin("farm", BODY.format(PICTURES))
    assert errors_of("farm") == []


def test_row_without_a_picture_is_an_error(add_plugin: AddPlugin) -> None:
    broken = PICTURES.replace("image=lambda i=i: draw(i)", "text='t'")
    add_plugin("farm", BODY.format(broken))
    assert any("has no picture" in error for error in errors_of("farm"))


def test_picture_that_can_not_be_decoded_is_an_error(add_plugin: AddPlugin) -> None:
    broken = PICTURES.replace("draw(i)", "draw(i)[:70]")
    add_plugin("farm", BODY.format(broken))
    assert any("damaged or truncated" in error for error in errors_of("farm"))


def test_files_that_a_user_must_fetch_are_no_error(add_plugin: AddPlugin) -> None:
    source = (
        "def absent():\n    from trunkline.errors import MissingDataError\n"
        "    raise MissingDataError('The pictures are not here.', 'Fetch them.')\n"
    )
    add_plugin("farm", source + BODY.format("load=absent, modality='image'"))
    (candidate,) = (one for one in find_plugins() if one.domain == "farm")
    warnings = {one.subject: one.message for one in plugin_findings(candidate)}
    assert errors_of("farm") == []
    assert warnings["farm/x"] == "not checked: The pictures are not here. Fetch them"
