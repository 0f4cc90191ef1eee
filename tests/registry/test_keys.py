"""API keys: what is stored, which are valid, and what a pattern covers."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, select

from forks import alone
from trunkline.errors import NotFoundError, UsageError
from trunkline.refs import Ref
from trunkline.registry import keys as module
from trunkline.registry.keys import check_pattern
from trunkline.registry.records import KeyRecord
from trunkline.registry.registry import Registry
from trunkline.registry.tables import Table

NOW = datetime(2030, 1, 1, tzinfo=UTC)
GRAMMAR = re.compile(r"\*|base|[a-z][a-z0-9-]{0,39}/(\*|[a-z][a-z0-9-]{0,63})", re.ASCII)

domains = st.from_regex(r"[a-c][a-c0-9-]{0,2}", fullmatch=True)
adapters = st.builds("{}/{}".format, domains, domains)
names = adapters | st.just("base")
patterns = st.just("*") | st.builds("{}/*".format, domains) | names
any_text = st.text(st.characters(exclude_categories=()))


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[datetime], None]:
    """``at(time)`` sets the clock that decides expiry."""

    def at(time: datetime) -> None:
        monkeypatch.setattr(module, "utc_now", lambda: time)

    return at


@pytest.fixture
def statements(registry: Registry) -> Iterator[list[str]]:
    """Every statement that the registry executes from now on."""
    sent: list[str] = []
    engine = registry.sessions.engines.reading

    def note(connection: object, cursor: object, statement: str, *more: object) -> None:
        sent.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    yield sent
    event.remove(engine, "before_cursor_execute", note)


# ------------------------------------------------------------------------------- creating


def test_a_key_has_an_id_and_a_secret(registry: Registry) -> None:
    record, plain = registry.keys.create("ada")
    prefix, id, secret = plain.split("-", 2)
    assert (prefix, id, len(id), len(secret)) == ("tl", record.id, 8, 43)


def test_a_key_may_use_everything_by_default(registry: Registry) -> None:
    assert registry.keys.create("ada")[0].adapters == ("*",)


@pytest.mark.dialect
def test_create_returns_the_stored_record(registry: Registry) -> None:
    until = datetime(2099, 1, 1, 12, tzinfo=timezone(timedelta(hours=-5)))
    record, plain = registry.keys.create(
        "ada", ["medical/*", "base", "medical/*"], role="admin", expires=until
    )
    assert (record.owner, record.adapters, record.admin, record.expires, record.removed) == (
        "ada",
        ("medical/*", "base"),
        True,
        until,
        None,
    )
    assert registry.keys.authenticate(plain) == record
    assert registry.keys.list() == [record]


def test_no_row_holds_a_key_or_its_secret(registry: Registry) -> None:
    record, plain = registry.keys.create("ada", role="admin")
    registry.keys.remove(record.id)
    with registry.sessions.engines.reading.connect() as connection:
        rows = [connection.execute(select(table)).all() for table in Table.metadata.sorted_tables]
    assert record.id in repr(rows)
    assert plain.split("-", 2)[2] not in repr(rows)


def test_neither_key_nor_secret_is_in_the_file(registry: Registry, database: Path) -> None:
    plains = [registry.keys.create("ada", role="admin")[1] for _ in range(3)]
    for plain in plains:
        registry.keys.authenticate(plain)
    registry.keys.remove(plains[0].split("-")[1])
    files = [path.read_bytes() for path in database.parent.glob("registry.db*")]
    registry.close()
    files.append(database.read_bytes())
    assert plains[0].split("-")[1].encode() in files[-1]
    for content in files:
        assert all(plain.split("-", 2)[2].encode() not in content for plain in plains)


def test_creation_and_removal_are_events_without_the_secret(registry: Registry) -> None:
    record, plain = registry.keys.create("ada", ["medical/*"], actor="root")
    registry.keys.remove(record.id)
    removed, created = registry.events.list(subject=f"key/{record.id}")
    assert (created.kind, created.actor, created.detail) == (
        "key.created",
        "root",
        {"owner": "ada", "adapters": ["medical/*"], "role": "tester", "expires": None},
    )
    assert (removed.kind, removed.detail) == ("key.removed", {"owner": "ada"})
    assert removed.actor.startswith("system:")
    assert plain.split("-", 2)[2] not in repr((created, removed))


def test_no_adapter_can_be_named_like_a_keys_subject(registry: Registry) -> None:
    for _ in range(20):
        with pytest.raises(UsageError):
            Ref("key", registry.keys.create("ada")[0].id)


@pytest.mark.parametrize(
    "owner", ["", " ", "a" * 81, "a\nb", "a\0", "\x1b[31m", "\u202egro", "\ud800"]
)
def test_an_unprintable_owner_is_refused(registry: Registry, owner: str) -> None:
    with pytest.raises(UsageError, match="owner of a key"):
        registry.keys.create(owner)


def test_an_owner_may_be_written_in_any_script(registry: Registry) -> None:
    assert registry.keys.create("Łukasz 様")[0].owner == "Łukasz 様"


@pytest.mark.parametrize(
    ("expires", "reason"),
    [
        (datetime(2099, 1, 1), "no time zone"),
        (datetime(2020, 1, 1, tzinfo=UTC), "in the past"),
        (datetime.max.replace(tzinfo=timezone(timedelta(hours=-5))), "out of range"),
    ],
)
def test_an_invalid_expiry_is_refused(registry: Registry, expires: datetime, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        registry.keys.create("ada", expires=expires)
    assert caught.value.hint


def test_adapters_given_as_one_text_are_refused(registry: Registry) -> None:
    with pytest.raises(UsageError, match="are a list"):
        registry.keys.create("ada", "*")


def test_a_refused_key_is_not_stored(registry: Registry) -> None:
    with pytest.raises(UsageError):
        registry.keys.create("ada", ["medical/*", "medical/icd10@3"])
    assert (registry.keys.list(), registry.events.list()) == ([], [])


# ------------------------------------------------------------------------- authentication


def test_a_wrong_secret_is_not_authenticated(registry: Registry) -> None:
    plain = registry.keys.create("ada")[1]
    other = registry.keys.create("bob")[1]
    assert registry.keys.authenticate(plain[:12] + other[12:]) is None
    assert registry.keys.authenticate(plain[:-1] + ("A" if plain[-1] != "A" else "B")) is None


def test_the_hash_of_a_key_is_not_a_key(registry: Registry) -> None:
    plain = registry.keys.create("ada")[1]
    stored = hashlib.sha256(plain.encode()).hexdigest()
    assert registry.keys.authenticate(stored) is None


def test_secrets_are_compared_in_constant_time(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = registry.keys.create("ada")[1]
    monkeypatch.setattr(module.hmac, "compare_digest", lambda a, b: False)
    assert registry.keys.authenticate(plain) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tl-",
        "ключ",
        "\0",
        "tl-0aaaaaaa-" + "\0" * 43,
        "tl-0aaaaaaa-" + "\ud800" * 43,
        "tl-٠aaaaaaa-" + "a" * 43,
        "tl-0aaaaaaa-" + "a" * 43 + "\n",
        "tl-0aaaaaaa-" + "a" * 10_000_000,
        "a" * 10_000_000,
    ],
    ids=range(10),
)
def test_any_text_can_be_authenticated(registry: Registry, text: str) -> None:
    assert registry.keys.authenticate(text) is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(any_text)
def test_no_text_makes_the_lookup_fail(registry: Registry, text: str) -> None:
    assert registry.keys.authenticate(text) is None
    assert registry.keys.authenticate(f"tl-0aaaaaaa-{text}") is None


@pytest.mark.dialect
def test_authentication_is_one_query_by_an_index(
    registry: Registry, statements: list[str], explain: Callable[..., str]
) -> None:
    plain = registry.keys.create("ada")[1]
    statements.clear()
    registry.keys.authenticate(plain)
    (query,) = [text for text in statements if text.startswith("SELECT")]
    plan = explain(re.sub(r"\?|%\(\w+\)s(::\w+)?", f"'{plain[3:11]}'", query))
    assert re.search(r"USING INDEX|Index Scan using uq_api_keys_id", plan)


def test_unknown_keys_leave_no_rows(registry: Registry) -> None:
    for number in range(1000):
        assert registry.keys.authenticate(f"tl-0{number:07d}-{'a' * 43}") is None
    assert (registry.keys.list(), registry.events.list(), registry.requests.list()) == ([], [], [])


def test_a_key_is_valid_until_it_expires(
    registry: Registry, at: Callable[[datetime], None]
) -> None:
    at(NOW)
    until = (NOW + timedelta(hours=1)).astimezone(timezone(timedelta(hours=9)))
    plain = registry.keys.create("ada", expires=until)[1]
    at(until - timedelta(microseconds=1))
    assert registry.keys.authenticate(plain) is not None
    at(until)
    assert registry.keys.authenticate(plain) is None


# ------------------------------------------------------------------------------- removing


@pytest.mark.dialect
def test_a_removed_key_is_invalid_but_listed(registry: Registry) -> None:
    record, plain = registry.keys.create("ada")
    removed = registry.keys.remove(record.id)
    assert registry.keys.authenticate(plain) is None
    assert removed.removed is not None
    assert registry.keys.list() == [removed]


def test_a_key_is_removed_once(registry: Registry) -> None:
    id = registry.keys.create("ada")[0].id
    first = registry.keys.remove(id)
    assert registry.keys.remove(id) == first
    assert len(registry.events.list(subject=f"key/{id}")) == 2


@pytest.mark.parametrize("id", ["0aaaaaaa", "", "\ud800", "x" * 1000])
def test_removing_an_unknown_key_is_refused(registry: Registry, id: str) -> None:
    with pytest.raises(NotFoundError, match="no key") as caught:
        registry.keys.remove(id)
    assert "trunkline keys list" in (caught.value.hint or "")


def test_keys_are_listed_newest_first(registry: Registry) -> None:
    for owner in ("a", "b", "c"):
        registry.keys.create(owner)
    listed = registry.keys.list()
    assert [key.owner for key in listed] == ["c", "b", "a"]


def test_a_registry_has_keys_until_all_are_removed(registry: Registry) -> None:
    assert not registry.keys.has_any()
    ids = [registry.keys.create("ada")[0].id for _ in range(2)]
    registry.keys.remove(ids[0])
    assert registry.keys.has_any()
    registry.keys.remove(ids[1])
    assert not registry.keys.has_any()


def test_an_expired_key_still_means_that_there_are_keys(
    registry: Registry, at: Callable[[datetime], None]
) -> None:
    at(NOW)
    registry.keys.create("ada", expires=NOW + timedelta(days=1))
    at(NOW + timedelta(days=2))
    assert registry.keys.has_any()


def test_another_processs_key_is_valid_and_removed_at_once(registry: Registry, url: str) -> None:
    def elsewhere(work: str) -> str:
        opening = "import sys\nfrom trunkline.registry.registry import Registry\n"
        done = alone(f"{opening}registry = Registry.open(sys.argv[1])\n{work}", url)
        assert (done.code, done.error) == (0, "")
        return done.out

    plain = elsewhere("print(registry.keys.create('ada')[1])")
    key = registry.keys.authenticate(plain)
    assert key is not None
    elsewhere(f"registry.keys.remove({key.id!r})")
    assert registry.keys.authenticate(plain) is None


# ------------------------------------------------------------------------------- patterns


def key(*patterns: str) -> KeyRecord:
    return KeyRecord("0aaaaaaa", "ada", patterns, "tester", NOW, None, None)


@given(st.lists(patterns, max_size=4), names)
def test_a_key_may_use_what_its_patterns_match(patterns: list[str], name: str) -> None:
    expected = any(fnmatchcase(name, pattern) for pattern in patterns)
    assert key(*patterns).may_use(name) == expected


@given(patterns)
def test_every_valid_pattern_is_accepted(pattern: str) -> None:
    assert check_pattern(pattern) == pattern


@given(any_text | st.builds("{}{}".format, patterns, any_text))
def test_only_valid_patterns_are_accepted(text: str) -> None:
    def taken() -> bool:
        try:
            return check_pattern(text) == text
        except UsageError:
            return False

    assert taken() == (GRAMMAR.fullmatch(text) is not None)


@pytest.mark.parametrize(
    "pattern",
    [
        *("", "medical", "*/*", "**", "*/icd10", "medical/icd*", "medical/icd10@3", "medical/*@3"),
        *("base/", "base@1", "Medical/*", "medical/a/b", "medical/\n", "medical/*\n"),
        *("\ud800/*", "../*"),
    ],
)
def test_an_invalid_pattern_is_refused(registry: Registry, pattern: str) -> None:
    with pytest.raises(UsageError) as caught:
        registry.keys.create("ada", [pattern])
    assert caught.value.hint


@given(any_text)
def test_an_invalid_name_may_not_be_used(text: str) -> None:
    name = f"a/b@{text}"
    assert not key("*", "a/*", "a/b", name).may_use(name)
    assert not key("*").may_use(f"*{text}")


def test_an_admin_key_uses_only_what_its_patterns_match() -> None:
    admin = KeyRecord("0aaaaaaa", "ada", ("medical/*",), "admin", NOW, None, None)
    assert not admin.may_use("retail/department")
