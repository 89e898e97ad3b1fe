"""What a watcher remembers: which CRL number must be visible by when, and which canaries were seen."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from privyseal_ca.revocation.published import Canary, PublishedCrl
from privyseal_ca.revocation.watching import Floors, Sightings, WatchReport, scope_of

NOW = 1_800_000_000
FIRST = PublishedCrl("ab", 3, False, 1, NOW, NOW + 86400, 100, b"1")
SCOPE = scope_of(FIRST)


def crl(number: int, this_update: int) -> PublishedCrl:
    return replace(FIRST, number=number, this_update=this_update, sha256=str(number).encode())


def test_a_crl_must_be_seen_after_the_allowance() -> None:
    floors = Floors(76)
    floors.learn([FIRST], NOW + 75)
    assert floors.least(SCOPE) == 0
    floors.learn([FIRST], NOW + 76)
    assert floors.least(SCOPE) == 1
    assert floors.least(("ab", 4, False)) == 0


def test_scopes_that_are_gone_are_forgotten() -> None:
    floors = Floors(0)
    floors.learn([FIRST], NOW)
    floors.learn([], NOW)
    assert floors.least(SCOPE) == 0
    assert floors.with_digest(SCOPE, b"1") is None


def test_those_that_caches_may_have_are_known_by_their_hash() -> None:
    floors = Floors(60)
    for number, time in ((1, 0), (2, 50), (3, 100)):
        floors.learn([crl(number, NOW + time)], NOW + time)
    assert floors.with_digest(SCOPE, b"3") == crl(3, NOW + 100)
    assert floors.with_digest(SCOPE, b"2") == crl(2, NOW + 50)
    assert floors.with_digest(SCOPE, b"1") is None


@settings(max_examples=200, deadline=None)
@given(steps=st.lists(st.integers(1, 40), min_size=1, max_size=600), allowance=st.integers(0, 900))
def test_the_floor_is_never_above_what_is_due_and_never_falls(steps: list[int], allowance: int) -> None:
    floors, now, before, published = Floors(allowance), NOW, 0, []
    for number, step in enumerate(steps, start=1):
        now += step
        published.append(crl(number, now))
        floors.learn([published[-1]], now)
        due = max((each.number for each in published if each.this_update + allowance <= now), default=0)
        assert before <= floors.least(SCOPE) <= due
        before = floors.least(SCOPE)
    floors.learn([published[-1]], now + allowance)
    assert floors.least(SCOPE) == len(steps) or len(steps) > 256


def test_what_is_remembered_is_bounded_and_catches_up() -> None:
    floors = Floors(10_000)
    for number in range(1, 5_000):
        floors.learn([crl(number, NOW + number)], NOW + number)
    floors.learn([crl(5_000, NOW + 5_000)], NOW + 20_000)
    assert floors.least(SCOPE) == 256
    floors.learn([crl(5_000, NOW + 5_000)], NOW + 20_000)
    assert floors.least(SCOPE) == 5_000


def canary(serial: str, revoked_at: int) -> Canary:
    return Canary("ab", serial, 3, revoked_at, revoked_at)


def test_each_place_is_measured_once() -> None:
    sightings, fresh = Sightings(), canary("1", NOW)
    sightings.learn([fresh], NOW + 1)
    assert sightings.waited_for([fresh], NOW + 60) == [fresh]
    assert sightings.waited_for([fresh], NOW + 61) == []
    assert sightings.see(fresh, "crl", NOW + 3) == 3
    assert sightings.see(fresh, "crl", NOW + 4) is None
    assert sightings.waited_for([fresh], NOW + 4) == [fresh]
    assert sightings.see(fresh, "ocsp", NOW + 5) == 5
    assert sightings.waited_for([fresh], NOW + 5) == []


def test_one_that_is_old_when_it_is_heard_of_is_not_measured() -> None:
    sightings, old = Sightings(), canary("1", NOW)
    sightings.learn([old], NOW + 61)
    assert sightings.waited_for([old], NOW + 61) == []
    assert sightings.see(old, "crl", NOW + 62) is None


def test_a_clock_that_is_behind_gives_no_negative_time() -> None:
    sightings, ahead = Sightings(), canary("1", NOW + 2)
    sightings.learn([ahead], NOW)
    assert sightings.see(ahead, "crl", NOW) == 0


def test_those_that_are_replaced_are_forgotten() -> None:
    sightings = Sightings()
    for number in range(100):
        sightings.learn([canary(str(number), NOW)], NOW)
    assert len(sightings._unseen) == len(sightings._measured) == 1
    assert sightings.see(canary("5", NOW), "crl", NOW) is None


def test_the_summary_of_a_report() -> None:
    assert WatchReport({"a": [], "b": []}, NOW).summary == ""
    assert WatchReport({"a": [], "b": ["is bad"]}, NOW).summary == "b: is bad"
    assert WatchReport({"a": ["x"], "b": ["y", "z"]}, NOW).summary == "a: x (and 2 more)"
