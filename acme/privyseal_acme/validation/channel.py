"""c-ares on the event loop: questions go out over UDP, and over TCP when an answer was cut short.

c-ares remembers answers, its Python binding offers no way to turn that off, and validation must never see an old answer.
It forgets them when its list of servers changes, which :meth:`Channel.forget` makes happen; a test watches that it does.
"""

import asyncio
import os
import socket
from collections.abc import Sequence

import pycares

Answer = tuple[pycares.DNSResult | None, int | None]
Addresses = tuple[pycares.AddrInfoResult | None, int | None]

# ARES_AI_NOSORT: the order of preference is this authority's own, so the routes need not be probed.
_NO_SORT = 1 << 7
# Names are absolute: a search list would let `name.search.example` answer for `name`.
_FLAGS = pycares.ARES_FLAG_NOSEARCH | pycares.ARES_FLAG_EDNS
_TRIES = 2
# On the list for an instant and never asked; it cannot be one of the settings' own.
_NO_SERVER = "[::]:1"
# Busy channels keep their source port, which whoever wants to forge answers must guess: it is not kept for long.
_LOOKUPS_PER_CHANNEL = 64


class Channel:
    """A c-ares channel whose sockets and timer the running event loop drives.

    Without ``servers`` the system's are asked. ``timeout`` is in seconds, for all tries at a question together.
    """

    def __init__(self, servers: Sequence[str], timeout: float) -> None:
        self.lookups = 0
        self.users = 0
        self._loop = asyncio.get_running_loop()
        self._servers = list(servers)
        self._read: set[int] = set()
        self._write: set[int] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._channel: pycares.Channel | None = pycares.Channel(
            servers=self._servers or None,
            # Where servers are named, the system's own list, options and search domains have no say.
            resolvconf_path=os.devnull if servers else None,
            flags=_FLAGS,
            # The second try waits twice as long as the first.
            timeout=timeout / 3,
            tries=_TRIES,
            sock_state_cb=self._watch,
        )

    def forget(self) -> None:
        """Drop remembered answers. Only for a channel with ``servers``; questions on their way are not disturbed."""
        channel = self._opened()
        channel.servers = [*self._servers, _NO_SERVER]
        channel.servers = self._servers

    def ask(self, name: str, type_: int) -> asyncio.Future[Answer]:
        """One question, class IN. The future holds the answer or c-ares' error number, never an exception."""
        future: asyncio.Future[Answer] = self._loop.create_future()

        def answered(result: pycares.DNSResult | None, error: int | None) -> None:
            if not future.done():
                future.set_result((result, error))

        try:
            self._opened().query(name, type_, callback=answered)
        except pycares.AresError as error:
            answered(None, error.args[0])
        self._start_timer()
        return future

    def ask_addresses(self, name: str) -> asyncio.Future[Addresses]:
        """The addresses of ``name`` by the system's sources, hosts file and DNS."""
        future: asyncio.Future[Addresses] = self._loop.create_future()

        def answered(result: pycares.AddrInfoResult | None, error: int | None) -> None:
            if not future.done():
                future.set_result((result, error))

        self._opened().getaddrinfo(name, None, family=socket.AF_UNSPEC, flags=_NO_SORT, callback=answered)
        self._start_timer()
        return future

    def close(self) -> None:
        """Give up what is still being asked and close the sockets."""
        channel, self._channel = self._opened(), None
        # While the channel is gone from here, `_watch` leaves the loop alone: what it watched is taken off below.
        for fd in self._read:
            self._loop.remove_reader(fd)
        for fd in self._write:
            self._loop.remove_writer(fd)
        if self._timer is not None:
            self._timer.cancel()
        # Cancelling closes the sockets here and now, in the loop's thread; only memory is left to c-ares' own thread.
        # The channel's handle on `_watch` is opaque to the garbage collector, so the circle had to be cut by hand.
        channel.cancel()
        channel.close()

    def _opened(self) -> pycares.Channel:
        if self._channel is None:
            raise RuntimeError("the DNS channel is closed")
        return self._channel

    def _watch(self, fd: int, readable: bool, writable: bool) -> None:
        if self._channel is None:
            return
        if readable and fd not in self._read:
            self._read.add(fd)
            self._loop.add_reader(fd, self._channel.process_read_fd, fd)
        elif not readable and fd in self._read:
            self._read.remove(fd)
            self._loop.remove_reader(fd)
        if writable and fd not in self._write:
            self._write.add(fd)
            self._loop.add_writer(fd, self._channel.process_write_fd, fd)
        elif not writable and fd in self._write:
            self._write.remove(fd)
            self._loop.remove_writer(fd)

    def _start_timer(self) -> None:
        if self._timer is None and (self._read or self._write):
            pause = self._opened().timeout()  # type: ignore[no-untyped-call]  # pycares leaves this one bare
            self._timer = self._loop.call_later(pause, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self._channel is not None:
            self._channel.process_fd(pycares.ARES_SOCKET_BAD, pycares.ARES_SOCKET_BAD)
            self._start_timer()


class ChannelPool:
    """Lends a channel to each lookup: one to many at a time where servers are named, else each its own.

    A channel for the system's servers reads the system's configuration and hosts file, and remembers both; one for each
    lookup sees every change.
    """

    def __init__(self, servers: Sequence[str], timeout: float) -> None:
        self.servers = tuple(servers)
        self._timeout = timeout
        self._lookups = _LOOKUPS_PER_CHANNEL if servers else 1
        self._current: Channel | None = None

    def borrow(self) -> Channel:
        """A channel, to be given back."""
        channel = self._current
        if channel is None:
            channel = self._current = Channel(self.servers, self._timeout)
        channel.lookups += 1
        channel.users += 1
        if channel.lookups >= self._lookups:
            self._current = None
        return channel

    def give_back(self, channel: Channel) -> None:
        """End a loan; the last one of a channel that is lent no more closes it."""
        channel.users -= 1
        if not channel.users and channel is not self._current:
            channel.close()

    def close(self) -> None:
        """Close what nobody has borrowed; the rest closes as it comes back."""
        channel, self._current = self._current, None
        if channel is not None and not channel.users:
            channel.close()
