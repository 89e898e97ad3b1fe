"""A watcher of what is really served at the public URLs: CRLs, OCSP, and whether revocations become visible in both.

It asks as a relying party does, from outside, through whatever proxies and caches stand there, and trusts nothing that it
gets. Each round fetches every CRL and asks for each canary by GET and by POST. A fresh canary is looked for every second
until it is seen, which measures how long a revocation takes.
"""

import asyncio
from base64 import b64encode
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final
from urllib.parse import quote

import structlog
from aiohttp import ClientSession
from cryptography import x509
from cryptography.x509.oid import NameOID

from privyseal_ca.clock import Clock, rfc3339
from privyseal_ca.errors import PrivySealError
from privyseal_ca.issuance.pointers import crl_path
from privyseal_ca.revocation.published import Canary, PublishedCrl, Watched
from privyseal_ca.revocation.verify import (
    MAX_OCSP,
    SeenCrl,
    SeenResponse,
    crl_problems,
    inspect_crl,
    inspect_ocsp,
    ocsp_request,
)
from privyseal_ca.revocation.watching import EVERYWHERE, Floors, Scope, Sightings, WatchReport, Where, scope_of
from privyseal_ca.sections import StatusSettings
from privyseal_ca.telemetry.metrics import Metrics
from privyseal_ca.web.fetching import Bounds, Fetched, fetch, new_session
from privyseal_ca.web.watch_figures import Findings, WatchFigures

_log = structlog.get_logger("watcher")

_PARSED: Final = 64 * 1024 * 1024
_LARGEST: Final = 256 * 1024 * 1024
#: How much longer than the newest CRL one that is served may be, in octets, beside twice its size.
_SLACK: Final = 1024 * 1024
#: From this many octets on, a CRL is checked on another thread, and not fetched again when its ETag is the same.
_LARGE: Final = 256 * 1024
_AT_ONCE: Final = 4
_ROUND_SECONDS: Final = 60.0
_TICK_SECONDS: Final = 1.0
_START_SECONDS: Final = 5.0
#: What publishing may take beside the interval at which revocations are looked for, clocks and the network included.
_PATIENCE: Final = 15.0
#: To the queries for one canary.
_ANSWERS: Final = 2
_OCSP_REQUEST: Final = "application/ocsp-request"
_OCSP_RESPONSE: Final = "application/ocsp-response"
_PLACES: Final[Mapping[Where, str]] = {"crl": "its CRLs", "ocsp": "OCSP"}


class Watcher:
    """Watches what is served below ``base_url``.

    Args:
        expected: what is to be found there. When it fails, what it said last is watched on.
        base_url: the public URL of the plain listener, without a slash at the end.
        names: of issuers, by id, for metrics and messages; the common names of those that are not in it.
        timeout: seconds that one answer may take.
    """

    def __init__(
        self,
        *,
        expected: Callable[[], Awaitable[Watched]],
        base_url: str,
        settings: StatusSettings,
        clock: Clock,
        metrics: Metrics,
        names: Mapping[str, str] | None = None,
        session_factory: Callable[[], ClientSession] = new_session,
        timeout: float = 20.0,
    ) -> None:
        self._expected = expected
        self._base_url = base_url
        self._interval = settings.watch_interval
        self._canary_lifetime = settings.canary_lifetime
        self._clock = clock
        self._names = names or {}
        self._session_factory = session_factory
        self._timeout = timeout
        self._allowance = settings.interval + settings.max_age + _PATIENCE
        self._known: Watched | None = None
        self._issuers: dict[str, x509.Certificate] = {}
        self._floors = Floors(self._allowance)
        self._sightings = Sightings()
        #: The CRLs that were found last.
        self._seen: dict[Scope, _Remembered] = {}
        self._figures = WatchFigures(metrics)
        self.report: WatchReport | None = None

    def reason(self) -> str:
        """Why what is served cannot be relied upon; empty when it can, or when no round was finished yet."""
        if self.report is None:
            return ""
        if self._clock.now() - self.report.checked_at > 3 * self._interval + _ROUND_SECONDS:
            return "what is served was not looked at for too long"
        return self.report.summary

    async def run(self) -> None:
        """Watch for ever."""
        loop = asyncio.get_running_loop()
        next_round = loop.time() + min(_START_SECONDS, self._interval)
        while True:
            await asyncio.sleep(min(_TICK_SECONDS, self._interval))
            try:
                if loop.time() >= next_round:
                    next_round = loop.time() + self._interval
                    await self.look()
                else:
                    await self.look_for_canaries()
            except PrivySealError as error:
                _log.warning("watching is not possible", error=str(error))
            except Exception:  # noqa: BLE001 (nobody waits for this task: watching must not end unnoticed)
                _log.exception("watching failed")

    async def look(self) -> WatchReport:
        """One round.

        Raises:
            PrivySealError: what is to be found has never been known.
        """
        watched = await self._learn()
        visit = await self._visit(watched.crls, watched.canaries)
        complete = {crl.issuer_id for crl in watched.crls if crl.shard is None and not crl.delta}
        for issuer_id in self._issuers.keys() - complete:
            visit.findings[issuer_id].add("crl", "no full CRL was published")
        self._note_sightings(visit, watched.canaries)
        for canary in watched.canaries:
            self._judge(visit, canary)
        self.report = self._figures.finish(visit.findings.values(), self._clock.now())
        return self.report

    async def look_for_canaries(self) -> None:
        """Look for those canaries that are fresh and were not seen yet; nothing is judged.

        Raises:
            PrivySealError: what is to be found has never been known.
        """
        watched = await self._learn()
        waited_for = self._sightings.waited_for(watched.canaries, self._clock.now())
        if waited_for:
            wanted = {scope for canary in waited_for for scope in _scopes(canary)}
            visit = await self._visit([crl for crl in watched.crls if scope_of(crl) in wanted], waited_for)
            self._note_sightings(visit, waited_for)

    async def _learn(self) -> "_Expected":
        """What must be found now."""
        try:
            watched = await self._expected()
        except PrivySealError:
            # What is served must stay good while the database is away (promise P7), so it is watched on.
            if self._known is None:
                raise
            watched = self._known
        else:
            watched = self._known = Watched(dict(watched.issuers), tuple(watched.crls), tuple(watched.canaries))
        now = self._clock.now()
        self._issuers = {key: x509.load_der_x509_certificate(der) for key, der in watched.issuers.items()}
        crls = [crl for crl in watched.crls if crl.issuer_id in self._issuers]
        canaries = [
            canary
            for canary in watched.canaries
            if canary.issuer_id in self._issuers and now < canary.issued_at + self._canary_lifetime
        ]
        scopes = {scope_of(crl) for crl in crls}
        self._seen = {scope: seen for scope, seen in self._seen.items() if scope in scopes}
        self._floors.learn(crls, now)
        self._sightings.learn(canaries, now)
        return _Expected(crls, canaries)

    async def _visit(self, crls: Sequence[PublishedCrl], canaries: Sequence[Canary]) -> "_Visit":
        """Fetch and check ``crls``, and the answers for ``canaries``."""
        async with self._session_factory() as session:
            visit = _Visit(
                session,
                deadline=asyncio.get_running_loop().time() + _ROUND_SECONDS,
                timeout=self._timeout,
                findings={issuer_id: Findings(self._name(issuer_id)) for issuer_id in self._issuers},
            )
            await asyncio.gather(
                *(self._look_at_crl(visit, crl, canaries) for crl in crls),
                *(self._look_at_canary(visit, canary) for canary in canaries),
            )
        return visit

    async def _look_at_crl(self, visit: "_Visit", crl: PublishedCrl, canaries: Sequence[Canary]) -> None:
        findings, scope = visit.findings[crl.issuer_id], scope_of(crl)
        url = self._base_url + crl_path(crl.issuer_id, crl.shard, delta=crl.delta)
        before = self._seen.get(scope)
        wanted = [canary for canary in canaries if canary.issuer_id == crl.issuer_id]
        serials = frozenset(int(canary.serial, 16) for canary in wanted)
        if before is not None and before.serials != serials:
            before = None
        longest = 2 * crl.size + _SLACK
        fetched = await visit.fetch(
            url,
            keep=min(longest, _PARSED),
            most=min(longest, _LARGEST),
            etag=before.etag if before is not None and crl.size >= _LARGE else "",
        )
        if fetched.failure:
            findings.add("crl", f"{url} {fetched.failure}")
            return
        for problem in _header_problems(fetched, "application/pkix-crl"):
            findings.add("crl", f"{url} {problem}")
        if before is not None and (fetched.unchanged or fetched.sha256 == before.crl.sha256):
            seen = before.crl
        elif fetched.body is None:
            seen = self._recognised(scope, fetched, wanted)
        else:
            seen = await self._inspected(crl, fetched.body, serials)
        self._seen[scope] = _Remembered(fetched.etag, serials, seen)
        visit.crls[scope] = seen
        now = self._clock.now()
        for problem in (*seen.problems, *crl_problems(seen, least=self._floors.least(scope), now=now)):
            findings.add("crl", f"{url} {problem}")
        if seen.this_update:
            findings.found("delta" if crl.delta else "crl", seen.this_update, seen.next_update)

    def _recognised(self, scope: Scope, fetched: Fetched, canaries: Sequence[Canary]) -> SeenCrl:
        """A CRL that is too long to be parsed here, known by its hash."""
        crl = self._floors.with_digest(scope, fetched.sha256)
        if crl is None:
            return SeenCrl(fetched.sha256, problems=(f"has {fetched.size} octets, and is not what was published",))
        listed = frozenset(int(canary.serial, 16) for canary in canaries if canary.revoked_at <= crl.this_update)
        return SeenCrl(crl.sha256, crl.number, crl.this_update, crl.next_update, listed)

    async def _inspected(self, crl: PublishedCrl, der: bytes, serials: frozenset[int]) -> SeenCrl:
        inspect = partial(
            inspect_crl,
            der,
            issuer=self._issuers[crl.issuer_id],
            shard=crl.shard,
            delta=crl.delta,
            # A delta CRL has the scope of its base (RFC 5280 section 5.2.4).
            url=self._base_url + crl_path(crl.issuer_id, crl.shard),
            serials=serials,
        )
        return await asyncio.to_thread(inspect) if len(der) >= _LARGE else inspect()

    async def _look_at_canary(self, visit: "_Visit", canary: Canary) -> None:
        """Ask for its status as most clients do, by GET with SHA-1, and as RFC 9919 wants it, by POST with SHA-256."""
        visit.findings[canary.issuer_id].watched = True
        issuer, serial = self._issuers[canary.issuer_id], int(canary.serial, 16)
        url = f"{self._base_url}/ocsp"
        by_get, by_post = (ocsp_request(issuer, serial, hash_name) for hash_name in ("sha1", "sha256"))
        encoded = quote(b64encode(by_get), safe="")
        answer = await visit.fetch(f"{url}/{encoded}", keep=MAX_OCSP, most=MAX_OCSP)
        self._take_answer(visit, canary, "sha1", answer)
        answer = await visit.fetch(url, keep=MAX_OCSP, most=MAX_OCSP, post=by_post, content_type=_OCSP_REQUEST)
        self._take_answer(visit, canary, "sha256", answer)

    def _take_answer(self, visit: "_Visit", canary: Canary, hash_name: str, fetched: Fetched) -> None:
        findings, now = visit.findings[canary.issuer_id], self._clock.now()
        which = f"{self._base_url}/ocsp by {'GET' if hash_name == 'sha1' else 'POST'}"
        if fetched.failure or fetched.body is None:
            findings.add("ocsp", f"{which} {fetched.failure}")
            return
        seen = inspect_ocsp(
            fetched.body,
            issuer=self._issuers[canary.issuer_id],
            serial=int(canary.serial, 16),
            hash_name=hash_name,
            now=now,
        )
        problems = list(seen.problems)
        if seen.status == "error":
            if self._is_young(canary) and fetched.content_type == _OCSP_RESPONSE:
                return  # those who serve from a copy may not know the certificate yet
        else:
            visit.responses.setdefault(canary.serial, []).append(seen)
            findings.found("ocsp", seen.this_update, seen.next_update)
        # What is answered to a POST nobody caches.
        problems += _header_problems(fetched, _OCSP_RESPONSE, cached=hash_name == "sha1" and seen.status != "error")
        for problem in problems:
            findings.add("ocsp", f"{which} {problem}")

    def _note_sightings(self, visit: "_Visit", canaries: Sequence[Canary]) -> None:
        """Record which canaries are seen, and how long it took when that is new."""
        now = self._clock.now()
        for canary in canaries:
            for where in EVERYWHERE:
                if visit.shows(canary, where):
                    seconds = self._sightings.see(canary, where, now)
                    if seconds is not None:
                        self._figures.visible(self._name(canary.issuer_id), where, seconds)

    def _judge(self, visit: "_Visit", canary: Canary) -> None:
        """A revocation must be visible after a while, and stay so."""
        for where in EVERYWHERE:
            if not visit.shows(canary, where) and not self._is_young(canary):
                text = f"the canary that was revoked at {rfc3339(canary.revoked_at)} is not seen in {_PLACES[where]}"
                visit.findings[canary.issuer_id].add("canary", text)

    def _is_young(self, canary: Canary) -> bool:
        return self._clock.now() - canary.revoked_at <= self._allowance

    def _name(self, issuer_id: str) -> str:
        if issuer_id in self._names:
            return self._names[issuer_id]
        common_names = self._issuers[issuer_id].subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return str(common_names[0].value) if common_names else issuer_id


@dataclass(frozen=True, slots=True)
class _Expected:
    """What must be found."""

    crls: Sequence[PublishedCrl]
    canaries: Sequence[Canary]


@dataclass(frozen=True, slots=True)
class _Remembered:
    """A CRL that was found, its ETag, and the serials that were looked up in it."""

    etag: str
    serials: frozenset[int]
    crl: SeenCrl


class _Visit:
    """What is fetched in one go, a few at a time, and what came of it."""

    def __init__(
        self, session: ClientSession, *, deadline: float, timeout: float, findings: dict[str, Findings]
    ) -> None:
        self._session = session
        self._deadline = deadline
        self._timeout = timeout
        self._gate = asyncio.Semaphore(_AT_ONCE)
        self.findings = findings
        self.crls: dict[Scope, SeenCrl] = {}
        #: By serial.
        self.responses: dict[str, list[SeenResponse]] = {}

    async def fetch(
        self, url: str, *, keep: int, most: int, etag: str = "", post: bytes | None = None, content_type: str = ""
    ) -> Fetched:
        """As :func:`privyseal_ca.web.fetching.fetch`, within the time that is left."""
        async with self._gate:
            left = self._deadline - asyncio.get_running_loop().time()
            bounds = Bounds(keep, most, min(left, self._timeout))
            return await fetch(self._session, url, bounds, etag=etag, post=post, content_type=content_type)

    def shows(self, canary: Canary, where: Where) -> bool:
        """Whether ``canary`` is seen as revoked everywhere it must be."""
        if where == "ocsp":
            responses = self.responses.get(canary.serial, ())
            return len(responses) == _ANSWERS and all(
                seen.status == "revoked" and seen.revoked_at == canary.revoked_at for seen in responses
            )
        found = [self.crls.get(scope) for scope in _scopes(canary)]
        return all(seen is not None and int(canary.serial, 16) in seen.listed for seen in found)


def _scopes(canary: Canary) -> set[Scope]:
    """The complete CRLs that must list ``canary``."""
    return {(canary.issuer_id, canary.shard, False), (canary.issuer_id, None, False)}


def _header_problems(fetched: Fetched, content_type: str, *, cached: bool = True) -> Iterator[str]:
    """What caches and clients would take wrongly (RFC 2585 section 3, RFC 9919 section 5)."""
    if not fetched.unchanged and fetched.content_type != content_type:
        yield f"is not served as {content_type}"
    directives = {part.strip().partition("=")[0].lower() for part in fetched.cache_control.split(",")}
    if cached and directives & {"no-store", "no-cache"}:
        yield "may not be cached, as its Cache-Control says"
    elif cached and "max-age" not in directives:
        yield "has no max-age in its Cache-Control"
