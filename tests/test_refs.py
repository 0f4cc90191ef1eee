"""Refs: the grammar, and errors for text that breaks it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline.errors import UsageError
from trunkline.refs import Ref, check_alias, check_digest, check_domain, check_name, valid_name

HEX = "0123456789abcdef" * 4

domains = st.from_regex(r"[a-z][a-z0-9-]{0,39}", fullmatch=True)
names = st.from_regex(r"[a-z][a-z0-9-]{0,63}", fullmatch=True)
aliases = domains.filter(lambda text: not re.fullmatch(r"latest|base|v[0-9]+", text))
selectors = st.one_of(
    st.none(),
    st.integers(1, 999_999_999).map(str),
    aliases,
    st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True),
)


@given(domains, names, selectors)
def test_ref_is_parsed_back_from_its_text(domain: str, name: str, selector: str | None) -> None:
    ref = Ref(domain, name, selector)
    assert Ref.parse(str(ref)) == ref


@given(st.text(max_size=80))
def test_any_text_is_a_ref_or_a_usage_error(text: str) -> None:
    try:
        ref = Ref.parse(text)
    except UsageError:
        return
    assert str(ref) == text


@given(st.text(alphabet="./\\%@:ab1\n\0 ", max_size=12))
def test_no_ref_leaves_its_folder(text: str) -> None:
    try:
        ref = Ref.parse(text)
    except UsageError:
        return
    assert re.fullmatch(r"[ab][ab1]*/[ab][ab1]*", ref.adapter)


@pytest.mark.parametrize(
    ("text", "number", "alias", "digest"),
    [
        ("medical/icd10", None, None, None),
        ("medical/icd10@12", 12, None, None),
        ("medical/icd10@champion", None, "champion", None),
        (f"medical/icd10@sha256:{HEX}", None, None, f"sha256:{HEX}"),
    ],
)
def test_a_selector_is_a_number_an_alias_or_a_digest(
    text: str, number: int | None, alias: str | None, digest: str | None
) -> None:
    ref = Ref.parse(text)
    assert (ref.number, ref.alias, ref.digest) == (number, alias, digest)


def test_adapter_is_the_ref_without_its_selector() -> None:
    assert Ref.parse("medical/icd10@3").adapter == "medical/icd10"


def test_at_changes_only_the_selector() -> None:
    assert str(Ref.parse("medical/icd10@champion").at(4)) == "medical/icd10@4"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "base",
        "medical",
        "medical/",
        "/icd10",
        "a/b/c",
        "../x",
        "medical/..",
        "medical/../x",
        "/etc/passwd",
        "a\\b",
        "%2e%2e/x",
        "%252e/x",
        "medical/icd10\n",
        "medical/icd10@3\n",
        "medical/icd\x0010",
        " medical/icd10",
        "Medical/icd10",
        "medical/ICD10",
        "medical/1cd",
        "-medical/icd10",
        "medical/icd_10",
        "mеdical/icd10",  # Cyrillic е
        "medical/icd10@٣",  # Arabic-Indic three
        "medical/icd10@",
        "medical/icd10@@3",
        "medical/icd10@0",
        "medical/icd10@03",
        "medical/icd10@-1",
        "medical/icd10@1.5",
        "medical/icd10@1234567890",
        "medical/icd10@Champion",
        "medical/icd10@latest",
        "medical/icd10@base",
        "medical/icd10@v3",
        "medical/icd10@sha256:12",
        f"medical/icd10@sha256:{HEX.upper()}",
        f"medical/icd10@{HEX}",
        "medical/" + "a" * 65,
        "a" * 41 + "/icd10",
        "a" * 300,
        "medical/" + "a" * 300,
        "medical/icd10@" + "a" * 41,
    ],
)
def test_malformed_ref_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Ref.parse(text)
    assert caught.value.hint


@pytest.mark.parametrize("value", [None, 3, b"medical/icd10", ["medical/icd10"]])
def test_other_types_are_refused(value: object) -> None:
    with pytest.raises(UsageError):
        Ref.parse(value)  # type: ignore[arg-type]


def test_a_long_value_is_shown_shortened() -> None:
    with pytest.raises(UsageError) as caught:
        Ref.parse("medical/" + "a" * 300)
    assert len(caught.value.message) < 100


def test_a_look_alike_letter_is_shown_as_its_code() -> None:
    with pytest.raises(UsageError, match=r"m\\u0435dical"):
        Ref.parse("mеdical/icd10")


def test_base_has_an_error_of_its_own() -> None:
    with pytest.raises(UsageError, match="bare base"):
        Ref.parse("base")


def test_constructor_checks_the_grammar() -> None:
    with pytest.raises(UsageError):
        Ref("..", "x")


@pytest.mark.parametrize("alias", ["latest", "base", "v1", "v20", "3", "", "Champion", "a/b"])
def test_reserved_and_malformed_aliases_are_refused(alias: str) -> None:
    with pytest.raises(UsageError):
        check_alias(alias)


def test_checks_return_valid_text() -> None:
    assert check_domain("medical") == "medical"
    assert check_name("icd10-chapter") == "icd10-chapter"
    assert check_alias("vnext") == "vnext"
    assert check_digest(f"sha256:{HEX}") == f"sha256:{HEX}"


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("Text2SQL_v1.0", "text2sql-v1-0"),
        ("  Größe—M ", "groe-m"),
        ("7b", "adapter-7b"),
        ("a" * 70, "a" * 64),
        ("приём", ""),
        ("", ""),
    ],
)
def test_closest_valid_name_keeps_letters_and_digits(text: str, valid: str) -> None:
    assert valid_name(text) == valid


@given(st.text(max_size=90))
def test_closest_valid_name_is_valid(text: str) -> None:
    name = valid_name(text)
    assert name == "" or check_name(name) == name


def test_refusal_of_a_name_suggests_one_that_would_do() -> None:
    with pytest.raises(UsageError) as caught:
        Ref.parse("retail/Text2SQL_v1.0")
    assert "'text2sql-v1-0' would do" in str(caught.value.hint)


def test_reserved_alias_is_not_suggested() -> None:
    with pytest.raises(UsageError) as caught:
        check_alias("V2")
    assert "would do" not in str(caught.value.hint)
