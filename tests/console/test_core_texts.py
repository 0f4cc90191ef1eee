"""Sentences of the core on Chinese pages."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline.console.core_texts import CoreTranslator
from trunkline.console.translations import LANGUAGES, SOURCE, load_core, read

TRANSLATED = [name for name in LANGUAGES if name != SOURCE]
PLACE = re.compile(r"\{\d+\}")


def sentences(language: str) -> dict[str, str]:
    """Text → translation."""
    return {str(one.id): str(one.string) for one in read(language, "core") if one.id}


@pytest.mark.parametrize("language", TRANSLATED)
def test_translation_has_each_value_once(language: str) -> None:
    for text, translation in sentences(language).items():
        assert Counter(PLACE.findall(text)) == Counter(PLACE.findall(translation)), text


@pytest.mark.parametrize("language", TRANSLATED)
def test_every_sentence_is_translated_with_its_values(language: str) -> None:
    translate = load_core(language)
    for text in sentences(language):
        values = iter(f"<{number}>" for number in range(100))
        filled = PLACE.sub(lambda _, values=values: next(values), text)  # type: ignore[misc]
        shown = translate(filled)
        assert shown != filled or text.startswith("`"), text  # only a command
        for number in range(len(PLACE.findall(text))):
            assert shown.count(f"<{number}>") == 1, (text, shown)


def test_sentence_inside_a_sentence_is_translated() -> None:
    translate = CoreTranslator(
        {"The gate refuses {0}: {1}.": "门槛拒绝 {0}:{1}。", "at least {0}": "至少 {0}"}
    ).translate
    assert translate("The gate refuses a/b@1: at least 0.9.") == "门槛拒绝 a/b@1:至少 0.9。"


def test_the_most_specific_sentence_is_used() -> None:
    translate = CoreTranslator({"{0} failed.": "{0} 失败。", "run {0} failed.": "运行 {0} 失败。"})
    assert translate.translate("run 3 failed.") == "运行 3 失败。"


def test_kind_is_translated_and_a_name_is_not() -> None:
    catalog = {"There is no {0} {1}.": "没有{0} {1}。", "base": "基座模型", "rows": "行"}
    translate = CoreTranslator(catalog).translate
    assert translate("There is no base base.") == "没有基座模型 base。"


def test_unknown_sentence_stays_as_it_is() -> None:
    assert load_core("zh")("Something that a plugin says.") == "Something that a plugin says."


@given(st.text())
def test_any_text_can_be_shown(text: str) -> None:
    assert isinstance(load_core("zh")(text), str)
    assert load_core("en")(text) == text


@given(st.text(min_size=1).filter(lambda text: text.strip() == text))
def test_any_value_is_kept(value: str) -> None:
    translate = CoreTranslator({"There is no adapter {0}.": "没有适配器 {0}。"}).translate
    assert translate(f"There is no adapter {value}.") in (
        f"没有适配器 {value}。", f"There is no adapter {value}."
    )  # fmt: skip
