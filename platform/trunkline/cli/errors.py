"""What an exception becomes on the terminal: two lines on stderr and an exit code.

Owns: the style of errors. Must not know: any command.

0 done; 1 refused or failed; 2 wrong use, unknown names included; 130 interrupted.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import click

from trunkline.cli.output import printable
from trunkline.errors import Interrupted, TrunklineError

INTERRUPTED = 130


def exit_code_of(work: Callable[[], Any], *, debug: Callable[[], bool]) -> int:
    """Do the work, tell on stderr what went wrong, and give the process's exit code.

    Args:
        work: gives an exit code or None.
        debug: asked after a failure, whether the traceback is wanted.
    """
    try:
        code = work()
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has gone; what is left in the buffer must not be flushed at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        return INTERRUPTED
    except click.ClickException as error:
        _tell_wrong_use(error)
        return error.exit_code
    except TrunklineError as error:
        if debug():
            traceback.print_exc()
        tell(error)
        return error.exit_code
    except OSError as error:
        if debug():
            traceback.print_exc()
        if error.errno == errno.ENOSPC:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        what = f"{error.filename!r}" if error.filename else "The output"
        reason = error.strerror or error
        _lines(f"Error: {what} can't be read or written: {reason}.", "Look at the path and disk.")
        return 1
    except Exception as error:
        if debug():
            traceback.print_exc()
        told = " ".join(str(error).split()) or "no message"
        _lines(
            f"Error: unexpected {type(error).__name__}: {told}",
            "`trunkline --debug …` shows where it comes from; please report it.",
        )
        return 1
    return code if isinstance(code, int) else 0


def tell(error: TrunklineError) -> None:
    """Write an error of ours on stderr."""
    word = "Interrupted" if isinstance(error, Interrupted) else "Error"
    _lines(f"{word}: {error.message}", error.hint)


def _tell_wrong_use(error: click.ClickException) -> None:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), err=True)
        return
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "trunkline"
    hint = f"`{path} --help` shows how it is used."
    message = error.format_message()
    if isinstance(error, click.NoSuchCommand):
        message = f"There is no command {error.command_name!r}."
        hint = _nearest(error.possibilities) + f"`{path} --help` lists the commands."
    elif isinstance(error, click.NoSuchOption):
        message = f"There is no option {error.option_name!r} here."
        hint = _nearest(error.possibilities) + hint
        if context and context.parent and error.option_name in _global_options(context):
            rest = path.removeprefix("trunkline ")
            hint = f"It stands before the command: `trunkline {error.option_name} … {rest} …`."
    _lines(f"Error: {message}", hint)


def _nearest(names: list[str] | None) -> str:
    return f"Did you mean {names[0]!r}? " if names else ""


def _global_options(context: click.Context) -> set[str]:
    root = context.find_root().command
    return {word for option in root.params for word in option.opts}


def _in_one(text: str) -> str:
    """In one line, so that nothing quoted can look like an error of its own."""
    return printable(" ".join(part.strip() for part in text.split("\n")))


def _lines(first: str, hint: str | None) -> None:
    first = _in_one(first)
    color = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    word, colon, rest = first.partition(":")
    click.echo(click.style(word, fg="red", bold=True) + colon + rest if color else first, err=True)
    if hint:
        word = click.style("Hint", fg="cyan") if color else "Hint"
        click.echo(f"{word}: {_in_one(hint)}", err=True)
