"""The watcher against servers that serve what is good, old, wrong, cut, endless or nothing: each is found and named."""

import asyncio
import os
from base64 import b64decode
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from hashlib import sha256
from typing import Any
from urllib.parse import unquote

import pytest
import pytest_asyncio
from aiohttp import web
from cryptography.x509 import ocsp
from structlog.testing import capture_logs

from fakes.service import FakeClock
from fakes.statuses import DAY, FakeIssuer, unsigned
from privyseal_ca.errors import StoreUnavailableError
from privyseal_ca.issuance.pointers import crl_path
from privyseal_ca.revocation.published import Canary, PublishedCrl, Watched
from privyseal_ca.sections import StatusSettings
from privyseal_ca.telemetry.metrics import Metrics
from privyseal_ca.web import watcher as watcher_module
from privyseal_ca.web.watcher import Watcher

SHARD = 3
CANARY = 0xC0FFEE
GOOD_CACHE = "max-age=60, public, no-transform, must-revalidate"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Site:
    """A public URL that serves one issuer's status, and what its watcher expects there."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.issuer = FakeIssuer(clock.now())
        self.revoked_at = int(clock.now()) - 3600
        self.canaries = [self.canary(CANARY, self.revoked_at)]
        self.bodies: dict[str, bytes] = {}
        self.headers: dict[str, dict[str, str]] = {}
        self.handlers: dict[str, Handler] = {}
        self.asked: list[str] = []
        self.crls: dict[str, PublishedCrl] = {}
        self.away = False

    def canary(self, serial: int, revoked_at: int) -> Canary:
        return Canary(self.issuer.id, f"{serial:032x}", SHARD, revoked_at, revoked_at)

    async def start(self, runner: web.AppRunner) -> None:
        await runner.setup()
        tcp = web.TCPSite(runner, "127.0.0.1", 0)
        await tcp.start()
        self.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self.publish(7, [CANARY])

    @property
    def full(self) -> str:
        return crl_path(self.issuer.id, None)

    @property
    def part(self) -> str:
        return crl_path(self.issuer.id, SHARD)

    @property
    def delta(self) -> str:
        return crl_path(self.issuer.id, SHARD, delta=True)

    def publish(self, number: int, serials: list[int], *, delta: bool = False, serve: bool = True) -> None:
        """Have new CRLs expected, and served."""
        self.issuer.now = self.clock.now()
        made: list[tuple[str, int | None, bool, dict[str, Any]]] = [
            (self.full, None, False, {}),
            (self.part, SHARD, False, {"point": self.base_url + self.part}),
        ]
        if delta:
            made.append((self.delta, SHARD, True, {"point": self.base_url + self.part, "base": number - 1}))
        for path, shard, is_delta, options in made:
            der = self.issuer.crl(number, serials, this_update=0, **options)
            self.crls[path] = self.issuer.published(der, number=number, shard=shard, delta=is_delta)
            if serve:
                self.bodies[path] = der

    async def expected(self) -> Watched:
        if self.away:
            raise StoreUnavailableError("away")
        return Watched({self.issuer.id: self.issuer.der}, list(self.crls.values()), iter(self.canaries))

    async def handle(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        self.asked.append(path)
        if request.path.startswith("/ocsp"):
            path = f"/ocsp {request.method}"
        if path in self.handlers:
            return await self.handlers[path](request)
        if path.startswith("/ocsp"):
            return await self.answer(request)
        if path not in self.bodies:
            raise web.HTTPNotFound
        body = self.bodies[path]
        headers = {
            "Content-Type": "application/pkix-crl",
            "Cache-Control": GOOD_CACHE,
            "ETag": f'"{sha256(body).hexdigest()}"',
        } | self.headers.get(path, {})
        if request.headers.get("If-None-Match") == headers["ETag"]:
            return web.Response(status=304, headers=headers)
        return web.Response(body=body, headers=headers)

    async def answer(self, request: web.Request, **options: Any) -> web.Response:
        """The OCSP response for whatever is asked; a canary is revoked when the newest full CRL expected lists it."""
        if request.method == "POST":
            der = await request.read()
            headers = {}
        else:
            der = b64decode(unquote(request.raw_path.removeprefix("/ocsp/")), validate=True)
            headers = {"Cache-Control": GOOD_CACHE}
        asked = ocsp.load_der_ocsp_request(der)
        known = {int(canary.serial, 16): canary.revoked_at for canary in self.canaries}
        arguments = {"revoked_at": known.get(asked.serial_number)} | options
        body = self.issuer.response(asked.serial_number, asked.hash_algorithm.name, **arguments)
        return web.Response(body=body, content_type="application/ocsp-response", headers=headers)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest_asyncio.fixture
async def site(clock: FakeClock) -> AsyncIterator[Site]:
    made = Site(clock)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", made.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    try:
        await made.start(runner)
        yield made
    finally:
        await runner.cleanup()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def watcher(site: Site, clock: FakeClock, metrics: Metrics) -> Watcher:
    return make_watcher(site, clock, metrics)


def make_watcher(site: Site, clock: FakeClock, metrics: Metrics, **options: Any) -> Watcher:
    return Watcher(
        expected=site.expected,
        base_url=site.base_url,
        settings=StatusSettings(),
        clock=clock,
        metrics=metrics,
        names={site.issuer.id: "issuing-1"},
        **options,
    )


async def findings(watcher: Watcher) -> list[str]:
    report = await watcher.look()
    assert list(report.problems) == ["issuing-1"]
    return report.problems["issuing-1"]


def figure(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, {"issuer": "issuing-1"} | labels)


async def test_what_is_good_has_no_findings(watcher: Watcher, site: Site, clock: FakeClock, metrics: Metrics) -> None:
    clock.advance(100)
    assert watcher.reason() == ""
    assert await findings(watcher) == []
    assert watcher.reason() == ""
    for check in ("crl", "ocsp", "canary"):
        assert figure(metrics, "privyseal_watch_ok", check=check) == 1
    assert figure(metrics, "privyseal_served_age_seconds", what="crl") == 100
    assert figure(metrics, "privyseal_served_remaining_seconds", what="crl") == DAY - 100
    assert figure(metrics, "privyseal_served_age_seconds", what="ocsp") == 160
    assert figure(metrics, "privyseal_served_age_seconds", what="delta") is None
    # One that was revoked before the watcher began says nothing about the time that it takes.
    assert figure(metrics, "privyseal_revocation_visible_seconds", what="crl") is None
    assert metrics.registry.get_sample_value("privyseal_watch_finished_seconds") == clock.now()
    assert {path for path in site.asked if path.startswith("/crl/")} == {site.full, site.part}


async def test_delta_crls_are_watched_too(watcher: Watcher, site: Site, metrics: Metrics) -> None:
    site.publish(8, [CANARY], delta=True)
    assert await findings(watcher) == []
    assert figure(metrics, "privyseal_served_age_seconds", what="delta") == 0
    site.bodies[site.delta] = site.bodies[site.part]
    assert await findings(watcher) == [f"{site.base_url}{site.delta} is no delta CRL"]


async def test_a_missing_crl(watcher: Watcher, site: Site, metrics: Metrics) -> None:
    del site.bodies[site.part]
    found = await findings(watcher)
    assert f"{site.base_url}{site.part} is answered with HTTP status 404" in found
    assert any("is not seen in its CRLs" in problem for problem in found)
    assert figure(metrics, "privyseal_watch_ok", check="crl") == 0
    assert figure(metrics, "privyseal_watch_ok", check="canary") == 0
    assert figure(metrics, "privyseal_watch_ok", check="ocsp") == 1
    assert "HTTP status 404 (and 1 more)" in watcher.reason()


async def test_an_issuer_without_a_full_crl(watcher: Watcher, site: Site) -> None:
    del site.crls[site.full]
    assert "no full CRL was published" in await findings(watcher)


async def test_nobody_answers(site: Site, clock: FakeClock, metrics: Metrics) -> None:
    site.base_url = "http://127.0.0.1:1"
    found = await findings(make_watcher(site, clock, metrics))
    assert sum("cannot be reached" in problem for problem in found) == 4
    assert figure(metrics, "privyseal_served_age_seconds", what="crl") is None


async def test_an_old_copy_in_a_cache_is_found_when_it_may_no_longer_be_there(
    watcher: Watcher, site: Site, clock: FakeClock
) -> None:
    site.publish(8, [CANARY], serve=False)
    assert await findings(watcher) == []  # caches may have the one before for a minute
    clock.advance(70)
    assert await findings(watcher) == []
    clock.advance(7)
    found = await findings(watcher)
    assert found == [
        f"{site.base_url}{path} is an old one: number 7 after 8 was published" for path in (site.full, site.part)
    ]
    site.publish(8, [CANARY])
    assert await findings(watcher) == []


async def test_an_old_copy_is_found_though_there_is_a_new_crl_all_the_time(
    watcher: Watcher, site: Site, clock: FakeClock
) -> None:
    for number in range(8, 20):
        site.publish(number, [CANARY], serve=False)
        clock.advance(10)
        found = await findings(watcher)
    assert all("number 7 after 12 was published" in problem for problem in found)
    assert len(found) == 2


async def test_a_crl_that_is_not_refreshed(watcher: Watcher, site: Site, clock: FakeClock, metrics: Metrics) -> None:
    clock.advance(DAY + 1)
    found = await findings(watcher)
    assert any(f"{site.full} is out of date since" in problem for problem in found)
    assert figure(metrics, "privyseal_served_remaining_seconds", what="crl") == -1


async def test_another_issuers_crl_and_another_parts(watcher: Watcher, site: Site) -> None:
    site.bodies[site.full] = FakeIssuer(site.clock.now()).crl(7, [CANARY])
    site.bodies[site.part] = site.issuer.crl(7, [CANARY], point=f"{site.base_url}{crl_path(site.issuer.id, 4)}")
    found = await findings(watcher)
    assert f"{site.base_url}{site.full} is not signed by the issuer's key" in found
    assert f"{site.base_url}{site.part} is for another distribution point" in found


async def test_a_crl_that_lost_a_revocation(watcher: Watcher, site: Site) -> None:
    assert await findings(watcher) == []
    site.publish(8, [])
    (found,) = await findings(watcher)
    assert "is not seen in its CRLs" in found


@pytest.mark.parametrize(
    ("headers", "finding"),
    [
        ({"Cache-Control": "no-store"}, "may not be cached"),
        ({"Cache-Control": "public"}, "has no max-age"),
        ({"Content-Type": "text/html; charset=utf-8"}, "is not served as application/pkix-crl"),
    ],
)
async def test_headers_that_mislead_caches_and_clients(
    watcher: Watcher, site: Site, headers: dict[str, str], finding: str
) -> None:
    site.headers[site.full] = headers
    (found,) = await findings(watcher)
    assert found.startswith(f"{site.base_url}{site.full} {finding}")


async def test_garbage_never_comes_back_in_messages(watcher: Watcher, site: Site) -> None:
    site.bodies[site.full] = b"<html>TOPSECRET</html>"
    site.handlers["/ocsp GET"] = site.handlers["/ocsp POST"] = _text("TOPSECRET")
    found = await findings(watcher)
    assert f"{site.base_url}{site.full} is not a CRL" in found
    assert f"{site.base_url}/ocsp by GET is not an OCSP response" in found
    assert f"{site.base_url}/ocsp by POST is not an OCSP response" in found
    assert "TOPSECRET" not in watcher.reason() + "".join(found)


def _text(text: str) -> Handler:
    async def handle(_: web.Request) -> web.Response:
        return web.Response(text=text)

    return handle


async def test_an_endless_crl_costs_what_the_real_one_may(watcher: Watcher, site: Site) -> None:
    sent = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(bytes(64 * 1024))
            sent += 64 * 1024

    site.handlers[site.full] = endless
    found = await findings(watcher)
    assert any(f"{site.full} is longer than" in problem for problem in found)
    assert sent < 32 * 1024 * 1024


async def test_a_slow_answer(site: Site, clock: FakeClock, metrics: Metrics) -> None:
    released = asyncio.Event()

    async def slow(_: web.Request) -> web.Response:
        await released.wait()
        return web.Response()

    site.handlers[site.part] = slow
    try:
        found = await findings(make_watcher(site, clock, metrics, timeout=0.2))
    finally:
        released.set()
    assert any(f"{site.part} does not arrive within" in problem for problem in found)


async def test_redirects_are_followed_and_counted(watcher: Watcher, site: Site) -> None:
    async def moved(request: web.Request) -> web.Response:
        site.bodies["/moved"] = site.bodies[site.full]
        raise web.HTTPFound("/moved")

    async def for_ever(request: web.Request) -> web.Response:
        raise web.HTTPFound(request.path)

    site.handlers[site.full] = moved
    assert await findings(watcher) == []
    site.handlers[site.full] = for_ever
    assert any("is redirected more than 3 times" in problem for problem in await findings(watcher))
    assert site.asked.count(site.full) <= 1 + 4


@pytest.mark.parametrize("target", ["ftp://x/", "http://[", "file:///etc/passwd"])
async def test_redirects_to_nowhere(watcher: Watcher, site: Site, target: str) -> None:
    async def lost(_: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": target})

    site.handlers[site.full] = lost
    assert any("cannot be fetched" in problem for problem in await findings(watcher))


async def test_a_proxy_of_the_environment_is_not_asked(
    watcher: Watcher, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert await findings(watcher) == []


async def test_a_wrong_ocsp_answer_is_named_by_method(watcher: Watcher, site: Site, metrics: Metrics) -> None:
    async def stale(request: web.Request) -> web.Response:
        return await site.answer(request, this_update=-DAY, next_update=-1)

    site.handlers["/ocsp GET"] = stale
    (found,) = await findings(watcher)
    assert found.startswith(f"{site.base_url}/ocsp by GET is out of date since")
    assert figure(metrics, "privyseal_watch_ok", check="ocsp") == 0
    assert figure(metrics, "privyseal_watch_ok", check="canary") == 1
    assert figure(metrics, "privyseal_served_remaining_seconds", what="ocsp") == -1


async def test_ocsp_that_says_good_for_what_was_revoked(watcher: Watcher, site: Site, metrics: Metrics) -> None:
    async def good(request: web.Request) -> web.Response:
        return await site.answer(request, revoked_at=None)

    site.handlers["/ocsp POST"] = good
    (found,) = await findings(watcher)
    assert "is not seen in OCSP" in found
    assert figure(metrics, "privyseal_watch_ok", check="canary") == 0


async def test_ocsp_that_is_not_to_be_cached(watcher: Watcher, site: Site) -> None:
    async def uncached(request: web.Request) -> web.Response:
        response = await site.answer(request)
        response.headers["Cache-Control"] = "no-cache"
        return response

    site.handlers["/ocsp GET"] = site.handlers["/ocsp POST"] = uncached
    assert await findings(watcher) == [
        f"{site.base_url}/ocsp by GET may not be cached, as its Cache-Control says"
    ]  # nobody caches a POST


async def test_an_error_instead_of_an_answer(watcher: Watcher, site: Site) -> None:
    async def later(_: web.Request) -> web.Response:
        body = unsigned(ocsp.OCSPResponseStatus.TRY_LATER)
        return web.Response(body=body, content_type="application/ocsp-response")

    site.handlers["/ocsp GET"] = later
    found = await findings(watcher)
    assert f"{site.base_url}/ocsp by GET is the error try_later" in found
    # For a canary that is fresh, those who serve a copy may not have the answer yet.
    site.canaries = [site.canary(CANARY, int(site.clock.now()) - 10)]
    assert await findings(watcher) == []


async def test_a_fresh_canary_is_measured(watcher: Watcher, site: Site, clock: FakeClock, metrics: Metrics) -> None:
    async def not_yet(request: web.Request) -> web.Response:
        return await site.answer(request, revoked_at=None)

    assert await findings(watcher) == []
    site.asked.clear()
    await watcher.look_for_canaries()
    assert site.asked == []  # nothing is waited for

    fresh = site.canary(0xBEEF, int(clock.now()))
    site.canaries = [fresh]
    site.handlers["/ocsp GET"] = not_yet
    clock.advance(2)
    await watcher.look_for_canaries()
    assert figure(metrics, "privyseal_revocation_visible_seconds", what="crl") is None
    site.publish(8, [CANARY, 0xBEEF])
    clock.advance(1)
    await watcher.look_for_canaries()
    assert figure(metrics, "privyseal_revocation_visible_seconds", what="crl") == 3
    assert figure(metrics, "privyseal_revocation_visible_seconds", what="ocsp") is None
    del site.handlers["/ocsp GET"]
    clock.advance(4)
    await watcher.look_for_canaries()
    assert figure(metrics, "privyseal_revocation_visible_seconds", what="crl") == 3
    assert figure(metrics, "privyseal_revocation_visible_seconds", what="ocsp") == 7
    site.asked.clear()
    await watcher.look_for_canaries()
    assert site.asked == []
    assert await findings(watcher) == []


async def test_a_canary_that_does_not_become_visible(watcher: Watcher, site: Site, clock: FakeClock) -> None:
    site.canaries = [site.canary(0xBEEF, int(clock.now()))]
    assert await findings(watcher) == []  # not yet
    clock.advance(77)
    (found,) = await findings(watcher)
    assert "is not seen in its CRLs" in found
    site.asked.clear()
    await watcher.look_for_canaries()
    assert site.asked == []  # from now on at the normal pace
    site.publish(8, [0xBEEF])
    clock.advance(3)
    assert await findings(watcher) == []


async def test_the_time_of_one_that_came_late_is_shown(
    watcher: Watcher, site: Site, clock: FakeClock, metrics: Metrics
) -> None:
    site.canaries = [site.canary(0xBEEF, int(clock.now()))]
    await watcher.look()
    clock.advance(600)
    site.publish(8, [0xBEEF])
    await watcher.look()
    assert figure(metrics, "privyseal_revocation_visible_seconds", what="crl") == 600


async def test_canaries_that_ended_are_not_looked_for(
    watcher: Watcher, site: Site, clock: FakeClock, metrics: Metrics
) -> None:
    assert await findings(watcher) == []
    site.canaries = [site.canary(CANARY, int(clock.now()) - 2 * DAY)]
    site.publish(8, [])
    assert await findings(watcher) == []
    assert figure(metrics, "privyseal_watch_ok", check="crl") == 1
    assert figure(metrics, "privyseal_watch_ok", check="canary") is None
    assert figure(metrics, "privyseal_watch_ok", check="ocsp") is None


async def test_a_database_that_is_away_does_not_end_the_watch(watcher: Watcher, site: Site) -> None:
    site.away = True
    with pytest.raises(StoreUnavailableError):
        await watcher.look()
    site.away = False
    await watcher.look()
    site.away = True
    assert await findings(watcher) == []
    del site.bodies[site.full]
    assert await findings(watcher)


async def test_a_watch_that_ended_is_a_problem_itself(watcher: Watcher, clock: FakeClock) -> None:
    await watcher.look()
    clock.advance(4 * 60)
    assert watcher.reason() == ""
    clock.advance(1)
    assert "not looked at for too long" in watcher.reason()


async def test_only_beginning_and_end_of_a_problem_are_logged(watcher: Watcher, site: Site) -> None:
    body = site.bodies.pop(site.full)
    with capture_logs() as logs:
        for _ in range(3):
            await watcher.look()
        site.bodies[site.full] = body
        for _ in range(3):
            await watcher.look()
    told = [(line["log_level"], line["check"]) for line in logs if line["event"].startswith("what is served")]
    assert sorted(told) == [("info", "canary"), ("info", "crl"), ("warning", "canary"), ("warning", "crl")]


async def test_an_issuer_that_is_gone_leaves_no_figures(watcher: Watcher, site: Site, metrics: Metrics) -> None:
    await watcher.look()
    assert b'issuer="issuing-1"' in metrics.render()

    async def nothing() -> Watched:
        return Watched({}, [], [])

    watcher._expected = nothing
    report = await watcher.look()
    assert report.problems == {}
    assert b'issuer="issuing-1"' not in metrics.render()


async def test_without_a_name_the_certificate_says_it(site: Site, clock: FakeClock, metrics: Metrics) -> None:
    watcher = make_watcher(site, clock, metrics)
    watcher._names = {}
    assert list((await watcher.look()).problems) == ["Status Tests CA"]


async def test_crls_of_issuers_that_nobody_knows_are_left_alone(watcher: Watcher, site: Site) -> None:
    site.crls["other"] = replace(site.crls[site.full], issuer_id="ff" * 20)
    assert await findings(watcher) == []


async def test_a_long_crl_is_fetched_again_only_when_it_changed(watcher: Watcher, site: Site) -> None:
    site.publish(8, [CANARY, *range(2**100, 2**100 + 12_000)])
    assert len(site.bodies[site.full]) > watcher_module._LARGE
    assert await findings(watcher) == []
    sent = 0
    answer = site.handle

    async def counting(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        del site.handlers[site.full]
        response = await answer(request)
        sent += response.status == 304
        return response

    site.handlers[site.full] = counting
    assert await findings(watcher) == []
    assert sent == 1
    site.publish(9, [CANARY])
    assert await findings(watcher) == []


async def test_a_crl_too_long_to_be_parsed_is_known_by_its_hash(
    watcher: Watcher, site: Site, clock: FakeClock, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher_module, "_PARSED", 100)
    clock.advance(10)
    assert await findings(watcher) == []
    assert figure(metrics, "privyseal_served_age_seconds", what="crl") == 10
    site.bodies[site.full] = os.urandom(200)
    assert any("is not what was published" in problem for problem in await findings(watcher))


async def test_many_that_cannot_be_reached_take_a_bounded_time(
    site: Site, clock: FakeClock, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher_module, "_ROUND_SECONDS", 0.3)
    released = asyncio.Event()

    async def slow(_: web.Request) -> web.Response:
        await released.wait()
        return web.Response()

    for shard in range(100, 120):
        crl = replace(site.crls[site.part], shard=shard)
        path = crl_path(site.issuer.id, shard)
        site.crls[path], site.handlers[path] = crl, slow
    try:
        async with asyncio.timeout(5):
            found = await findings(make_watcher(site, clock, metrics))
    finally:
        released.set()
    assert any("was not fetched: others took too long" in problem for problem in found)
    assert found[-1].startswith("and ")
    assert len(found) == 21


async def test_run_looks_and_goes_on_after_failures(
    site: Site, clock: FakeClock, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher = Watcher(
        expected=site.expected,
        base_url=site.base_url,
        settings=StatusSettings(watch_interval=0.05),
        clock=clock,
        metrics=metrics,
    )
    outcomes: asyncio.Queue[str] = asyncio.Queue()
    look = watcher.look

    async def told() -> Any:
        try:
            report = await look()
        except Exception as error:
            outcomes.put_nowait(type(error).__name__)
            raise
        outcomes.put_nowait("report")
        return report

    async def until(outcome: str) -> None:
        while await outcomes.get() != outcome:
            pass

    monkeypatch.setattr(watcher, "look", told)
    site.away = True
    task = asyncio.create_task(watcher.run())
    try:
        async with asyncio.timeout(10):
            await until("StoreUnavailableError")
            site.away = False
            await until("report")
            site.crls[site.full] = None  # type: ignore[assignment]  # a defect must not end the watch either
            await until("AttributeError")
            site.publish(9, [CANARY])
            await until("report")
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
