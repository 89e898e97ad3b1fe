"""dns-01, dns-account-01, CAA and the resolver against Knot DNS and scripted servers. Promises P10, P12."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pycares
import pytest

from fakes.challenge_servers import ACCOUNT_URL, KEY_AUTHORIZATION, Pauses, challenge_task
from fakes.dns import Knot, free_port, knot, scripted_dns
from privyseal_acme.validation.channel import ChannelPool
from privyseal_acme.validation.dns01 import expected_value
from privyseal_acme.validation.validator import Outcome, Validator
from privyseal_ca.clock import SystemClock
from privyseal_ca.sections import ValidationSettings

pytestmark = pytest.mark.filterwarnings("error::ResourceWarning")

VALUE = expected_value(KEY_AUTHORIZATION).decode()


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Knot]:
    with knot(tmp_path_factory.mktemp("knot"), zones=("test", "corp"), broken=("broken.test",)) as server:
        yield server


def validator(*resolvers: str, sleep: Pauses | None = None, **settings: Any) -> Validator:
    settings = {"resolvers": resolvers, "timeout": 5, "attempts": 1, **settings}
    return Validator(ValidationSettings(**settings), clock=SystemClock(), sleep=sleep or Pauses())


async def check(type_: str, value: str, *resolvers: str, wildcard: bool = False, **settings: Any) -> Outcome:
    checker = validator(*resolvers, **settings)
    outcome = await checker.check(challenge_task(type_, value, wildcard=wildcard))
    await checker.close()
    text = json.dumps(outcome.evidence)
    assert len(text) < 4096
    assert text.isascii()
    return outcome


def problem(outcome: Outcome) -> tuple[str, str]:
    assert not outcome.valid
    assert outcome.problem is not None
    return outcome.problem.type, outcome.problem.detail


async def test_dns_01(names: Knot) -> None:
    names.set("_acme-challenge.a.test", "TXT", f'"{VALUE}"')
    outcome = await check("dns-01", "a.test", names.address)
    assert outcome.valid
    assert outcome.evidence["dns"][0]["name"] == "_acme-challenge.a.test"
    assert outcome.evidence["dns"][0]["records"] == [VALUE]


async def test_any_one_of_several_values_counts(names: Knot) -> None:
    """A name and its wildcard are validated side by side."""
    names.set("_acme-challenge.b.test", "TXT", '"other"', f'"{VALUE[:20]}" "{VALUE[20:]}"', '"third"')
    assert (await check("dns-01", "b.test", names.address)).valid


async def test_a_cname_is_followed(names: Knot) -> None:
    names.set("delegated.test", "TXT", f'"{VALUE}"')
    names.set("_acme-challenge.c.test", "CNAME", "delegated.test.")
    outcome = await check("dns-01", "c.test", names.address)
    assert outcome.valid
    assert outcome.evidence["dns"][0]["records"] == ["CNAME delegated.test", VALUE]


async def test_an_answer_too_long_for_a_datagram_comes_over_tcp(names: Knot) -> None:
    filler = [f'"{index:03d}{"x" * 100}"' for index in range(60)]
    names.set("_acme-challenge.long.test", "TXT", *filler, f'"{VALUE}"')
    assert (await check("dns-01", "long.test", names.address)).valid


async def test_no_more_than_a_hundred_records_are_looked_at(names: Knot) -> None:
    names.set("_acme-challenge.many.test", "TXT", *(f'"{index:03d}"' for index in range(300)))
    outcome = await check("dns-01", "many.test", names.address)
    assert problem(outcome)[0] == "incorrectResponse"
    assert outcome.evidence["dns"][0]["count"] == 100


async def test_a_changed_record_is_seen_at_once(names: Knot) -> None:
    """Nothing remembers an answer, however long its time to live, and no time to wait passes between the attempts."""
    name = "_acme-challenge.changing.test"
    names.set(name, "TXT", '"old"', ttl=86400)
    pauses = Pauses(lambda: names.set(name, "TXT", f'"{VALUE}"'))
    checker = validator(names.address, attempts=2, sleep=pauses)
    assert (await checker.check(challenge_task("dns-01", "changing.test"))).valid
    assert len(pauses.seconds) == 1
    await checker.close()
    checker = validator(names.address)
    for expected, value in ((False, "old"), (True, VALUE)) * 50:
        names.set(name, "TXT", f'"{value}"', ttl=86400)
        outcome = await checker.check(challenge_task("dns-01", "changing.test"))
        assert outcome.valid is expected
    await checker.close()


async def test_a_new_record_is_seen_at_once(names: Knot) -> None:
    name = "_acme-challenge.new.test"
    pauses = Pauses(lambda: names.set(name, "TXT", f'"{VALUE}"'))
    outcome = await check("dns-01", "new.test", names.address, attempts=2, sleep=pauses)
    assert outcome.valid
    assert outcome.evidence["earlier"] == ["dns"]


async def test_questions_at_once_do_not_disturb_each_other(names: Knot) -> None:
    for index in range(0, 200, 2):
        names.set(f"_acme-challenge.n{index}.test", "TXT", f'"{VALUE}"')
    checker = validator(names.address)
    tasks = [challenge_task("dns-01", f"n{index}.test") for index in range(200)]
    outcomes = await asyncio.gather(*(checker.check(task) for task in tasks))
    assert [outcome.valid for outcome in outcomes] == [True, False] * 100
    await checker.close()


async def test_a_channel_is_shared_for_a_while_and_closed_by_its_last_user(names: Knot) -> None:
    """A source port that stays the same could be found and answered in the server's name."""
    pool = ChannelPool((names.address,), 1)
    first = pool.borrow()
    assert all(pool.borrow() is first for _ in range(63))
    second = pool.borrow()
    assert second is not first
    for _ in range(63):
        pool.give_back(first)
    result, error = await first.ask("ns.test", pycares.QUERY_TYPE_A)
    assert result is not None
    assert error is None
    pool.give_back(first)
    with pytest.raises(RuntimeError, match="closed"):
        first.ask("ns.test", pycares.QUERY_TYPE_A)
    waiting = second.ask("ns.test", pycares.QUERY_TYPE_A)
    pool.close()
    pool.give_back(second)
    assert (await waiting)[1] == pycares.errno.ARES_ECANCELLED


async def test_the_system_gets_a_new_channel_for_each_attempt() -> None:
    pool = ChannelPool((), 1)
    first, second = pool.borrow(), pool.borrow()
    assert first is not second
    pool.give_back(first)
    pool.give_back(second)
    pool.close()


async def test_wrong_values_are_shown_in_a_short_printable_form(names: Knot) -> None:
    long = "\\001\\195\\169\\034" + "z" * 200
    names.set("_acme-challenge.wrong.test", "TXT", f'"{long}"', '"b"', '"c"', '"d"', '"e"')
    outcome = await check("dns-01", "wrong.test", names.address)
    type_, detail = problem(outcome)
    assert type_ == "incorrectResponse"
    assert "and 2 more" in detail
    assert "z" * 70 not in detail
    assert detail.isprintable()
    assert detail.isascii()


@pytest.mark.parametrize(
    ("value", "clause"),
    [
        ("missing.test", "No TXT record was found at _acme-challenge.missing.test."),
        ("a.broken.test", "DNS lookup of TXT for _acme-challenge.a.broken.test failed: SERVFAIL."),
        ("elsewhere.example", "failed: REFUSED."),
        ("a" * 63 + "." + "b" * 63 + "." + "c" * 63 + "." + "d" * 54 + ".test", "a name DNS cannot carry"),
    ],
)
async def test_failures_are_tried_again_and_then_explained(names: Knot, value: str, clause: str) -> None:
    pauses = Pauses()
    outcome = await check("dns-01", value, names.address, attempts=3, sleep=pauses, retry_delay=0.25)
    type_, detail = problem(outcome)
    assert type_ == "dns"
    assert clause in detail
    assert pauses.seconds == [0.25, 0.5]
    assert outcome.evidence["attempts"] == 3


async def test_dns_account_01(names: Knot) -> None:
    name = "_h5zlfqoi7m5jaytl._acme-challenge.acc.test"
    names.set(name, "TXT", f'"{VALUE}"')
    assert ACCOUNT_URL == "https://ca.example/acct/123"
    assert (await check("dns-account-01", "acc.test", names.address)).valid
    assert not (await check("dns-01", "acc.test", names.address)).valid


@pytest.mark.parametrize("type_", ["dns-01", "dns-account-01", "unheard-of-01"])
async def test_no_dns_challenge_proves_an_address(names: Knot, type_: str) -> None:
    """RFC 8738 section 7."""
    outcome = await check(type_, "127.0.0.1", names.address, attempts=3)
    assert problem(outcome)[0] == "serverInternal"
    assert outcome.evidence["attempts"] == 1


async def test_resolvers_over_ipv6_and_behind_a_dead_one(names: Knot) -> None:
    names.set("_acme-challenge.six.test", "TXT", f'"{VALUE}"')
    assert (await check("dns-01", "six.test", f"[::1]:{names.port}")).valid
    assert (await check("dns-01", "six.test", f"127.0.0.1:{free_port()}", names.address)).valid


async def test_no_resolver_at_all() -> None:
    type_, detail = problem(await check("dns-01", "x.test", f"127.0.0.1:{free_port()}"))
    assert type_ == "dns"
    assert "no DNS server reached" in detail


async def test_a_search_list_never_completes_a_name(names: Knot) -> None:
    """Names are absolute; `test` would otherwise answer for `host`."""
    names.set("_acme-challenge.host.test", "TXT", f'"{VALUE}"')
    assert not (await check("dns-01", "host", names.address)).valid


async def test_a_silent_resolver_costs_a_bounded_time() -> None:
    asked = 0

    def script(_question: dns.message.Message, _transport: str) -> None:
        nonlocal asked
        asked += 1

    async with scripted_dns(script) as address:
        started = asyncio.get_running_loop().time()
        type_, detail = problem(await check("dns-01", "x.test", address, timeout=0.6))
        assert asyncio.get_running_loop().time() - started < 2
    assert type_ == "dns"
    assert "_acme-challenge.x.test" in detail
    assert asked == 2


async def test_a_lost_datagram_is_asked_again() -> None:
    asked = 0

    def script(question: dns.message.Message, _transport: str) -> bytes | None:
        nonlocal asked
        asked += 1
        if asked == 1:
            return None
        answer = dns.message.make_response(question)
        answer.answer.append(dns.rrset.from_text(question.question[0].name, 60, "IN", "TXT", f'"{VALUE}"'))
        return answer.to_wire()

    async with scripted_dns(script) as address:
        assert (await check("dns-01", "x.test", address, timeout=1.5)).valid
    assert asked == 2


def _huge(question: dns.message.Message) -> dns.message.Message:
    answer = dns.message.make_response(question)
    texts = [f'"{index:05d}"' for index in range(2500)]
    answer.answer.append(dns.rrset.from_text(question.question[0].name, 60, "IN", "TXT", *texts))
    return answer


def _truncated(question: dns.message.Message) -> dns.message.Message:
    answer = dns.message.make_response(question)
    answer.flags |= dns.flags.TC
    return answer


def _other_question(question: dns.message.Message) -> dns.message.Message:
    other = dns.message.make_query("victim.test.", "TXT", id=question.id)
    answer = dns.message.make_response(other)
    answer.answer.append(dns.rrset.from_text("victim.test.", 60, "IN", "TXT", f'"{VALUE}"'))
    return answer


def _other_id(question: dns.message.Message) -> dns.message.Message:
    answer = dns.message.make_response(question)
    answer.id = question.id ^ 1
    answer.answer.append(dns.rrset.from_text(question.question[0].name, 60, "IN", "TXT", f'"{VALUE}"'))
    return answer


@pytest.mark.parametrize(
    "wire",
    [
        lambda question, transport: (_huge if transport == "tcp" else _truncated)(question).to_wire(max_size=65535),
        lambda question, _transport: _other_question(question).to_wire(),
        lambda question, _transport: _other_id(question).to_wire(),
        lambda _question, _transport: b"\xff" * 600,
        lambda question, _transport: question.to_wire()[:2] + b"\x81\x80" + b"\xff" * 40,
        lambda _question, _transport: b"",
        lambda question, _transport: _truncated(question).to_wire(),
        lambda question, transport: None if transport == "tcp" else _truncated(question).to_wire(),
    ],
    ids=["huge", "other-question", "other-id", "garbage", "bad-counts", "empty", "always-truncated", "tcp-silent"],
)
async def test_answers_that_no_server_should_give(wire: Any) -> None:
    async with scripted_dns(wire) as address:
        outcome = await check("dns-01", "x.test", address, timeout=1)
    assert problem(outcome)[0] in {"dns", "incorrectResponse"}


async def test_a_hostile_answer_with_too_many_addresses(names: Knot) -> None:
    def script(question: dns.message.Message, transport: str) -> bytes:
        answer = dns.message.make_response(question)
        if transport == "udp":
            answer.flags |= dns.flags.TC
        elif question.question[0].rdtype == dns.rdatatype.A:
            texts = [f"127.{index >> 8}.{index & 255}.1" for index in range(3000)]
            answer.answer.append(dns.rrset.from_text(question.question[0].name, 60, "IN", "A", *texts))
        return answer.to_wire(max_size=65535)

    async with scripted_dns(script) as address:
        outcome = await check("http-01", "x.test", address, http_port=free_port())
    assert problem(outcome)[0] == "connection"
    assert len(outcome.evidence["connections"]) == 4


# CAA, off by default.


async def caa(names: Knot, value: str, *, wildcard: bool = False, **settings: Any) -> Outcome:
    names.set(f"_acme-challenge.{value}", "TXT", f'"{VALUE}"')
    settings = {"caa": True, "caa_identities": ("ca.corp",), "attempts": 3, **settings}
    return await check("dns-01", value, names.address, wildcard=wildcard, **settings)


async def test_caa_is_not_asked_unless_it_is_turned_on(names: Knot) -> None:
    names.set("off.test", "CAA", '0 issue ";"')
    assert (await caa(names, "off.test", caa=False)).valid
    assert problem(await caa(names, "off.test"))[0] == "caa"


async def test_caa_no_records_allow(names: Knot) -> None:
    outcome = await caa(names, "deep.below.free.test")
    assert outcome.valid
    asked = [each["name"] for each in outcome.evidence["dns"] if each["type"] == "CAA"]
    assert asked == ["deep.below.free.test", "below.free.test", "free.test", "test"]


async def test_caa_the_nearest_set_counts(names: Knot) -> None:
    names.set("owned.test", "CAA", '0 issue "other.corp"')
    names.set("ours.owned.test", "CAA", '0 issue "CA.corp"')
    assert (await caa(names, "x.ours.owned.test")).valid
    outcome = await caa(names, "x.owned.test")
    assert problem(outcome)[0] == "caa"
    assert outcome.evidence["attempts"] == 1
    assert outcome.evidence["caa"] == "owned.test"


async def test_caa_through_a_cname(names: Knot) -> None:
    names.set("policy.test", "CAA", '0 issue "other.corp"')
    names.set("alias.test", "CNAME", "policy.test.")
    assert problem(await caa(names, "alias.test"))[0] == "caa"


async def test_caa_issuewild_is_for_wildcards_only(names: Knot) -> None:
    names.set("wild.test", "CAA", '0 issue "ca.corp"', '0 issuewild ";"')
    assert (await caa(names, "wild.test")).valid
    assert problem(await caa(names, "wild.test", wildcard=True))[0] == "caa"


async def test_caa_account_and_method(names: Knot) -> None:
    names.set("bound.test", "CAA", f'0 issue "ca.corp; accounturi={ACCOUNT_URL}; validationmethods=http-01,dns-01"')
    names.set("foreign.test", "CAA", f'0 issue "ca.corp; accounturi={ACCOUNT_URL}4"')
    names.set("method.test", "CAA", '0 issue "ca.corp; validationmethods=http-01"')
    assert (await caa(names, "bound.test")).valid
    assert problem(await caa(names, "foreign.test"))[0] == "caa"
    assert problem(await caa(names, "method.test"))[0] == "caa"


async def test_caa_that_cannot_be_read_forbids(names: Knot) -> None:
    """RFC 8659 section 3: no answer is not an empty answer."""

    def script(question: dns.message.Message, _transport: str) -> bytes:
        answer = dns.message.make_response(question)
        if question.question[0].rdtype == dns.rdatatype.TXT:
            answer.answer.append(dns.rrset.from_text(question.question[0].name, 60, "IN", "TXT", f'"{VALUE}"'))
        else:
            answer.set_rcode(dns.rcode.SERVFAIL)
        return answer.to_wire()

    async with scripted_dns(script) as address:
        outcome = await check("dns-01", "x.test", address, caa=True, caa_identities=("ca.corp",), attempts=2)
    assert problem(outcome)[0] == "dns"
    assert outcome.evidence["attempts"] == 2


async def test_caa_with_too_many_records_forbids(names: Knot) -> None:
    names.set("flood.test", "CAA", *(f'0 issue "ca.corp; n={index}"' for index in range(150)))
    assert problem(await caa(names, "flood.test"))[0] == "caa"
