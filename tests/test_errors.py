"""Errors: exit codes, HTTP statuses, suggestions, and one-line messages."""

from __future__ import annotations

import os
import warnings

import numpy
import pytest
import torch

from trunkline import errors
from trunkline.errors import NotFoundError, PluginCallError, TrunklineError, one_line, reason_of

EVERY = [
    one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, Exception)
]


@pytest.mark.parametrize("kind", EVERY)
def test_every_error_is_a_trunkline_error_with_message_and_hint(kind: type[TrunklineError]) -> None:
    error = kind("It broke.", "Repair it.")

    assert isinstance(error, TrunklineError)
    assert (error.message, error.hint, str(error)) == ("It broke.", "Repair it.", "It broke.")


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.TrunklineError, 1),
        (errors.UsageError, 2),
        (errors.NotFoundError, 2),
        (errors.PluginError, 1),
        (errors.DataError, 1),
        (errors.BaseModelError, 1),
        (errors.BaseMismatchError, 1),
        (errors.IntegrityError, 1),
        (errors.RegistryError, 1),
        (errors.TrainingError, 1),
        (errors.RefusedError, 1),
        (errors.Interrupted, 130),
    ],
)
def test_exit_code_of_each_error(kind: type[TrunklineError], code: int) -> None:
    assert kind("x").exit_code == code


@pytest.mark.parametrize("kind", EVERY)
def test_http_status_is_an_error_status(kind: type[TrunklineError]) -> None:
    assert 400 <= kind("x").http_status < 600


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.TrunklineError, None),
        (errors.UsageError, None),
        (errors.NotFoundError, "not_found"),
        (errors.PluginError, None),
        (errors.DataError, "unusable_input"),
        (errors.BaseModelError, "base_unavailable"),
        (errors.BaseMismatchError, "other_base"),
        (errors.IntegrityError, "damaged_artifact"),
        (errors.RegistryError, "registry_unavailable"),
        (errors.TrainingError, None),
        (errors.RefusedError, "refused"),
        (errors.Interrupted, "cancelled"),
        (errors.AuthenticationError, "invalid_api_key"),
        (errors.ForbiddenError, "forbidden"),
        (errors.TooLargeError, "too_large"),
        (errors.BusyError, "busy"),
        (errors.UnavailableError, "unavailable"),
        (errors.DeadlineError, "deadline_exceeded"),
    ],
)
def test_code_of_each_error_is_stable(kind: type[TrunklineError], code: str | None) -> None:
    assert kind("x").code == code


def test_codes_are_unique() -> None:
    codes = [kind.code for kind in EVERY if kind.code is not None]

    assert len(set(codes)) == len(codes)


def test_unknown_name_suggests_the_closest_and_keeps_the_hint() -> None:
    error = NotFoundError.named("setting", "ranks", ["rank", "alpha"], "See the list.")

    assert error.message == "There is no setting 'ranks'."
    assert error.hint == "Did you mean 'rank'? See the list."


def test_closest_name_ignores_case() -> None:
    error = NotFoundError.named("setting", "MAX_STEPS", ["max_steps", "alpha"])

    assert error.hint == "Did you mean 'max_steps'?"


def test_closest_name_keeps_its_spelling() -> None:
    error = NotFoundError.named("label", "diary", ["Dairy"])

    assert error.hint == "Did you mean 'Dairy'?"


def test_no_name_is_suggested_if_none_is_close() -> None:
    assert NotFoundError.named("setting", "zzz", ["rank"]).hint is None


def test_control_characters_of_a_name_are_escaped() -> None:
    assert "\x1b" not in NotFoundError.named("plugin", "\x1b[31mred", []).message


# --------------------------------------------------------------------------------- one line


@pytest.mark.parametrize(
    ("error", "line", "typed"),
    [
        (ValueError("bad digit.\nsecond line"), "bad digit", "ValueError: bad digit"),
        (ValueError(), "ValueError", "ValueError: no message"),
        (ValueError("  \n"), "ValueError", "ValueError: no message"),
        (errors.DataError("No rows.", "Add some."), "No rows", "DataError: No rows"),
    ],
    ids=str,
)
def test_exception_is_shortened_to_one_line(error: Exception, line: str, typed: str) -> None:
    assert one_line(error) == line
    assert one_line(error, with_type=True) == typed


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FileNotFoundError(2, "No such file or directory", "/a/b"), "No such file or directory"),
        (OSError("Disk quota exceeded.\nDetails"), "Disk quota exceeded"),
        (OSError(), "OSError"),
        (ValueError("bad digit"), "bad digit"),
        (TrunklineError("It broke."), "It broke"),
    ],
    ids=repr,
)
def test_reason_of_an_os_error_has_neither_number_nor_path(error: Exception, reason: str) -> None:
    assert reason_of(error) == reason


def test_error_of_a_plugin_call_names_the_function() -> None:
    error = PluginCallError.raised("The metric toy/rate", KeyError("a"), "See docs/hooks.md.")

    assert error.message == "The metric toy/rate failed: KeyError: 'a'."
    assert error.hint == "See docs/hooks.md."


def test_nearest_name_is_escaped_where_it_looks_the_same() -> None:
    error = NotFoundError.named("column", "t\u00e9xt", ["te\u0301xt", "label"])
    assert error.hint == "Did you mean 'te\\u0301xt'?"


CHANGES = {
    "gradients": "torch.set_grad_enabled(False)",
    "default type": "torch.set_default_dtype(torch.float64)",
    "folder": "os.chdir('/')",
    "errors of numpy": "numpy.seterr(all='raise')",
    "warnings": "warnings.simplefilter('error')",
}


@pytest.mark.parametrize("change", CHANGES)
def test_change_of_the_process_by_a_plugin_s_function_is_restored(change: str) -> None:
    def state() -> list[object]:
        filters = [one for one in warnings.filters if one[0] == "error"]
        numbers = [torch.is_grad_enabled(), torch.get_default_dtype(), numpy.geterr()]
        return [os.getcwd(), filters, *numbers]

    before = state()
    with errors.plugin_call("The metric"):
        exec(CHANGES[change])
    assert state() == before
