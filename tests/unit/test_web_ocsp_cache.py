"""Answers that are kept: their bounds, their end, and that a change ends them."""

from hypothesis import given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict

from privyseal_ca.web.ocsp_cache import AnswerCache, Prepared


def prepared(serial: str = "01", *, until: float = 100, size: int = 10) -> Prepared:
    return Prepared(bytes(size), CIMultiDict(), bytes(32), 0, until, serial)


def test_an_answer_is_there_until_its_time() -> None:
    cache, answer = AnswerCache(), prepared(until=100)
    cache.put("a", answer)
    assert cache.get("a", 99.9) is answer
    assert cache.get("b", 0) is None
    assert cache.get("a", 100) is None
    assert (len(cache), cache.octets) == (0, 0)


def test_a_path_and_a_body_are_different_requests() -> None:
    cache, answer = AnswerCache(), prepared()
    cache.put("a", answer)
    assert cache.get(b"a", 0) is None


def test_a_change_drops_every_answer_of_its_serial() -> None:
    cache = AnswerCache()
    for request in ("a", b"a", "b"):
        cache.put(request, prepared("01"))
    other = prepared("02")
    cache.put("c", other)
    cache.forget(["01", "77"])
    assert [cache.get(request, 0) for request in ("a", b"a", "b", "c")] == [None, None, None, other]
    assert cache.changes == 1
    assert cache._by_serial.keys() == {"02"}


def test_what_was_not_asked_for_longest_goes_first() -> None:
    cache = AnswerCache(entries=3)
    for request in "abc":
        cache.put(request, prepared(request))
    cache.get("a", 0)
    cache.put("d", prepared("d"))
    assert [request for request in "abcd" if cache.get(request, 0)] == ["a", "c", "d"]


def test_octets_are_bounded() -> None:
    cache = AnswerCache(octets=100_000)
    for number in range(100):
        cache.put(str(number), prepared(str(number), size=10_000))
        assert cache.octets <= 100_000
    assert 5 <= len(cache) <= 10
    assert len(cache._by_serial) == len(cache)


def test_an_answer_that_is_too_large_is_not_kept() -> None:
    cache = AnswerCache(octets=10_000)
    cache.put("a", prepared(size=20_000))
    assert (len(cache), cache.octets) == (0, 0)


def test_long_requests_are_not_kept() -> None:
    cache = AnswerCache()
    cache.put(bytes(513), prepared())
    assert not len(cache)


@settings(max_examples=100)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("put"), st.integers(0, 15), st.integers(0, 5), st.integers(0, 20)),
            st.tuples(st.just("get"), st.integers(0, 15), st.integers(0, 20)),
            st.tuples(st.just("forget"), st.integers(0, 5)),
        ),
        max_size=60,
    )
)
def test_it_agrees_with_a_dictionary(steps: list[tuple[str, int, int, int]]) -> None:
    cache = AnswerCache(entries=8)
    model: dict[str, Prepared] = {}
    for step in steps:
        match step:
            case ("put", request, serial, until):
                model[str(request)] = prepared(str(serial), until=until)
                cache.put(str(request), model[str(request)])
            case ("get", request, now):
                found = cache.get(str(request), now)
                assert found is None or (found is model[str(request)] and found.until > now)
            case ("forget", serial):
                cache.forget([str(serial)])
                assert all(each.serial != str(serial) for each in cache._kept.values())
        assert len(cache) <= 8
        assert sum(map(len, cache._by_serial.values())) == len(cache)
        assert cache.octets == sum(1536 + len(key) + 10 for key in cache._kept)
