"""Readiness of revocation: what counts, what is only shown, and what the metrics say."""

from collections.abc import AsyncIterator, Iterable
from dataclasses import replace

import pytest

from fakes.service import FakeClock
from privyseal_acme.readiness import status_reason
from privyseal_ca.revocation.published import PublishedCrl, Watched
from privyseal_ca.revocation.watching import WatchReport
from privyseal_ca.sections import StatusSettings
from privyseal_ca.telemetry.metrics import Metrics
from privyseal_ca.web.watcher import Watcher

DAY = 86400


class Source:
    """CRLs that are known."""

    def __init__(self, *crls: PublishedCrl) -> None:
        self.crls = list(crls)

    def find(self, issuer_id: str, shard: int | None, *, delta: bool) -> PublishedCrl | None:
        wanted = (issuer_id, shard, delta)
        return next((crl for crl in self.crls if (crl.issuer_id, crl.shard, crl.delta) == wanted), None)

    def published(self) -> Iterable[PublishedCrl]:
        return self.crls

    def read(self, crl: PublishedCrl) -> AsyncIterator[bytes]:
        raise NotImplementedError


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def full(clock: FakeClock) -> PublishedCrl:
    return PublishedCrl("ab", None, False, 7, int(clock.now()), int(clock.now()) + DAY, 100, b"")


@pytest.fixture
def watcher(clock: FakeClock) -> Watcher:
    async def expected() -> Watched:
        return Watched({}, [], [])

    return Watcher(
        expected=expected, base_url="http://ca.example", settings=StatusSettings(), clock=clock, metrics=Metrics()
    )


def test_all_is_well(clock: FakeClock, full: PublishedCrl, watcher: Watcher) -> None:
    source = Source(full, replace(full, shard=3), replace(full, shard=3, delta=True))
    assert status_reason(source, clock, watcher, issuers=["ab"]) == ""


def test_there_is_no_crl_or_none_of_an_issuer(clock: FakeClock, full: PublishedCrl) -> None:
    assert status_reason(Source(), clock, None) == "there is no CRL"
    assert status_reason(Source(full), clock, None, issuers=["ab", "cd"]) == "there is no CRL of issuer cd"
    assert status_reason(Source(replace(full, shard=3)), clock, None, issuers=["ab"]) == "there is no CRL of issuer ab"


def test_one_scope_is_out_of_date(clock: FakeClock, full: PublishedCrl, watcher: Watcher) -> None:
    late = replace(full, shard=3, delta=True, next_update=int(clock.now()))
    reason = status_reason(Source(full, late), clock, watcher)
    assert reason.startswith("the CRL 3 delta of issuer ab is out of date since ")
    assert "the CRL full of issuer ab" in status_reason(Source(replace(full, next_update=0)), clock, watcher)


def test_nobody_misses_a_new_crl_of_an_issuer_that_has_ended(clock: FakeClock, full: PublishedCrl) -> None:
    source = Source(full, replace(full, issuer_id="cd", next_update=int(clock.now())))
    assert "of issuer cd" in status_reason(source, clock, None)
    assert status_reason(source, clock, None, ended={"cd"}) == ""


def test_what_the_watcher_says_counts_last(clock: FakeClock, full: PublishedCrl, watcher: Watcher) -> None:
    watcher.report = WatchReport({"issuing-1": ["http://ca.example/x cannot be reached"]}, clock.now())
    assert status_reason(Source(full), clock, watcher) == "issuing-1: http://ca.example/x cannot be reached"
    assert status_reason(Source(full), clock, None) == ""
    assert status_reason(Source(), clock, watcher) == "there is no CRL"
