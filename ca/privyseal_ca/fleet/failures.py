"""A failed attempt at a certificate: what is kept of it, and what the authority saw, in words."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

_TEXT: Final = 240
_SHOWN: Final = 3
#: What may not reach a terminal, a mail or a page: the texts hold what strangers sent.
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]")

#: A connection that took longer than the whole attempt is in its text only.
_WAITED: Final = re.compile(r"Connecting to (\S+ port \d+) took longer")


@dataclass(frozen=True, slots=True)
class Failure:
    """An attempt that failed, as a workload's row keeps the last one. What is not known is empty."""

    #: ``order``, ``validation``, ``finalize`` or ``issuance``.
    stage: str = ""
    #: The ACME problem type without its prefix (RFC 8555 section 6.7).
    type: str = ""
    detail: str = ""
    challenge: str = ""
    #: ``type:value``, such as ``dns:host.example``.
    identifier: str = ""
    #: The evidence of a validation, as in the ledger's ``authorization.failed`` entries.
    evidence: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The DNS name or address that was checked; empty when it is not known."""
        return self.identifier.partition(":")[2]

    def facts(self, kind: str) -> list[Mapping[str, Any]]:
        """The facts of one kind among the evidence: ``dns``, ``connections`` or ``requests``."""
        found = self.evidence.get(kind)
        return [fact for fact in found if isinstance(fact, dict)] if isinstance(found, list) else []

    @property
    def place(self) -> str:
        """Where the last connection went, as ``ADDRESS port PORT``; empty when there was none."""
        if waited := _WAITED.match(self.detail):
            return waited[1]
        for fact in reversed(self.facts("connections")):
            if "port" in fact:
                return f"{clean(fact.get('address'))} port {clean(fact['port'])}"
        return ""

    @property
    def result(self) -> str:
        """How the last attempt to connect ended, in a word or two; empty when there was none."""
        if _WAITED.match(self.detail):
            return "timed out"
        connections = self.facts("connections")
        return clean(connections[-1].get("result")) if connections else ""

    @property
    def status(self) -> int:
        """The HTTP status of the last answer; 0 when none came."""
        requests = self.facts("requests")
        status = requests[-1].get("status") if requests else 0
        return status if isinstance(status, int) else 0


def parse_failure(text: str) -> Failure:
    """The attempt of a workload's row. Text that is no JSON object says nothing, rather than raising."""
    try:
        found = orjson.loads(text) if text else {}
    except orjson.JSONDecodeError:
        found = {}
    if not isinstance(found, dict):
        found = {}
    words = {name: clean(found.get(name)) for name in ("stage", "type", "detail", "challenge", "identifier")}
    evidence = found.get("seen")
    return Failure(**words, evidence=evidence if isinstance(evidence, dict) else {})


def clean(value: object) -> str:
    """``value`` as one short line without control characters; nothing for what is neither text nor number."""
    if not isinstance(value, str | int) or isinstance(value, bool):
        return ""
    return cut(_UNPRINTABLE.sub("?", str(value)), _TEXT)


def cut(text: str, limit: int) -> str:
    """``text``, with its end left out when it has more than ``limit`` characters."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def seen_in(failure: Failure) -> str:
    """What was tried and what the authority saw, in sentences."""
    return " ".join(
        sentence
        for sentence in (
            _beginning(failure),
            *_lookups(failure),
            *_connections(failure),
            *_answers(failure),
            _tls(failure),
            f"The client was told: {failure.detail}" if failure.detail else "",
        )
        if sentence
    )


_STAGES: Final = {
    "order": "The order was refused",
    "validation": "The check failed",
    "finalize": "The request for the certificate (CSR) was refused",
    "issuance": "The certificate could not be made",
}


def _beginning(failure: Failure) -> str:
    if not failure.challenge:
        about = f" for {failure.name}" if failure.name else ""
        begin = _STAGES.get(failure.stage, "An attempt failed") + about
    else:
        begin = f"The check {failure.challenge} of {failure.name or 'a name'} failed"
    kind = f" ({failure.type})" if failure.type else ""
    moment = clean(failure.evidence.get("at"))
    tries = failure.evidence.get("attempts")
    more = f" after {tries} tries" if isinstance(tries, int) and tries > 1 else ""
    return f"{begin}{kind}{more}{f', tried at {moment}' if moment else ''}."


def _lookups(failure: Failure) -> list[str]:
    """What DNS said of the names, a sentence each, the last ones."""
    said = []
    for fact in failure.facts("dns")[-_SHOWN:]:
        records = fact.get("records")
        if isinstance(records, list) and records:
            count = fact.get("count")
            left = count - _SHOWN if isinstance(count, int) else 0
            found = _listed(
                [f"'{clean(record)}'" if fact.get("type") == "TXT" else clean(record) for record in records]
            )
            result = f"{found} and {left} more" if left > 0 else found
        else:
            result = clean(fact.get("result")) or "nothing"
        said.append(f"DNS, {clean(fact.get('type'))} of {clean(fact.get('name'))}: {result}.")
    return said


def _connections(failure: Failure) -> list[str]:
    said = []
    for fact in failure.facts("connections")[-_SHOWN:]:
        port = f" port {clean(fact['port'])}" if "port" in fact else ""
        said.append(f"{clean(fact.get('address'))}{port}: {clean(fact.get('result'))}.")
    return said


def _answers(failure: Failure) -> list[str]:
    return [
        f"{clean(fact.get('scheme'))}://{clean(fact.get('host'))} answered with status {clean(fact.get('status'))}."
        for fact in failure.facts("requests")[-_SHOWN:]
    ]


def _tls(failure: Failure) -> str:
    if "alpn" not in failure.evidence:
        return ""
    version = clean(failure.evidence.get("tls")) or "TLS"
    return f"{version} was spoken, with the protocol (ALPN) {clean(failure.evidence['alpn']) or 'none'}."


def _listed(texts: Sequence[str]) -> str:
    return ", ".join(texts[:_SHOWN])
