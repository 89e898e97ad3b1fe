"""Receivers that hang, send without end or answer nonsense, and what they cannot do: hold others up, fill memory, leak a URL."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest

from fakes.lineages import DAY, late
from fakes.notifying import SECRET, START, WEB_HOOK, Desk
from fakes.receivers import hook
from privyseal_acme.flow import notifications as module
from privyseal_ca.errors import NotificationError, StoreUnavailableError
from privyseal_ca.notify import deliver as delivering
from privyseal_ca.notify.targets import Target
from privyseal_ca.notify.templates import Text
from privyseal_ca.store.notifications import NotificationRow, add_notification
from privyseal_ca.store.statement import Transaction

pytest_plugins = ("fakes.notifying",)

_TEXT = Text("title", "body")
_OCTETS = 64 << 20

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def receiver(answer: Answer) -> AsyncIterator[int]:
    """Answers each request in its own way; the port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            await answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def waiting_for(route: str, number: int, next_attempt: int) -> NotificationRow:
    return NotificationRow(
        f"{route}-{number:04}",
        route,
        "",
        "missed",
        "title",
        "body",
        1,
        START - 60,
        "waiting",
        1,
        next_attempt,
        0,
        "away",
    )


async def test_what_waits_for_one_route_is_not_in_the_way_of_others(anywhere: Desk) -> None:
    anywhere.url_file("dead", f"json://{SECRET}@127.0.0.1:1/")
    rows = [waiting_for("dead", number, START - 30) for number in range(300)]

    def unit(transaction: Transaction) -> None:
        for row in rows:
            add_notification(transaction, row)

    await anywhere.store.write(unit)
    await anywhere.add(late("a", owner="ann"))
    problem = await anywhere.fails(anywhere.notifier({"name": "dead", "url_file": "dead"}, {"name": "ops"}))
    assert problem.startswith("Not everybody is told. dead: ")
    assert [post["title"] for post in anywhere.hook.posts] == ["Privy Seal: 1 renewal missed"]


async def test_the_last_lines_of_a_file_are_tried_when_the_first_hang(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a run may take is over when the first lines have had their time.
    monkeypatch.setattr(module, "_LONGEST", 0.3)
    last = await desk.stack.enter_async_context(hook())
    desk.hook.open.clear()
    ports = [desk.hook.port] * 3 + [last.port]
    desk.url_file("four", *(WEB_HOOK.format(port=port) + f"/{number}" for number, port in enumerate(ports)))
    await desk.add(late("a", owner="ann"))
    quick = partial(delivering.deliver, limit=0.4)
    problem = await desk.fails(desk.notifier({"name": "ops", "url_file": "four"}, deliver=quick))
    assert problem.count("it did not answer in time") == 3
    assert len(last.posts) == 1
    desk.hook.open.set()


async def test_a_receiver_that_hangs_for_ever_holds_up_no_other(desk: Desk) -> None:
    over = asyncio.Event()

    async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Each octet comes in time: nothing but the end of the process ends this.
        writer.write(b"HTTP/1.1 200 OK\r\nX-Drip: ")
        while not over.is_set():
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.05)

    async with receiver(drip) as port:
        slow = Target(1, WEB_HOOK.format(port=port))
        for _ in range(2):
            sending = [delivering.deliver(slow, _TEXT, urgent=False, limit=0.3) for _ in range(20)]
            found = await asyncio.gather(*sending, return_exceptions=True)
            assert all(isinstance(each, NotificationError) for each in found)
        await delivering.deliver(Target(1, WEB_HOOK.format(port=desk.hook.port)), _TEXT, urgent=False)
        assert len(desk.hook.posts) == 1
        over.set()


async def test_an_answer_without_end_is_not_read_to_its_end(desk: Desk) -> None:
    sent = 0

    async def flood(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"%x\r\n%s\r\n" % (65536, b"x" * 65536)
        while sent < _OCTETS:
            writer.write(chunk)
            await writer.drain()
            sent += 65536

    async with receiver(flood) as port:
        await delivering.deliver(Target(1, WEB_HOOK.format(port=port)), _TEXT, urgent=False, limit=20)
    # What the sockets hold was taken by nobody.
    assert sent < _OCTETS / 2


async def test_a_url_is_not_logged_by_what_speaks_http(desk: Desk) -> None:
    async def nonsense(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\nno header\r\nX: y\r\n\r\n")
        await writer.drain()

    async with receiver(nonsense) as port:
        desk.url_file("hook", WEB_HOOK.format(port=port))
        await desk.add(late("a", owner="ann"))
        problem = await desk.fails(desk.notifier())
    assert problem.endswith("it answered with the HTTP status 500.")
    # The desk looks through the log when it ends.


async def test_a_digest_does_not_complain_of_what_is_not_tried_yet(anywhere: Desk) -> None:
    notifier = anywhere.notifier()
    await notifier.run()
    anywhere.clock.advance(DAY)
    await anywhere.add(late("a", owner="ann"))
    await notifier.run()
    digest = next(post["message"] for post in anywhere.hook.posts if "daily" in post["title"])
    assert "not delivered" not in digest
    anywhere.hook.status = 500
    await anywhere.add(late("b", owner="ann"))
    await anywhere.fails(notifier)
    anywhere.clock.advance(DAY - 60)
    await anywhere.fails(notifier)
    rows = [row for row in await anywhere.rows() if row.kind == "digest"]
    assert "1 not delivered yet" in rows[0].body


async def test_when_one_cannot_be_recorded_no_other_goes_on_unseen(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A delivery that outlived the run would be sent once more by the next."""
    slow = await desk.stack.enter_async_context(hook())
    slow.open.clear()
    desk.url_file("slow", WEB_HOOK.format(port=slow.port))
    settle, loop = module.settle_notification, asyncio.get_running_loop()

    def away(transaction: Transaction, row: NotificationRow) -> bool:
        if row.route == "ops":
            loop.call_later(0.3, slow.open.set)
            raise StoreUnavailableError("away", hint="")
        return settle(transaction, row)

    await desk.add(late("a", owner="ann"))
    notifier = desk.notifier({"name": "ops"}, {"name": "slow", "url_file": "slow"})
    with monkeypatch.context() as patch:
        patch.setattr(module, "settle_notification", away)
        with pytest.raises(StoreUnavailableError):
            await notifier.run()
    assert {row.route: row.state for row in await desk.rows()} == {"ops": "waiting", "slow": "delivered"}
    begun = time.monotonic()
    await notifier.run()
    assert time.monotonic() - begun < 10
    assert (len(desk.hook.posts), len(slow.posts)) == (2, 1)
