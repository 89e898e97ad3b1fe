"""Receivers of notifications: a mail server and a web hook that take, or refuse, what really comes over a socket."""

import asyncio
import email
import email.policy
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from email.message import EmailMessage
from typing import Any

from aiohttp import web

_MOST = 1 << 20


@dataclass
class Mail:
    """A mail as it came, and for whom the envelope said it is."""

    recipients: list[str]
    message: EmailMessage

    @property
    def subject(self) -> str:
        return str(self.message["Subject"])

    @property
    def text(self) -> str:
        """Its plain part."""
        part = self.message.get_body(("plain", "html"))
        assert part is not None
        return str(part.get_content())


@dataclass
class MailServer:
    """Speaks as much SMTP (RFC 5321) as it takes to be given mail, with AUTH PLAIN and LOGIN refused or not asked for."""

    port: int = 0
    mails: list[Mail] = field(default_factory=list)
    #: What is answered to each recipient; another than 250 refuses it. By address, else for all.
    refusals: dict[str, str] = field(default_factory=dict)
    refuse_login: bool = False
    logins: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await self._converse(reader, writer)
        writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def say(line: str) -> None:
            writer.write(f"{line}\r\n".encode())

        say("220 mail.test ESMTP")
        recipients: list[str] = []
        while line := await reader.readline():
            command = line.decode().strip()
            verb = command.split(" ")[0].upper()
            if verb == "EHLO":
                say("250-mail.test")
                say("250 AUTH PLAIN LOGIN")
            elif verb == "AUTH":
                self.logins += 1
                say("535 5.7.8 not with that password" if self.refuse_login else "235 welcome")
            elif verb == "RCPT":
                address = command.partition("<")[2].partition(">")[0]
                answer = self.refusals.get(address, self.refusals.get("", "250 fine"))
                if answer.startswith("250"):
                    recipients.append(address)
                say(answer)
            elif verb == "DATA":
                say("354 go on")
                content = (await reader.readuntil(b"\r\n.\r\n"))[:-3].replace(b"\r\n..", b"\r\n.")
                parsed = email.message_from_bytes(content, policy=email.policy.default)
                self.mails.append(Mail(recipients, parsed))
                recipients = []
                say("250 taken")
            elif verb == "QUIT":
                say("221 bye")
                return
            else:
                say("250 fine")


@asynccontextmanager
async def mail_server() -> AsyncIterator[MailServer]:
    """A mail server on a port of its own."""
    there = MailServer()
    server = await asyncio.start_server(there.serve, "127.0.0.1", 0, limit=_MOST)
    there.port = server.sockets[0].getsockname()[1]
    try:
        yield there
    finally:
        server.close()


@dataclass
class Hook:
    """Takes JSON by HTTP, or answers with another status, or not at all."""

    port: int = 0
    posts: list[dict[str, Any]] = field(default_factory=list)
    status: int = 200
    #: Requests wait for this before they are answered.
    open: asyncio.Event = field(default_factory=asyncio.Event)
    asked: int = 0

    async def handle(self, request: web.Request) -> web.Response:
        """One request."""
        self.asked += 1
        await self.open.wait()
        if self.status == 200:
            self.posts.append(json.loads(await request.text()))
        # What a careless receiver repeats of the request is not to get into our log either.
        headers = {"Location": f"http://127.0.0.1:{self.port}/elsewhere"} if 300 <= self.status < 400 else {}
        return web.Response(status=self.status, headers=headers, text=f"{request.url} {dict(request.headers)}")


@asynccontextmanager
async def hook() -> AsyncIterator[Hook]:
    """A web hook on a port of its own."""
    there = Hook()
    there.open.set()
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", there.handle)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    there.port = bound.getsockname()[1]
    await web.SockSite(runner, bound).start()
    try:
        yield there
    finally:
        there.open.set()
        await runner.cleanup()
