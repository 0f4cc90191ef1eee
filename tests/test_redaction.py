"""Secrets are removed from text, URLs, exceptions and logs; everything else stays readable."""

from __future__ import annotations

import html
import json
import logging
import re
import shlex
import traceback
import unicodedata
from base64 import b64encode
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trunkline.contracts import DatasetSpec
from trunkline.errors import TrunklineError, one_line
from trunkline.redaction import (
    redact,
    redact_exception,
    redact_logs,
    redact_source,
    redact_url,
    remember,
    remember_options,
    remember_url,
)
from trunkline.refs import shown

LEFT, RIGHT = "Kx9qZ7w", "Vb3mN5t"
ODD = st.text(alphabet="@:/?#%&=+[]\\ '\"`;,.~|<>ü☃", max_size=4)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://user:secret@db.example.org:5432/registry", "…@db.example.org:5432/registry"),
        ("postgresql://token@host/db", "…@host/db"),
        ("postgresql://host/db", "host/db"),
        ("postgresql://u:p@ss@host/db", "…"),
        ("postgresql://u:p/ss@host/db", "…@host/db"),
        ("postgresql://u:p@[::1]:5432/db", "…@[::1]:5432/db"),
        ("postgresql://host/db?password=secret&host=/run/pg", "host/db?host=/run/pg&…"),
        ("postgresql://user:secret/db", "…"),
        ("postgresql://host/db?password=a@b", "…"),
        ("postgresql://host/db;password=a", "host/db;…"),
        ("postgresql://host/db%26sslpassword%3Da", "host/db%26…"),
        ("postgresql://host/db&password=a@b", "…"),
        ("postgresql://host/monkey/turkey", "host/monkey/turkey"),
    ],
)
def test_url_is_shown_without_credentials(url: str, expected: str) -> None:
    assert redact_url(url) == f"postgresql://{expected}"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite:////home/me@work/registry.db", "sqlite:////home/me@work/registry.db"),
        ("sqlite+cipher://:secret@/x.db?cipher=aes", "sqlite+cipher://…@/x.db?…"),
        ("postgresql:/user:secret@host/db", "postgresql:/…"),
        ("user:secret@host/db", "…"),
        ("s3://bucket/folder", "s3://bucket/folder"),
        ("s3://arn:aws:s3:eu:1:accesspoint/a", "s3://…"),
        ("https://bucket.example.org/a?X-Amz-Signature=0a1b", "https://bucket.example.org/a?…"),
        ("memory://store", "memory://store"),
        ("registry.db", "registry.db"),
        ("", ""),
    ],
)
def test_url_of_any_scheme_is_shown_without_credentials(url: str, expected: str) -> None:
    assert redact_url(url) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("can't reach https://me:secret@host/x now", "can't reach https://…@host/x now"),
        ("GET /v1?api_key=abc&n=1", "GET /v1?api_key=…&n=1"),
        ("s3://b/k?X-Amz-Credential=A&X-Amz-Signature=B", None),
        ("the key tl-1abcdefg-" + "A" * 43 + " is unknown", "the key tl-1abcdefg-… is unknown"),
        ("Authorization: Bearer abc123def456", "Authorization: Bearer …"),
        ("token hf_abcdefghij0123456789", "token hf_…"),
    ],
)
def test_secret_in_text_is_hidden_by_its_form(text: str, expected: str | None) -> None:
    assert redact(text) == (expected or "s3://b/k?X-Amz-Credential=…&X-Amz-Signature=…")


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:8000/v1/models/medical/icd10-chapter@3",
        "finance/naics@champion was moved",
        "medical/icd10@sha256:" + "0f" * 32,
        "hf:owner/repo@main",
        "pip install 'trunkline[postgres]'",
        "TRUNKLINE_REGISTRY=postgresql://USER@HOST/DATABASE",
        "Send the header Authorization: Bearer KEY",
        'curl -H "Authorization: Bearer $TRUNKLINE_API_KEY"',
        "hf_hub_download failed",
        "sqlite:////home/a@b/registry.db",
        "the ratio is 3:4 @ 12:30",
        "classification/registration/internationalization",
    ],
)
def test_text_without_a_secret_is_unchanged(text: str) -> None:
    assert redact(text) == text
    assert redact(text, foreign=True) == text


def test_remembered_secret_is_hidden_in_every_spelling() -> None:
    remember_url("postgresql://me:Kx9%40qZ/7w@host/db")
    for spelling in ("Kx9%40qZ/7w", "Kx9@qZ/7w", "Kx9%40qZ%2F7w", "qZ/7w"):
        assert spelling not in redact(f"failed with {spelling}", foreign=True)


@pytest.mark.parametrize("spell", [str, lambda text: quote(text, safe=""), ascii, repr, quote_plus])
def test_remembered_text_is_hidden_as_other_libraries_write_it(spell: Any) -> None:
    secret = "Zß9/q'ö\\x7"
    remember(secret)
    assert redact(f"failed with <{spell(secret).strip(chr(34))}>") == "failed with <…>"


def test_ordinary_word_as_password_is_hidden_in_foreign_text_only() -> None:
    remember("postgres")
    assert redact("pip install 'trunkline[postgres]'") == "pip install 'trunkline[postgres]'"
    assert redact("no role postgres on postgresql", foreign=True) == "no role … on postgresql"


def test_short_number_in_a_parameter_is_a_secret_only_by_its_name() -> None:
    remember_url("postgresql://host/db?connect_timeout=1&keepalives=20")
    assert redact("failed at step 1 of 20", foreign=True) == "failed at step 1 of 20"
    remember_url("postgresql://host/db?password=123")
    assert redact("no role 123", foreign=True) == "no role …"


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "TRUNKLINE_API_KEY", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD"]
)
def test_secret_of_the_environment_is_hidden(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, f"{LEFT}-{RIGHT}")
    assert LEFT not in TrunklineError(f"It failed with {LEFT}-{RIGHT}.").message


def test_proxy_of_the_environment_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:{LEFT}@{RIGHT}@proxy:3128")
    error = ValueError(f"Invalid port: '{LEFT}@{RIGHT}'")
    assert one_line(error) == "Invalid port: '…'"


def test_secret_among_options_is_hidden() -> None:
    remember_options(
        {"secret": f"{LEFT}-a", "client": {"endpoint": f"http://x:{RIGHT}@host", "region": "eu-1"}}
    )
    text = f"{LEFT}-a and {RIGHT} in eu-1"
    assert redact(text, foreign=True) == "… and … in eu-1"


@pytest.mark.parametrize("name", ["hf:https://u:{}@host/o/r", "hf:u:{}@main", "{}:x@y", "a?t={}"])
def test_name_of_a_source_is_shown_without_credentials(name: str) -> None:
    assert LEFT not in redact_source(name.format(LEFT))
    assert redact_source("hf:owner/repo@v1.0") == "hf:owner/repo@v1.0"


def test_value_that_is_cut_is_redacted_before() -> None:
    assert LEFT not in shown(f"https://somebody:{LEFT}{'x' * 60}@host")


def test_source_of_a_dataset_hides_credentials() -> None:
    spec = DatasetSpec(
        name="toy/x",
        description="x",
        task="classification",
        load=list,
        license="MIT",
        source=f"https://me:{LEFT}@host/a.csv?X-Amz-Signature={RIGHT}&part=2",
        grouping="x",
    )
    assert spec.source == "https://…@host/a.csv?X-Amz-Signature=…&part=2"


# --------------------------------------------------------------------------------- exceptions


class Stubborn(Exception):
    """An exception whose text can't be changed."""

    def __str__(self) -> str:
        return f"stubborn {LEFT}-{RIGHT}"


def chained() -> TrunklineError:
    """An error with a cause, a context, a group, a note and a file name that hold the secret."""
    secret = f"{LEFT}-{RIGHT}"
    try:
        try:
            try:
                raise Stubborn
            except Stubborn as inner:
                raise OSError(2, f"no {secret}", f"/x/{secret}") from inner
        except OSError as error:
            error.add_note(f"tried {secret}")
            group = ExceptionGroup("several", [ValueError(secret), KeyError(secret)])
            raise TrunklineError("It failed.") from group
    except TrunklineError as error:
        return error


def test_every_exception_of_a_chain_is_redacted() -> None:
    remember(f"{LEFT}-{RIGHT}")
    error = redact_exception(chained())
    text = "".join(traceback.format_exception(error))
    assert LEFT not in text
    assert "Stubborn" not in text or RIGHT not in text
    assert "OSError" in text or "FileNotFoundError" in text or "several" in text
    link: BaseException | None = error
    while link is not None:
        assert LEFT not in f"{link!s} {link!r} {vars(link)}"
        link = link.__cause__ or link.__context__


def test_notes_groups_and_causes_of_a_driver_are_redacted() -> None:
    secret = f"{LEFT}-{RIGHT}"
    remember(secret)

    class Wrapped(Exception):
        orig: BaseException

    error = Wrapped("failed")
    error.orig = ConnectionError(f"no login with {secret}")
    error.add_note(f"The key was {secret}.")
    group = ExceptionGroup("several", [ValueError(f"no {secret}"), error])
    redact_exception(group)
    assert LEFT not in "".join(traceback.format_exception(group))
    assert str(group.exceptions[0]) == "no …"
    assert error.__notes__ == ["The key was …."]
    assert str(error.orig) == "no login with …"


def test_log_record_is_redacted(caplog: pytest.LogCaptureFixture) -> None:
    before = logging.getLogRecordFactory()
    try:
        redact_logs()
        remember(f"{LEFT}-{RIGHT}")
        logging.getLogger("elsewhere").warning("no %s at %s", f"{LEFT}-{RIGHT}", "http://a:b@c/")
        try:
            raise ValueError(f"{LEFT}-{RIGHT}")
        except ValueError:
            logging.getLogger("elsewhere").exception("failed")
    finally:
        logging.setLogRecordFactory(before)
    assert LEFT not in caplog.text
    assert "no … at http://…@c/" in caplog.text


@pytest.mark.parametrize(
    "text", ["host=h user=u password={}", "Host=h;Pwd={};Uid=u", "AccountName=a;AccountKey={}"]
)
def test_connection_string_is_not_shown_and_remembered(text: str) -> None:
    given = text.format(f"{LEFT}-{RIGHT}")
    assert redact_url(given) == "…"
    remember_url(given)
    assert redact(f"no login with {LEFT}-{RIGHT}") == "no login with …"


# ------------------------------------------------------------------------- forms and variables

ODD_SECRET = f"{LEFT} ä☃😀<&>\"'\\/+=%{RIGHT}"
FORMS_IN_TEXT = {
    "URL": quote(ODD_SECRET, safe=""),
    "lower-case digits": re.sub("%..", lambda match: match[0].lower(), quote(ODD_SECRET, safe="")),
    "path of a URL": quote(ODD_SECRET),
    "form": quote_plus(ODD_SECRET),
    "twice": quote(quote(ODD_SECRET, safe=""), safe=""),
    "SQLAlchemy": quote(ODD_SECRET, safe=" +"),
    "JSON": json.dumps(ODD_SECRET),
    "JSON in UTF-8": json.dumps(ODD_SECRET, ensure_ascii=False),
    "HTML": html.escape(ODD_SECRET),
    "bytes": repr(ODD_SECRET.encode()),
    "ASCII": ascii(ODD_SECRET),
    "shell": shlex.quote(ODD_SECRET),
    "SQL": ODD_SECRET.replace("'", "''"),
    "decomposed": unicodedata.normalize("NFD", ODD_SECRET),
    "Latin-1": ODD_SECRET.encode().decode("latin-1"),
}


@pytest.mark.parametrize("form", FORMS_IN_TEXT)
@pytest.mark.parametrize("given", ["as it is", "encoded in a URL"])
def test_secret_is_hidden_in_whatever_way_a_library_escapes_it(form: str, given: str) -> None:
    encoded = quote(ODD_SECRET, safe="")
    remember_url(f"ftp://me:{encoded}@host") if "URL" in given else remember(ODD_SECRET)
    clean = redact(f"no login with {FORMS_IN_TEXT[form]}: refused", foreign=True)
    assert LEFT not in clean
    assert RIGHT not in clean
    assert clean.endswith(": refused")


VARIABLES = {
    "AWS_SECRET_ACCESS_KEY": "{}",
    "hf_token": "{}",
    "DB_PASS": "{}",
    "MYSQL_PWD": "{}",
    "STORE_KEY": "{}",
    "REGISTRY_PASSWORD_PROD": "{}",
    "AZURE_STORAGE_CONNECTION_STRING": "AccountName=me;AccountKey={};EndpointSuffix=host",
    "FSSPEC_S3": '{{"anon": false, "secret": "{}"}}',
}


@pytest.mark.parametrize("start", ["", "/", ".", "~"])
@pytest.mark.parametrize("name", VARIABLES)
def test_secret_of_a_variable_is_hidden_whatever_it_begins_with(
    name: str, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = f"{start}{LEFT}-{RIGHT}"
    monkeypatch.setenv(name, VARIABLES[name].format(secret))
    assert redact(f"no login with {secret}", foreign=True) == "no login with …"


@pytest.mark.parametrize("name", ["GOOGLE_APPLICATION_CREDENTIALS", "HF_TOKEN_PATH", "PWD"])
def test_path_in_a_variable_is_no_secret(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "credentials.json"
    file.touch()
    monkeypatch.setenv(name, str(file))
    assert str(file) in redact(f"can't read {file}", foreign=True)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/no/such.json")
    assert redact("no file /no/such.json", foreign=True) == "no file /no/such.json"


def test_basic_authorization_is_hidden() -> None:
    code = b64encode(f"me:{LEFT}-{RIGHT}".encode()).decode()
    assert redact(f"sent Authorization: Basic {code}") == "sent Authorization: Basic …"
    assert redact("Basic training lasts ten weeks") == "Basic training lasts ten weeks"


@pytest.mark.parametrize("form", ["{}", "auth={}", "'{}'", '{{"auth": "{}"}}', "git: {} failed"])
@given(
    user=st.from_regex(r"[\w.@+-]{2,12}", fullmatch=True),
    odd=st.text(alphabet="@:/?#%&=+[] üß☃", max_size=4),
)
def test_user_and_password_in_base64_are_hidden(form: str, user: str, odd: str) -> None:
    code = b64encode(f"{user}:{LEFT}{odd}{RIGHT}".encode()).decode()
    assert redact(form.format(code)) == form.format("…")


@given(st.binary(min_size=9, max_size=48))
def test_other_bytes_in_base64_are_left_as_they_are(data: bytes) -> None:
    code = b64encode(b"\0" + data).decode()
    assert redact(f"the digest {code} differs") == f"the digest {code} differs"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("npm_" + "a1B2" * 9, "npm_…"),
        ("pypi-" + "AgEIcHlwaS5vcmc" * 3, "pypi-…"),
        ("xoxb-1234567890-abcdefABCDEF", "xoxb-…"),
        ("AIza" + "Sy0_-" * 7, "AIza…"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dBjftJeZ4CVP", "eyJ…"),
        (
            "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\nend",
            "-----BEGIN RSA PRIVATE KEY-----…-----END RSA PRIVATE KEY-----\nend",
        ),
        ("-----BEGIN PRIVATE KEY-----\nMIIE", "-----BEGIN PRIVATE KEY-----…"),
    ],
)
def test_token_of_other_services_is_hidden(text: str, expected: str) -> None:
    assert redact(text) == expected


# --------------------------------------------------------------------------------- properties


FORMS = (
    "postgresql://me:{}@host:5432/db",
    "postgresql+psycopg://{}:x@host/db",
    "https://me:{}@host/v1",
    "http:/me:{}@host/v1",
    "sftp://me:{}@/folder",
    "https://host/a?sig={}",
)


@given(ODD, st.sampled_from(FORMS))
def test_no_part_of_any_password_is_shown(odd: str, form: str) -> None:
    url = form.format(f"{LEFT}{odd}{RIGHT}")
    assert LEFT not in redact_url(url)
    assert RIGHT not in redact_url(url)


@given(ODD, st.sampled_from(FORMS))
@example("@", FORMS[1])
def test_no_part_of_a_remembered_password_is_left_in_foreign_text(odd: str, form: str) -> None:
    url = form.format(f"{LEFT}{odd}{RIGHT}")
    remember_url(url)
    parts = [f"host {part!r}" for part in re.split("[@:/?#&=]", f"{LEFT}{odd}{RIGHT}")]
    for text in (url, repr(url), f"{LEFT}{odd}{RIGHT}", *parts):
        clean = redact(f"failed: {text}", foreign=True)
        assert LEFT not in clean
        assert RIGHT not in clean
