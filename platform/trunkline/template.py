"""The template of a prompt: how a text becomes what the model reads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from string import Formatter
from typing import Literal

from trunkline.errors import UsageError
from trunkline.settings import checks_field_names

CleanStep = Literal["strip", "squeeze", "lowercase"]
CLEAN_STEPS: tuple[CleanStep, ...] = ("strip", "squeeze", "lowercase")

_BRACES = "Write {{ and }} for literal braces."


@checks_field_names
@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """How a text becomes a prompt; stored in the artifact, so that inference uses the same one.

    A brace that is not part of ``{text}`` is written twice, as in Python's ``str.format``:
    ``{{"label": {text}}}``. Where a prompt is too long, the text is cut, never the template.

    Attributes:
        prompt: contains ``{text}`` exactly once; of a ranking, where the text is the query, also
            ``{candidate}`` exactly once; and no other field.
        clean: steps applied to the text first: ``strip`` the ends, ``squeeze`` white space,
            ``lowercase``. None for tagging, whose spans count the characters of the text.
        chat: wrap the prompt as a user message in the base's chat template.
        system: the system message, with ``chat`` only.
    """

    prompt: str = "{text}"
    clean: tuple[CleanStep, ...] = ("strip", "squeeze")
    chat: bool = False
    system: str | None = None

    def __post_init__(self) -> None:
        fields = _fields(self.prompt, "template") if isinstance(self.prompt, str) else ()
        if fields.count("text") != 1:
            raise UsageError(
                f"The template {self.prompt!r} does not contain {{text}} exactly once.",
                "Write for example 'Diagnosis: {text}'.",
            )
        if fields.count("candidate") > 1:
            raise UsageError(
                f"The template {self.prompt!r} contains {{candidate}} more than once.",
                "Write for example 'Query: {text}\\nProduct: {candidate}'.",
            )
        if not isinstance(self.clean, tuple | list):
            raise UsageError(
                f"A template's clean is {self.clean!r}; a tuple is wanted.",
                "Write for example clean=('strip', 'lowercase').",
            )
        if not isinstance(self.chat, bool) or not isinstance(self.system, str | None):
            raise UsageError(
                f"A template's chat must be true or false and system text, not {self.chat!r} "
                f"and {self.system!r}.",
                "Omit both for a plain prompt.",
            )
        for step in self.clean:
            if step not in CLEAN_STEPS:
                raise UsageError(
                    f"{step!r} is not a cleaning step.", f"Use any of: {', '.join(CLEAN_STEPS)}."
                )
        if self.system is not None and not self.chat:
            raise UsageError("A template has a system message but chat is off.", "Set chat=True.")
        if self.system is not None and _fields(self.system, "system message"):
            raise UsageError(
                f"The system message {self.system!r} contains {{text}}.",
                f"Put {{text}} into the prompt. {_BRACES}",
            )

    def cleaned(self, text: str) -> str:
        """The text after the cleaning steps, in order."""
        for step in self.clean:
            if step == "strip":
                text = text.strip()
            elif step == "squeeze":
                text = " ".join(text.split())
            else:
                text = text.lower()
        return text

    @property
    def takes_candidate(self) -> bool:
        """Whether the prompt contains ``{candidate}``."""
        return "candidate" in _fields(self.prompt, "template")

    def with_candidate(self, candidate: str) -> Template:
        """The template with the cleaned candidate in place of ``{candidate}``."""
        fillings = {None: "", "text": "{text}", "candidate": _escaped(self.cleaned(candidate))}
        parts = _parsed(self.prompt, "template")
        prompt = "".join(_escaped(literal) + fillings[field] for literal, field in parts)
        return replace(self, prompt=prompt)

    @property
    def parts(self) -> tuple[tuple[str, str | None], ...]:
        """Each literal text of the prompt with the field after it, ``text`` or ``candidate``."""
        return _parsed(self.prompt, "template")

    @property
    def prefix(self) -> str:
        """The prompt before the text."""
        return _around_text(self.prompt)[0]

    @property
    def suffix(self) -> str:
        """The prompt after the text."""
        return _around_text(self.prompt)[1]

    @property
    def system_message(self) -> str | None:
        """The system message as the model reads it."""
        if self.system is None:
            return None
        return "".join(literal for literal, _ in _parsed(self.system, "system message"))

    def filled(self, text: str) -> str:
        """The prompt with the cleaned text inserted."""
        return f"{self.prefix}{self.cleaned(text)}{self.suffix}"


@lru_cache(maxsize=1024)
def _around_text(prompt: str) -> tuple[str, str]:
    """The literal text before and after ``{text}``; ``{candidate}`` stays as it is written."""
    before, after = "", None
    for literal, field in _parsed(prompt, "template"):
        text = literal + ("{candidate}" if field == "candidate" else "")
        if after is None:
            before += text
        else:
            after += text
        if field == "text":
            after = ""
    return before, after or ""


def _fields(template: str, subject: str) -> list[str]:
    return [field for _, field in _parsed(template, subject) if field is not None]


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


@lru_cache(maxsize=1024)
def _parsed(template: str, subject: str) -> tuple[tuple[str, str | None], ...]:
    """Each literal text with the field after it; no field after the last literal.

    Raises:
        UsageError: a brace is not paired, or there is an unknown field.
    """
    try:
        parts = list(Formatter().parse(template))
        template.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"The {subject} holds {template[error.start]!r}, which is not a character.",
            "Write the character itself.",
        ) from None
    except ValueError:
        raise UsageError(f"The {subject} {template!r} has a single brace.", _BRACES) from None
    known = ("text", "candidate") if subject == "template" else ("text",)
    for _, name, spec, conversion in parts:
        if name is None:
            continue
        if name not in known or spec or conversion:
            field_text = name + (f"!{conversion}" if conversion else "") + (f":{spec}" * bool(spec))
            raise UsageError(
                f"The {subject} {template!r} has the unknown field {{{field_text}}}.",
                "The only field is {text}; in the prompt of a ranking also {candidate}. "
                f"{_BRACES}",
            )
    return tuple((literal, name) for literal, name, _, _ in parts)
