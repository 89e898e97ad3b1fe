"""Traces: what each request waited for, as OpenTelemetry spans that carry the correlation id of the ledger's entries.

Tracing is off unless ``telemetry.otlp_endpoint`` is set. Off, a span is one shared object that does nothing, and no library
is imported. On, :mod:`privyseal_ca.telemetry.otlp` makes spans and hands them to a collector from a thread of its own.

Spans never hold names of certificates, contacts, addresses, keys or the texts of errors: ids, serial numbers, counts and
the types of errors are all that a collector gets to know.
"""

from collections.abc import Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final, Protocol

from privyseal_ca.sections import TelemetrySettings
from privyseal_ca.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from types import TracebackType

#: The id of the trace that the running task works for, which every line of the log then shows; empty when there is none.
TRACE_ID: Final[ContextVar[str]] = ContextVar("trace_id", default="")

Value = str | int | float | bool


class Span(Protocol):
    """Some work with a beginning and an end: a context manager, entered once."""

    def __enter__(self) -> "Span": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: "TracebackType | None"
    ) -> None: ...

    def note(self, key: str, value: Value) -> None:
        """Add a fact. Never a name, a contact or a secret."""
        ...


class _NoSpan:
    """A span that nobody looks at; there is only one."""

    __slots__ = ()

    def __enter__(self) -> "_NoSpan":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def note(self, key: str, value: Value) -> None:
        """Nothing."""


NO_SPAN: Final = _NoSpan()


class Tracing:
    """Makes spans. This one makes none: it stands where tracing is off."""

    __slots__ = ()

    @property
    def on(self) -> bool:
        """Whether spans are made at all."""
        return False

    def request(self, method: str, correlation: str, traceparent: str | None) -> Span:
        """The span of a request, which begins a trace. ``traceparent`` is the client's header (W3C Trace Context)."""
        del method, correlation, traceparent
        return NO_SPAN

    def span(self, name: str, correlation: str = "") -> Span:
        """A span within the one that the running task is in; without ``correlation`` it has that one's."""
        del name, correlation
        return NO_SPAN

    def waits(self) -> object | None:
        """Remembers that a unit of work of the running task begins to wait for the database; None when nobody wants to know."""
        return None

    def committed(self, waited: Sequence[object], seconds: float, *, failed: bool) -> None:
        """The units that :meth:`waits` gave ``waited`` for ended together, in a commit that took ``seconds``."""

    async def close(self) -> None:
        """Hand over what is left, for at most some seconds."""


#: Where tracing is off.
NO_TRACING: Final = Tracing()


def open_tracing(settings: TelemetrySettings, metrics: Metrics) -> Tracing:
    """What the settings ask for; to be closed when nothing is traced any more.

    Raises:
        ConfigurationError: ``telemetry.otlp_ca_file`` cannot be read.
    """
    if not settings.otlp_endpoint:
        return NO_TRACING
    from privyseal_ca.telemetry.otlp import OtlpTracing  # noqa: PLC0415 (off, nothing of it is imported)

    return OtlpTracing(settings, metrics)
