"""What answers http-01 challenges (RFC 8555 section 8.3): a real web server on a thread."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from fakes.dns import LOOPBACK

_PATH = "/.well-known/acme-challenge/"


class Http01:
    """Key authorizations by token; any other path is 404."""

    def __init__(self) -> None:
        self.answers: dict[str, str] = {}
        #: The Host field and the path of every request.
        self.requests: list[tuple[str, str]] = []
        self.port = 0
        #: Called before each answer.
        self.before: Callable[[], object] = lambda: None

    def serve(self, token: str, key_authorization: str) -> None:
        """Answer for ``token`` from now on."""
        self.answers[token] = key_authorization

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        responder = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                responder.requests.append((self.headers.get("Host", ""), self.path))
                responder.before()
                answer = responder.answers.get(self.path.removeprefix(_PATH))
                body = (answer or "").encode()
                self.send_response(404 if answer is None else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
                pass

        return Handler


@contextmanager
def http01_responder() -> Iterator[Http01]:
    """A responder on a free port."""
    responder = Http01()
    with ThreadingHTTPServer((LOOPBACK, 0), responder._handler()) as server:
        responder.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield responder
        finally:
            server.shutdown()
            thread.join()
