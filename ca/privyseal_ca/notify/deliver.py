"""Delivering a message through Apprise, off the event loop and in bounded time. The only module that knows Apprise.

Apprise tells its logger why a delivery failed, and that holds URLs, and with them passwords and tokens (promise P10). So
nothing of it is ever repeated: it is searched for what is known to go wrong, which is told in words of our own, and dropped.
"""

import asyncio
import logging
import re
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Final
from urllib.parse import urlsplit

from apprise import Apprise, AppriseAsset, NotifyBase, NotifyFormat, NotifyType, OverflowMode

from privyseal_ca.errors import NotificationError
from privyseal_ca.notify.targets import Target
from privyseal_ca.notify.templates import Text

#: Seconds that one URL may take.
LIMIT: Final = 30.0
#: Deliveries under way at the same time, those that hang included: to one receiver, so that it holds up no other, and to all.
_MOST: Final = 8
_MOST_OF_ALL: Final = 64
#: A message is sent in at most so many parts where a service takes short ones only; the rest is cut off.
_MOST_PARTS: Final = 4
#: Characters of Apprise's log that are searched.
_SEARCHED: Final = 20_000

#: What is found in Apprise's log, and what is told of it; numbers are told, other parts are not.
_REASONS: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), told)
    for pattern, told in (
        (r"CERTIFICATE_VERIFY_FAILED|certificate verify failed", "its TLS certificate cannot be verified"),
        (r"connection refused|errno 111\b", "the connection was refused"),
        (r"timed? ?out", "it did not answer in time"),
        (r"not known|getaddrinfo|failed to resolve|name resolution|nodename nor", "the name of its host is not found"),
        (r"unreachable|no route to host", "its host cannot be reached"),
        (r"connection reset|unexpectedly closed|broken pipe|connection aborted", "it closed the connection"),
        (r"STARTTLS (?:extension )?not supported", "it does not offer STARTTLS"),
        (r"AUTH extension not supported|no suitable authentication", "it does not offer to log in"),
        (r"\((?:smtp )?([2-5]\d\d), b?['\"]", "the mail server answered {}"),
        (r"\berror=([1-5]\d\d)\b", "it answered with the HTTP status {}"),
        (r"\bSSL|\bTLS", "TLS failed"),
        (r"no email recipients", "nobody is addressed"),
    )
)

_heard = threading.local()


class _Ear(logging.Filter):
    """Keeps what Apprise, and what it sends with, say while the thread delivers. Nothing of that gets to any handler."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep ``record``'s text for the delivery of this thread, and drop it."""
        said: list[str] | None = getattr(_heard, "said", None)
        if said is not None and sum(map(len, said)) < _SEARCHED:
            said.append(record.getMessage()[:_SEARCHED])
        return said is None and not record.name.startswith("apprise")


_ear: Final = _Ear()


def _listen() -> None:
    logger = logging.getLogger("apprise")
    logger.addFilter(_ear)
    # What went wrong is said at this level only.
    logger.setLevel(logging.DEBUG)


def _load_http() -> None:
    """Load what Apprise speaks HTTP with, which takes a while and is only wanted where something is sent, and hold it to bounds."""
    import_module("privyseal_ca.notify.answers").bound(LIMIT)
    # A filter is not asked about what is said by the names below its own. urllib3 warns of bad answers with the whole URL.
    for name in [name for name in list(logging.root.manager.loggerDict) if name.startswith("urllib3")]:
        logging.getLogger(name).addFilter(_ear)


class _Turns:
    """How many deliveries are under way, by receiver."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken: Counter[str] = Counter()

    def take(self, receiver: str) -> bool:
        """Whether one more may begin, which then counts until it is given back."""
        with self._lock:
            if self._taken[receiver] >= _MOST or self._taken.total() >= _MOST_OF_ALL:
                return False
            self._taken[receiver] += 1
            return True

    def give_back(self, receiver: str) -> None:
        """One has ended."""
        with self._lock:
            self._taken[receiver] -= 1
            if not self._taken[receiver]:
                del self._taken[receiver]


_listen()
_turns = _Turns()


async def deliver(target: Target, text: Text, *, urgent: bool, limit: float = LIMIT) -> None:
    """Send ``text`` to ``target``, and return when its receiver has taken it.

    What is not taken after ``limit`` seconds counts as failed, though it may still arrive.

    Raises:
        NotificationError: it was not taken. The message says why, without anything of the URL.
    """
    problem = await _in_thread(lambda: _send(target, text, urgent=urgent), _receiver(target), limit)
    if problem:
        raise NotificationError(f"Line {target.line} of the URLs: {problem}.")


async def understood(targets: Sequence[Target]) -> list[int]:
    """The lines that Apprise does not understand."""

    def look() -> list[int]:
        return [target.line for target in targets if _service(target) is None]

    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(None, look)


def _receiver(target: Target) -> str:
    """What tells receivers apart: the URL up to its path. It may hold a password, and is kept in memory only."""
    with suppress(ValueError):
        parts = urlsplit(target.url)
        return f"{parts.scheme}://{parts.netloc}"
    return target.url


async def _in_thread(work: Callable[[], str], receiver: str, limit: float) -> str:
    """What ``work`` gives, on a thread that is not waited for when it hangs; a problem where it did."""
    if not _turns.take(receiver):
        return "earlier deliveries hang"
    loop = asyncio.get_running_loop()
    done: asyncio.Future[str] = loop.create_future()

    def settle(problem: str) -> None:
        if not done.done():
            done.set_result(problem)

    def run() -> None:
        try:
            problem = work()
        finally:
            _turns.give_back(receiver)
        # The loop may have ended meanwhile, and then nobody waits.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, problem)

    # Not one of a pool: those are waited for when the process ends.
    try:
        threading.Thread(target=run, name="notification", daemon=True).start()
    except RuntimeError:
        _turns.give_back(receiver)
        return "no thread could be started"
    try:
        return await asyncio.wait_for(done, limit)
    except TimeoutError:
        return "it did not answer in time"


def _send(target: Target, text: Text, *, urgent: bool) -> str:
    """Send on this thread; why it failed, or an empty text."""
    said: list[str] = []
    _heard.said = said
    try:
        _load_http()
        service = _service(target)
        if service is None:
            return "it is no URL that Apprise understands"
        sent = service.notify(
            title=text.title,
            body=text.body,
            notify_type=NotifyType.WARNING if urgent else NotifyType.INFO,
            body_format=NotifyFormat.TEXT,
            overflow=_overflow(service, text),
        )
        return "" if sent else reason(said)
    except Exception as error:  # noqa: BLE001 (plugins raise what they like, with URLs in it)
        return reason([*said, str(error)])
    finally:
        _heard.said = None


def _service(target: Target) -> NotifyBase | None:
    asset = AppriseAsset(
        app_id="Privy Seal",
        app_desc="Privy Seal",
        app_url="",
        async_mode=False,
        interpret_emojis=False,
        pgp_autogen=False,
        pem_autogen=False,
        # A token in a URL is not for whoever the receiver points to.
        http_redirects=False,
        storage_mode="memory",
    )
    try:
        service = Apprise.instantiate(target.url, asset=asset)
    except Exception:  # noqa: BLE001 (as above)
        return None
    return service if isinstance(service, NotifyBase) else None


def _overflow(service: NotifyBase, text: Text) -> OverflowMode | None:
    """What becomes of a message that is too long for the service, unless its URL says."""
    if service.overflow_mode != OverflowMode.UPSTREAM:
        return None
    many = len(text.body) > _MOST_PARTS * service.body_maxlen
    return OverflowMode.TRUNCATE if many else OverflowMode.SPLIT


def reason(said: Sequence[str]) -> str:
    """Why a delivery failed, in our own words."""
    everything = "\n".join(said)[:_SEARCHED]
    for pattern, told in _REASONS:
        if found := pattern.search(everything):
            return told.format(*found.groups())
    return "the message was not taken"
