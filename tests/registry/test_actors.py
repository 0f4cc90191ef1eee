"""Actors, parsed from the text of an event."""

from __future__ import annotations

import pytest

from trunkline.registry.actors import Actor, key_actor


def test_owner_of_a_key_is_authenticated() -> None:
    actor = Actor.parse(key_actor("4k2mw0qz", "Ada Lovelace"))
    assert (actor.owner, actor.authenticated, actor.key) == ("Ada Lovelace", True, "4k2mw0qz")


@pytest.mark.parametrize(
    ("text", "owner"),
    [
        ("system:ada", "ada"),
        ("system:key/4k2mw0qz ada", "key/4k2mw0qz ada"),
        ("ada", "ada"),
        ("key/ ada", "key/ ada"),
        ("key/4k2mw0qz", "key/4k2mw0qz"),
        ("key/NOTANID1 ada", "key/NOTANID1 ada"),
    ],
)
def test_other_actors_are_not_authenticated(text: str, owner: str) -> None:
    actor = Actor.parse(text)
    assert (actor.owner, actor.authenticated) == (owner, False)


@pytest.mark.parametrize("other", ["system:ada", "key/4k2mw0qz ADA", "ａｄａ", "system: ada "])
def test_spelling_does_not_make_two_persons(other: str) -> None:
    assert Actor.parse("key/1k2mw0qz Ada").is_same_person(Actor.parse(other))


def test_two_owners_are_two_persons() -> None:
    assert not Actor.parse("system:ada").is_same_person(Actor.parse("system:adam"))
