"""Slots that small queries share: each is given once, to one key set, until its group begins or its time is up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secureattn.deploy.server import places
from secureattn.deploy.server.places import Place, Places


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(places, "time", made)
    return made


@given(st.lists(st.tuples(st.sampled_from(["ann", "bob"]), st.sampled_from(["k1", "k2"]), st.integers(1, 8))))
def test_no_slot_is_given_twice_and_no_keys_meet(asked: list[tuple[str, str, int]]) -> None:
    slots, given_slots = Places(8, 60.0), dict[tuple[str, int], tuple[str, str]]()
    groups = dict[str, tuple[str, str]]()
    for client, keys, samples in asked:
        place = slots.give(client, keys, samples)
        assert slots.holds(client, keys, place)
        assert groups.setdefault(place.group, (client, keys)) == (client, keys)
        for slot in range(place.offset, place.offset + samples):
            assert 0 <= slot < 8
            assert (place.group, slot) not in given_slots
            given_slots[place.group, slot] = client, keys


def test_a_place_is_its_owners_and_as_it_was_given(clock: Clock) -> None:
    slots = Places(4, 2.0)
    place = slots.give("ann", "k", 2)
    assert slots.holds("ann", "k", place)
    assert not slots.holds("bob", "k", place)
    assert not slots.holds("ann", "other", place)
    assert not slots.holds("ann", "k", Place(place.group, place.offset, 3))
    assert not slots.holds("ann", "k", Place("0" * 32, place.offset, 2))
    slots.begin(place.group)
    assert not slots.holds("ann", "k", place)
    assert slots.give("ann", "k", 1).group != place.group


def test_a_group_waits_until_its_time_is_up_or_it_is_full(clock: Clock) -> None:
    slots = Places(4, 2.0)
    first = slots.give("ann", "k", 2)
    clock.now += 1
    assert slots.give("ann", "k", 1) == Place(first.group, 2, 1)
    assert slots.waits_s(first.group, 3) == pytest.approx(1.0)
    assert slots.waits_s(first.group, 4) == 0
    assert slots.waits_s("unknown", 1) == 0
    clock.now += 1
    assert slots.waits_s(first.group, 3) == 0
    assert slots.give("ann", "k", 1).group != first.group
    clock.now += 1000
    slots.give("ann", "k", 1)
    assert not slots.holds("ann", "k", first)
