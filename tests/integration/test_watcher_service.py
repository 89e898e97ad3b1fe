"""The whole service with a cache in front of its public URL, watched by itself."""

import http.client
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from fakes.service import RunningService, StartService
from privyseal_ca.revocation.watching import WatchReport
from privyseal_ca.store.canaries import canaries

_PASSED_ON = ("Content-Type", "Cache-Control", "ETag")


class Cache(ThreadingHTTPServer):
    """What stands in front of the plain listener: it passes requests on, or serves what it has, however old."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = ("127.0.0.1", 0)
        self.kept: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.frozen = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Cache

    def do_GET(self) -> None:
        if not (self.server.frozen and self.path in self.server.kept):
            self.server.kept[self.path] = self._asked("GET", None)
        self._reply(*self.server.kept[self.path])

    def do_POST(self) -> None:
        self._reply(*self._asked("POST", self.rfile.read(int(self.headers["Content-Length"]))))

    def _asked(self, method: str, body: bytes | None) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(*self.server.upstream, timeout=10)
        try:
            connection.request(method, self.path, body, {"Content-Type": self.headers.get("Content-Type", "")})
            response = connection.getresponse()
            headers = {name: response.headers[name] for name in _PASSED_ON if name in response.headers}
            return response.status, headers, response.read()
        finally:
            connection.close()

    def _reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 (the base class's name)
        """Nothing."""


@pytest.fixture
def cache() -> Iterator[Cache]:
    with Cache() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def service(start_service: StartService, cache: Cache) -> RunningService:
    service = start_service(server={"http_url": cache.url}, status={"interval": 60, "delta_crls": True})
    cache.upstream = ("127.0.0.1", service.service.http_port)
    return service


def look(service: RunningService) -> WatchReport:
    return service.call(service.service.publication.watcher.look())


def publish(service: RunningService) -> None:
    publication = service.service.publication
    service.call(publication.publish(full=False))
    service.call(publication.publish(full=True))
    service.call(publication.ocsp.follow())
    service.call(publication.prepare())


def readyz(service: RunningService, query: str = "") -> tuple[int, dict[str, str]]:
    url = f"http://127.0.0.1:{service.service.http_port}/readyz{query}"
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return response.status, json.load(response)["parts"]
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)["parts"]


def figure(service: RunningService, name: str, **labels: str) -> float | None:
    return service.service.context.metrics.registry.get_sample_value(name, labels)


def test_what_is_served_is_good_and_the_canary_is_seen(service: RunningService) -> None:
    report = look(service)
    assert "issuing-1" in report.problems
    assert report.summary == ""
    assert figure(service, "privyseal_watch_finished_seconds") == service.clock.now()
    for check in ("crl", "ocsp", "canary"):
        assert figure(service, "privyseal_watch_ok", issuer="issuing-1", check=check) == 1
    for what in ("crl", "delta", "ocsp"):
        assert figure(service, "privyseal_served_remaining_seconds", issuer="issuing-1", what=what) is not None
    # The first canary was revoked as the service began, and is seen at once by a clock that stands still.
    for what in ("crl", "ocsp"):
        assert figure(service, "privyseal_revocation_visible_seconds", issuer="issuing-1", what=what) == 0
    assert readyz(service)[1]["status"] == "ok"


def test_a_new_canary_becomes_visible(service: RunningService) -> None:
    look(service)
    (first,) = service.read(canaries)
    service.clock.advance(service.settings.status.canary_lifetime / 2)
    service.call(service.service.publication.renew())
    (second,) = service.read(canaries)
    assert second.serial != first.serial
    service.clock.advance(2)
    publish(service)
    service.call(service.service.publication.watcher.look_for_canaries())
    for what in ("crl", "ocsp"):
        seconds = figure(service, "privyseal_revocation_visible_seconds", issuer="issuing-1", what=what)
        assert seconds is not None
        assert seconds <= 2
    assert look(service).problems["issuing-1"] == []


def test_a_cache_that_serves_an_old_copy(service: RunningService, cache: Cache) -> None:
    assert look(service).summary == ""
    cache.frozen = True
    service.clock.advance(service.settings.status.canary_lifetime / 2)
    service.call(service.service.publication.renew())
    publish(service)
    service.clock.advance(150)
    problems = look(service).problems["issuing-1"]
    assert any("is an old one: number" in problem for problem in problems)
    assert any("is not seen in its CRLs" in problem for problem in problems)
    assert figure(service, "privyseal_watch_ok", issuer="issuing-1", check="canary") == 0

    # ACME goes on, and whoever asks for this part is told.
    status, parts = readyz(service)
    assert status == 200
    assert "is an old one" in parts["status"]
    assert readyz(service, "?part=status")[0] == 503
    assert figure(service, "privyseal_ready", part="status") == 0

    cache.frozen = False
    assert look(service).summary == ""
    assert readyz(service, "?part=status")[0] == 200


def test_a_public_url_that_does_not_answer(service: RunningService, cache: Cache) -> None:
    assert look(service).summary == ""
    cache.server_close()
    cache.shutdown()
    assert "cannot be reached" in look(service).summary
    status, parts = readyz(service)
    assert status == 200
    assert "cannot be reached" in parts["status"]
