"""Structured logs: one JSON object on a line of standard error for each event, or text for people.

What libraries and the token's room say through the standard library comes out in the same form.
"""

import logging
import sys
from contextlib import suppress
from typing import IO, Any, BinaryIO, TextIO, cast

import orjson
import structlog

from privyseal_ca.sections import LogSettings
from privyseal_ca.telemetry.tracing import TRACE_ID


def configure_logs(settings: LogSettings) -> None:
    """Set up logging for this process."""
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    common: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        _add_trace,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    render: list[structlog.typing.Processor]
    factory: Any
    if settings.format == "json":
        # Without the frames' local variables: those of a failing login would hold a PIN (promise P10).
        tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        render = [
            structlog.processors.ExceptionRenderer(tracebacks),
            structlog.processors.JSONRenderer(serializer=_dumps),
        ]
        factory = structlog.BytesLoggerFactory(file=cast("BinaryIO", _Lossy(sys.stderr.buffer)))
    else:
        plain = structlog.dev.plain_traceback
        render = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
        factory = structlog.PrintLoggerFactory(file=cast("TextIO", _Lossy(sys.stderr)))
    structlog.configure(
        processors=[*common, *render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=factory,
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.handlers = [_Forward()]
    # Libraries are heard when something goes wrong, this program's own rooms as the settings say.
    root.setLevel(max(level, logging.WARNING))
    for name in ("privyseal_ca", "privyseal_acme"):
        logging.getLogger(name).setLevel(level)


def _add_trace(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """The trace in which a line was written, where one is recorded."""
    if trace := TRACE_ID.get():
        event["trace"] = trace
    return event


class _Forward(logging.Handler):
    """Hands records of the standard library to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log ``record`` under its logger's name."""
        failure = {"exc_info": record.exc_info} if record.exc_info else {}
        structlog.get_logger().log(record.levelno, record.getMessage(), logger=record.name, **failure)


class _Lossy:
    """A stream whose owner goes on when nothing can be written, as on a full disk: work is not to fail for being told of."""

    def __init__(self, stream: IO[Any]) -> None:
        self._stream = stream

    def write(self, data: Any) -> int:
        """Write ``data``, or lose it."""
        with suppress(OSError):
            self._stream.write(data)
        return len(data)

    def flush(self) -> None:
        """Flush, or try again next time."""
        with suppress(OSError):
            self._stream.flush()


def _dumps(event: object, default: object = None) -> bytes:
    del default
    return orjson.dumps(event, default=repr)
