"""Markdown of model cards as HTML: without raw HTML, images or links to scripts."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from markupsafe import Markup

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

_LEVELS = 1
"""Headings of a card move down so far, below those of the page."""


def render_markdown(text: str) -> Markup:
    """The HTML of a card; its metadata block is shown as code."""
    body, metadata = _split(text)
    rendered = _parser().render(body)
    if metadata:
        rendered += str(Markup("<pre><code>{}</code></pre>").format(metadata))
    return Markup(rendered)  # markdown-it escapes text, and its raw HTML is off


def _split(text: str) -> tuple[str, str]:
    """The Markdown, and the metadata block before it."""
    if text.startswith("---\n") and (end := text.find("\n---\n", 4)) > 0:
        return text[end + 5 :], text[4:end]
    return text, ""


@cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False, "linkify": False}).enable("table")
    parser.disable(["image"])

    def move_headings(state: object) -> None:
        for token in state.tokens:  # type: ignore[attr-defined]
            if token.type in ("heading_open", "heading_close"):
                token.tag = f"h{min(6, int(token.tag[1]) + _LEVELS)}"

    def unhead_empty_cells(state: object) -> None:
        tokens = state.tokens  # type: ignore[attr-defined]
        for opening, content, closing in zip(tokens, tokens[1:], tokens[2:], strict=False):
            if opening.type == "th_open" and not content.content.strip():
                opening.tag = closing.tag = "td"  # a header without a text helps nobody

    parser.core.ruler.push("move_headings", move_headings)
    parser.core.ruler.push("unhead_empty_cells", unhead_empty_cells)
    return parser
