"""What a watcher found, as metrics, as log lines when something begins or ends, and as a report."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

import structlog

from privyseal_ca.revocation.watching import WatchReport
from privyseal_ca.telemetry.metrics import Metrics

_log = structlog.get_logger("watcher")

#: Of one issuer; a CRL of 256 parts that cannot be reached is one story.
_TOLD: Final = 20
#: In one line of the log.
_LOGGED: Final = 3

Check = Literal["crl", "ocsp", "canary"]
What = Literal["crl", "delta", "ocsp"]
_CHECKS: Final[tuple[Check, ...]] = ("crl", "ocsp", "canary")
_WHATS: Final[tuple[What, ...]] = ("crl", "delta", "ocsp")


@dataclass(slots=True)
class Findings:
    """What one round found of one issuer."""

    name: str
    watched: bool = False
    """Whether there was a canary, without which neither OCSP nor the time to visibility can be judged."""
    problems: dict[Check, list[str]] = field(default_factory=dict)
    times: dict[What, list[tuple[int, int]]] = field(default_factory=dict)
    """thisUpdate and nextUpdate of everything that was fetched."""

    def add(self, check: Check, problem: str) -> None:
        """Something is not as it must be."""
        self.problems.setdefault(check, []).append(problem)

    def found(self, what: What, this_update: int, next_update: int) -> None:
        """Something was fetched and could be read."""
        self.times.setdefault(what, []).append((this_update, next_update))

    @property
    def told(self) -> list[str]:
        """Every problem, as far as one can read them."""
        every = [problem for check in _CHECKS for problem in self.problems.get(check, ())]
        return every if len(every) <= _TOLD else [*every[:_TOLD], f"and {len(every) - _TOLD} more"]


class WatchFigures:
    """Shows the findings of each round."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._shown: set[str] = set()
        self._wrong: set[tuple[str, Check]] = set()

    def finish(self, findings: Collection[Findings], now: float) -> WatchReport:
        """End a round at ``now`` (seconds since the epoch)."""
        for each in findings:
            self._show(each, now)
        names = {each.name for each in findings}
        for gone in self._shown - names:
            self._forget(gone)
        self._shown = names
        self._tell({(each.name, check): problems for each in findings for check, problems in each.problems.items()})
        self._metrics.watch_finished.set(now)
        return WatchReport({each.name: each.told for each in findings}, now)

    def visible(self, name: str, what: Literal["crl", "ocsp"], seconds: float) -> None:
        """A canary of the issuer ``name`` was seen for the first time."""
        self._metrics.revocation_visible.labels(name, what).set(seconds)
        _log.info("revocation is visible", issuer=name, where=what, seconds=round(seconds, 1))

    def _show(self, findings: Findings, now: float) -> None:
        metrics, name = self._metrics, findings.name
        for check in _CHECKS:
            if check == "crl" or findings.watched:
                metrics.watch_ok.labels(name, check).set(0 if check in findings.problems else 1)
            else:
                metrics.watch_ok.remove(name, check)
        for what in _WHATS:
            if times := findings.times.get(what):
                metrics.served_age.labels(name, what).set(now - min(this_update for this_update, _ in times))
                metrics.served_remaining.labels(name, what).set(min(next_update for _, next_update in times) - now)
            else:
                metrics.served_age.remove(name, what)
                metrics.served_remaining.remove(name, what)

    def _forget(self, name: str) -> None:
        for check in _CHECKS:
            self._metrics.watch_ok.remove(name, check)
        for what in _WHATS:
            self._metrics.served_age.remove(name, what)
            self._metrics.served_remaining.remove(name, what)
            self._metrics.revocation_visible.remove(name, what)

    def _tell(self, problems: Mapping[tuple[str, Check], list[str]]) -> None:
        """Log what is wrong since this round, and what is no longer."""
        for name, check in problems.keys() - self._wrong:
            texts = problems[name, check]
            _log.warning(
                "what is served is not as it must be",
                issuer=name,
                check=check,
                problems=texts[:_LOGGED],
                count=len(texts),
            )
        for name, check in self._wrong - problems.keys():
            _log.info("what is served is as it must be again", issuer=name, check=check)
        self._wrong = set(problems)
