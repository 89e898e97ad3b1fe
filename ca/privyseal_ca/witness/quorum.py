"""Whether enough witnesses cosign, and for how long they have not."""

from collections.abc import Callable, Iterable

import structlog

from privyseal_ca.sections import LedgerSettings
from privyseal_ca.telemetry.metrics import Metrics

_log = structlog.get_logger("witness")


class Quorum:
    """The quorum of ``settings``. Missing until it is known to be there, for a start must not be a way around it.

    ``monotonic`` gives seconds that only grow.
    """

    def __init__(self, settings: LedgerSettings, metrics: Metrics, monotonic: Callable[[], float]) -> None:
        self._settings = settings
        self._metrics = metrics
        self._monotonic = monotonic
        #: How many have cosigned the newest checkpoint, and since when what the ledger has is not cosigned by enough.
        self._count = 0
        self._since: float | None = monotonic() if settings.quorum else None
        self._warned = False

    @property
    def missing(self) -> float:
        """For how many seconds it has been missing; 0 while it is there."""
        return 0.0 if self._since is None else max(0.0, self._monotonic() - self._since)

    @property
    def standing(self) -> str:
        """Why issuance has to wait; empty when it has not to."""
        if not self._settings.quorum_required or not self._overdue:
            return ""
        return (
            f"{self._count} of the {self._settings.quorum} witnesses that are required have cosigned the ledger's newest "
            f"entries, for longer than {self._settings.quorum_patience:g} seconds."
        )

    def resume(self, seconds: float) -> None:
        """It was missing for so many seconds already when an earlier process ended."""
        if self._since is not None:
            self._since = min(self._since, self._monotonic() - seconds)

    def lost(self) -> None:
        """There is no checkpoint of what is newest, so that nobody can have cosigned it."""
        if self._settings.quorum:
            self._count = 0
            self._since = self._monotonic() if self._since is None else self._since
            self._tell()

    def cover(self, covered: Iterable[float]) -> None:
        """Each witness has cosigned what was the newest checkpoint at one of the times ``covered``, in monotonic seconds.

        Under load one that takes its time is always a checkpoint behind. What was the newest then is cosigned nevertheless.
        """
        times = sorted(covered, reverse=True)[: self._settings.quorum]
        if self._since is not None and len(times) == self._settings.quorum:
            self._since = max(self._since, times[-1])

    def judge(self, count: int, covered: Iterable[float]) -> None:
        """``count`` witnesses have cosigned the newest checkpoint, and all of them what :meth:`cover` says."""
        wanted = self._settings.quorum
        self._count = count
        met = count >= wanted
        self._metrics.checkpoint_cosignatures.set(count)
        self._metrics.checkpoint_quorum.set(1 if met else 0)
        if met:
            self._since = None
            if self._warned:
                _log.info("enough witnesses cosign again", cosignatures=count, quorum=wanted)
        else:
            self._since = self._monotonic() if self._since is None else self._since
            self.cover(covered)
        self._tell()

    @property
    def _overdue(self) -> bool:
        return self.missing > self._settings.quorum_patience

    def _tell(self) -> None:
        if self._overdue and not self._warned:
            _log.warning(
                "too few witnesses cosign",
                cosignatures=self._count,
                quorum=self._settings.quorum,
                required=self._settings.quorum_required,
            )
        self._warned = self._overdue
