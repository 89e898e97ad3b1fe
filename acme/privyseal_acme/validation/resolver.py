"""What an attempt asks DNS, and what it makes of the answers."""

from collections.abc import Sequence
from ipaddress import ip_address

import pycares

from privyseal_acme.validation.channel import Answer, Channel, ChannelPool
from privyseal_acme.validation.outcome import Evidence, ValidationFailedError, printable
from privyseal_ca.errors import ConfigurationError

MAX_RECORDS = 100
_SHOWN_RECORDS = 8
_SHOWN_LENGTH = 64

_NO_SUCH_RECORD = {pycares.errno.ARES_ENODATA: "no such record", pycares.errno.ARES_ENOTFOUND: "NXDOMAIN"}
_FAILURES = {
    pycares.errno.ARES_EFORMERR: "FORMERR",
    pycares.errno.ARES_ESERVFAIL: "SERVFAIL",
    pycares.errno.ARES_ENOTIMP: "NOTIMP",
    pycares.errno.ARES_EREFUSED: "REFUSED",
    pycares.errno.ARES_ETIMEOUT: "no answer in time",
    pycares.errno.ARES_ECONNREFUSED: "no DNS server reached",
    pycares.errno.ARES_EBADNAME: "a name DNS cannot carry",
    pycares.errno.ARES_EBADRESP: "a malformed answer",
}


def parse_resolvers(texts: Sequence[str]) -> tuple[str, ...]:
    """The DNS servers of the settings in the form c-ares takes.

    Raises:
        ConfigurationError: one is not ``ADDRESS``, ``ADDRESS:PORT`` or ``[ADDRESS]:PORT``.
    """
    return tuple(_parse_resolver(text) for text in texts)


def _parse_resolver(text: str) -> str:
    host, port = text, "53"
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        port = rest.removeprefix(":") if rest or not bracket else port
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    try:
        address = ip_address(host)
        number = int(port)
    except ValueError:
        number = 0
    if not 0 < number < 65536 or not port.isdecimal() or address.is_unspecified:
        raise ConfigurationError(
            f"validation.resolvers holds {text!r}, which is not a DNS server's address.",
            hint="Write ADDRESS, ADDRESS:PORT or [IPV6-ADDRESS]:PORT.",
        )
    return f"[{address}]:{number}" if address.version == 6 else f"{address}:{number}"


class Lookup:
    """The DNS questions of one attempt. Where no servers are named the system's sources count, hosts file included.

    Every method raises :class:`ValidationFailedError` of type ``dns`` when no usable answer came.
    """

    def __init__(self, channels: ChannelPool, evidence: Evidence) -> None:
        self._channels = channels
        self._evidence = evidence
        self._channel: Channel | None = None

    def close(self) -> None:
        """No more questions."""
        if self._channel is not None:
            self._channels.give_back(self._channel)
            self._channel = None

    async def addresses(self, name: str) -> list[str]:
        """The A and AAAA records of ``name``, as text, at most :data:`MAX_RECORDS`."""
        if not self._channels.servers:
            return await self._system_addresses(name)
        channel = self._fresh()
        self._evidence.waiting = ("dns", f"Looking up the addresses of {name}")
        answers = [channel.ask(name, pycares.QUERY_TYPE_AAAA), channel.ask(name, pycares.QUERY_TYPE_A)]
        found: list[str] = []
        failure: ValidationFailedError | None = None
        for label, answer in zip(("AAAA", "A"), answers, strict=True):
            try:
                records = self._records(name, label, await answer)
            except ValidationFailedError as error:
                failure = error
                continue
            found.extend(
                each.addr for each in records if isinstance(each, (pycares.ARecordData, pycares.AAAARecordData))
            )
        if found:
            return found[:MAX_RECORDS]
        raise failure or ValidationFailedError("dns", f"No A or AAAA record was found for {name}.")

    async def txt(self, name: str) -> list[bytes]:
        """The TXT values of ``name``, each joined from its strings, at most :data:`MAX_RECORDS`; none is no error."""
        records = await self._query(name, "TXT", pycares.QUERY_TYPE_TXT)
        return [each.data for each in records if isinstance(each, pycares.TXTRecordData)]

    async def caa(self, name: str) -> list[pycares.CAARecordData]:
        """The CAA records of ``name``, at most :data:`MAX_RECORDS`; none is no error.

        A longer set fails, as a property left unread could be the one that forbids.
        """
        records = await self._query(name, "CAA", pycares.QUERY_TYPE_CAA)
        if len(records) >= MAX_RECORDS:
            raise ValidationFailedError("caa", f"{name} has too many CAA records.", permanent=True)
        return [each for each in records if isinstance(each, pycares.CAARecordData)]

    async def _query(self, name: str, label: str, type_: int) -> list[object]:
        self._evidence.waiting = ("dns", f"Looking up the {label} records of {name}")
        return self._records(name, label, await self._fresh().ask(name, type_))

    def _fresh(self) -> Channel:
        """The channel, with no answers remembered. A channel to the system's servers is new with each attempt anyway."""
        if self._channel is None:
            self._channel = self._channels.borrow()
        if self._channels.servers:
            self._channel.forget()
        return self._channel

    def _records(self, name: str, label: str, answer: Answer) -> list[object]:
        result, error = answer
        if result is not None and error is None:
            # The chain of CNAMEs comes along in the answer; it was the resolver that followed it.
            records: list[object] = [record.data for record in result.answer[:MAX_RECORDS]]
            self._show(name, label, "NOERROR", [_shown(record) for record in records[:_SHOWN_RECORDS]], len(records))
            return records
        if error in _NO_SUCH_RECORD:
            self._show(name, label, _NO_SUCH_RECORD[error], [], 0)
            return []
        raise self._failure(name, label, error)

    async def _system_addresses(self, name: str) -> list[str]:
        # c-ares reads the hosts file here and answers `localhost` and all below it itself (RFC 6761 section 6.3).
        self._evidence.waiting = ("dns", f"Looking up the addresses of {name}")
        result, error = await self._fresh().ask_addresses(name)
        if error in _NO_SUCH_RECORD:
            self._show(name, "A/AAAA", _NO_SUCH_RECORD[error], [], 0)
            raise ValidationFailedError("dns", f"No A or AAAA record was found for {name}.")
        if result is None or error is not None:
            raise self._failure(name, "A/AAAA", error)
        found = [node.addr[0].decode("ascii") for node in result.nodes[:MAX_RECORDS]]
        self._show(name, "A/AAAA", "NOERROR", found[:_SHOWN_RECORDS], len(found))
        return found

    def _failure(self, name: str, label: str, error: int | None) -> ValidationFailedError:
        result = _FAILURES.get(error, "failure") if error is not None else "failure"
        self._show(name, label, result, [], 0)
        return ValidationFailedError("dns", f"DNS lookup of {label} for {name} failed: {result}.")

    def _show(self, name: str, label: str, result: str, records: list[str], count: int) -> None:
        self._evidence.add(
            "dns", {"name": printable(name), "type": label, "result": result, "records": records, "count": count}
        )


def _shown(record: object) -> str:
    match record:
        case pycares.ARecordData(addr=address) | pycares.AAAARecordData(addr=address):
            return address
        case pycares.TXTRecordData(data=data):
            return printable(data, _SHOWN_LENGTH)
        case pycares.CNAMERecordData(cname=name):
            return f"CNAME {printable(name)}"
        case pycares.CAARecordData(critical=flags, tag=tag, value=value):
            return printable(f"{flags} {tag} {value}")
        case _:
            return "another type"
