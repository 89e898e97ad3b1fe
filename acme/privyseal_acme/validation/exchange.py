"""One HTTP/1.1 request and its answer, with a bound on every part of the answer (promise P12)."""

import asyncio
from typing import cast

import httptools

from privyseal_acme.validation.outcome import ValidationFailedError

MAX_HEAD = 16 * 1024
# Room for what stands around the body: chunk sizes, and interim answers before the final one.
_MAX_FRAMING = 16 * 1024
_MAX_LOCATION = 2048


class _EnoughError(Exception):
    """Stops the parser in the middle of its input."""


class Exchange(asyncio.Protocol):
    """Sends ``request`` when connected and takes in the answer until it is complete, too long or broken.

    ``answered()`` waits for that. A status from 300 on ends the exchange with the head of the answer, and so does a body
    longer than ``max_body`` bytes with what fitted: ``oversized`` is then true.
    """

    def __init__(self, request: bytes, max_body: int) -> None:
        self.status = 0
        self.location = b""
        self.body = b""
        self.oversized = False
        self._request = request
        self._max_body = max_body
        self._max_answer = MAX_HEAD + max_body + _MAX_FRAMING
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._fault = ""
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._received = 0
        self._in_head = True
        self._has_length = False

    async def answered(self) -> None:
        """Wait for the end of the answer.

        Raises:
            ValidationFailedError: ``connection``: it broke off, or was no HTTP, or its head was too long.
        """
        await self._done
        if self._fault:
            raise ValidationFailedError("connection", self._fault)

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the request."""
        # uvloop's transports are no subclasses of asyncio's.
        cast("asyncio.WriteTransport", transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        """Parse what came, up to the bounds."""
        if self._in_head:
            room = MAX_HEAD - self._received
            self._feed(data[:room])
            data = data[room:]
            if data and self._in_head:
                self._end("The head of the answer is too long.")
        if data:
            self._feed(data[: self._max_answer - self._received])
            if self._received >= self._max_answer:
                self._end("The answer is too long.")

    def eof_received(self) -> None:
        """The end of input ends a body that has no length of its own (RFC 9112 section 6.3)."""
        self._end(
            ""
            if not self._in_head and not self._has_length
            else "The connection closed before the answer was complete."
        )

    def connection_lost(self, exc: Exception | None) -> None:
        """Whatever is not complete by now never will be."""
        del exc
        self._end("The connection was lost before the answer was complete.")

    # What the parser calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep the fields that matter."""
        field = name.lower()
        if field == b"location":
            self.location = value[: _MAX_LOCATION + 1]
        elif field in {b"content-length", b"transfer-encoding"}:
            self._has_length = True

    def on_headers_complete(self) -> None:
        """The head is over, unless the answer was an interim one (RFC 9110 section 15.2)."""
        if self._parser is not None:
            self.status = self._parser.get_status_code()
            self._in_head = 100 <= self.status < 200 and self.status != 101
            if self.status >= 300:
                # A redirect or a failure says all in its head.
                self._end()
                raise _EnoughError

    def on_body(self, body: bytes) -> None:
        """Keep what fits."""
        self.body += body[: self._max_body - len(self.body) + 1]
        if len(self.body) > self._max_body:
            self.body = self.body[: self._max_body]
            self.oversized = True
            self._end()
            raise _EnoughError

    def on_message_complete(self) -> None:
        """The final answer is here."""
        if not self._in_head:
            self._end()
            # What follows on the connection was not asked for.
            raise _EnoughError

    def _feed(self, data: bytes) -> None:
        self._received += len(data)
        if self._parser is None:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._end()
        except httptools.HttpParserError as error:
            if not isinstance(error.__context__, _EnoughError):
                self._end("The answer is not HTTP.")

    def _end(self, fault: str = "") -> None:
        # Parser and protocol hold each other; dropping the parser lets both go at once.
        self._parser = None
        if not self._done.done():
            self._fault = fault
            self._done.set_result(None)
