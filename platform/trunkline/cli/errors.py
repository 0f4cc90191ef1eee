"""Error reports: each exception becomes two lines on stderr and an exit code.

0: done. 1: refused or failed. 2: wrong usage, including unknown names. 130: interrupted.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import click

from trunkline.cli.output import printable
from trunkline.errors import Interrupted, TrunklineError, one_line, reason_of
from trunkline.process import ProcessExit
from trunkline.redaction import redact, redact_exception

INTERRUPTED = 130

_OPTION = re.compile("--?[a-z][a-z0-9-]*")
_QUOTED_TEXT = 40
_TEXTS = {"texts", "prompt", "text", "pairs"}  # arguments that may begin with a dash


def exit_code_of(run: Callable[[], Any], *, debug: Callable[[], bool]) -> int:
    """Run a command, report its error on stderr, and return the process's exit code.

    Args:
        run: returns an exit code or None.
        debug: called after a failure; whether to print the traceback.
    """
    try:
        code = run()
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader is gone; the rest of the buffer must not be flushed at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        return INTERRUPTED
    except click.ClickException as error:
        _report_usage(error)
        return error.exit_code
    except TrunklineError as error:
        if debug():
            _print_traceback(error)
        report(error)
        return error.exit_code
    except OSError as error:
        if debug():
            _print_traceback(error)
        if error.errno == errno.ENOSPC:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        subject = f"{error.filename!r}" if error.filename else "The output"
        reason = reason_of(error)
        _print_error(
            f"Error: {subject} can't be read or written: {reason}.",
            "Check the path and the free disk space.",
        )
        return 1
    except SystemExit as error:
        frames = traceback.extract_tb(error.__traceback__)
        if frames and frames[-1].filename == click.core.__file__:  # the reader of stdout is gone
            return 1
        if debug():
            _print_traceback(error)
        _print_error(
            f"Error: the program was ended by {_exit_call(error)}.",
            "If that file belongs to a plugin, leave it out: `trunkline --no-plugin NAME …`.",
        )
        return error.code if isinstance(error.code, int) and error.code else 1
    except BaseException as error:
        if debug():
            _print_traceback(error)
        _print_error(
            f"Error: unexpected {one_line(error, with_type=True)}.",
            "`trunkline --debug …` shows the traceback; please report it.",
        )
        return 1
    return code if isinstance(code, int) else 0


def report_side_errors() -> None:
    """From now on, report what fails beside the command in one line without secrets.

    That is an error in a thread, in a destructor, or in a function that runs when the process
    ends; Python would print a traceback.
    """

    def in_thread(arguments: threading.ExceptHookArgs) -> None:
        if arguments.exc_value is not None and arguments.exc_type is not SystemExit:
            name = "" if arguments.thread is None else f" {arguments.thread.name}"
            _print_side_error(f"in the thread{name}", arguments.exc_value)

    def unraisable(arguments: sys.UnraisableHookArgs) -> None:
        if arguments.exc_value is not None:
            owner = arguments.object
            module = getattr(owner, "__module__", None) or type(owner).__module__
            name = getattr(owner, "__qualname__", None) or type(owner).__qualname__
            _print_side_error(f"in {module}.{name}", arguments.exc_value)

    threading.excepthook = in_thread
    sys.unraisablehook = unraisable


def _print_side_error(place: str, error: BaseException) -> None:
    text = one_line(error, with_type=True)
    if isinstance(error, ProcessExit):
        text = f"it tried to end the program with {error.call}"
    with suppress(OSError, ValueError):  # stderr may be closed
        _print_error(f"Warning: an error {place} was ignored: {text}.", None)


def _exit_call(error: SystemExit) -> str:
    """The call that raised the exception, with its file and line."""
    call = error.call if isinstance(error, ProcessExit) else f"sys.exit({error.code!r})"
    frames = traceback.extract_tb(error.__traceback__)
    return f"{call} in {frames[-1].filename}, line {frames[-1].lineno}" if frames else call


def _print_traceback(error: BaseException) -> None:
    """Write the traceback of an exception and of all that led to it, without secrets."""
    redact_exception(error)
    click.echo(redact("".join(traceback.format_exception(error))), err=True, nl=False)


def report(error: TrunklineError) -> None:
    """Write one of Trunkline's errors on stderr."""
    kind = "Interrupted" if isinstance(error, Interrupted) else "Error"
    _print_error(f"{kind}: {error.message}", error.hint)


def _report_usage(error: click.ClickException) -> None:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), err=True)
        return
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "trunkline"
    hint = f"`{path} --help` shows the usage."
    message = error.format_message()
    if isinstance(error, click.NoSuchCommand):
        message = f"There is no command {error.command_name!r}."
        hint = _suggest(error.possibilities) + f"`{path} --help` lists the commands."
    elif isinstance(error, click.NoSuchOption):
        message = f"`{path}` has no option {error.option_name!r}."
        hint = _suggest(error.possibilities) + hint
        if context and context.parent and error.option_name in _global_options(context):
            rest = path.removeprefix("trunkline ")
            hint = f"Put it before the command: `trunkline {error.option_name} … {rest} …`."
        elif context and _may_be_text(context, error):
            hint = f'If it is a text, put `--` before it: `{path} … -- "{_dashed(error)}"`.'
    _print_error(f"Error: {message}", hint)


def _may_be_text(context: click.Context, error: click.NoSuchOption) -> bool:
    """Whether an unknown option may be a text that begins with a dash."""
    arguments = [one for one in context.command.params if isinstance(one, click.Argument)]
    takes_texts = any(one.name in _TEXTS for one in arguments)
    is_misspelt = bool(error.possibilities) and _OPTION.fullmatch(error.option_name)
    return takes_texts and not is_misspelt


def _dashed(error: click.NoSuchOption) -> str:
    """The beginning of the text; click reports two characters of a text with one dash."""
    name = error.option_name
    is_complete = name.startswith("--") and len(name) <= _QUOTED_TEXT
    return name if is_complete else f"{name[:_QUOTED_TEXT]}…"


def _suggest(names: list[str] | None) -> str:
    return f"Did you mean {names[0]!r}? " if names else ""


def _global_options(context: click.Context) -> set[str]:
    root = context.find_root().command
    return {name for option in root.params for name in option.opts}


def _single_line(text: str) -> str:
    """The text on one line, so that quoted input can't look like an error of its own."""
    return printable(" ".join(part.strip() for part in text.split("\n")))


def _print_error(message: str, hint: str | None) -> None:
    message = _single_line(redact(message))
    color = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    if color:
        kind, colon, rest = message.partition(":")
        message = click.style(kind, fg="red", bold=True) + colon + rest
    click.echo(message, err=True)
    if hint:
        label = click.style("Hint", fg="cyan") if color else "Hint"
        click.echo(f"{label}: {_single_line(redact(hint))}", err=True)
