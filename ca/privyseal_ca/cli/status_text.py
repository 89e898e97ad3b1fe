"""The state of an authority in lines for people. Pure: what :mod:`privyseal_ca.cli.status_figures` found in, text out."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from privyseal_ca.fleet.advice import span
from privyseal_ca.fleet.failures import clean
from privyseal_ca.fleet.survey import STATES

_PLAIN: Final = ("version", "home", "directory", "service", "schema", "ledger", "certificates")
_SHOWN_SURVIVAL: Final = (("first", "the first"), ("10", "10 %"), ("50", "50 %"), ("90", "90 %"))
_MOST_ISSUERS: Final = 100


def status_lines(document: Mapping[str, Any]) -> list[str]:
    """A line for each figure: its name, and what it is."""
    return [f"{name:<13} {text}".rstrip() for name, text in _lines(document)]


def matters(document: Mapping[str, Any]) -> list[str]:
    """What somebody has to look after, in a few words each; nothing when all is well."""
    found = []
    if document["service"] != "ready":
        found.append(f"service {document['service']}")
    if document["schema"] != "current":
        found.append(f"schema {document['schema']}")
    if "fleet" in document:
        fleet = document["fleet"]
        if missed := fleet["missed"]["total"]:
            found.append(f"{missed:,} missed")
        found += [
            f"{count:,} {state}" for state in ("failing", "revoked") if (count := fleet["states"][state]["total"])
        ]
        found += [f"CRL of {clean(crl['issuer'])} ended" for crl in document["crls"] if crl["over"]]
    if failing := document.get("jobs", {}).get("failing"):
        found.append(f"{len(failing)} job{'' if len(failing) == 1 else 's'} failing")
    return found


def _lines(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name in _PLAIN:
        yield name, str(document[name])
    if "jobs" in document:
        yield "jobs", _jobs(document["jobs"])
        yield "job runs", _runs(document["job_runs"])
    if "fleet" in document:
        yield from _fleet(document["fleet"])
        yield from _fresh(document)
    for issuer in document["issuers"][:_MOST_ISSUERS]:
        left = f", {issuer['days_left']} days left" if issuer["days_left"] is not None else ""
        yield "issuer", f"{clean(issuer['name'])}: {issuer['state']}{left}"


def _jobs(jobs: Mapping[str, Any]) -> str:
    failing = f", failing: {', '.join(jobs['failing'])} (see `privyseal job list`)" if jobs["failing"] else ""
    return f"{jobs['known']}, {'led by a process' if jobs['led'] else 'nobody leads'}{failing}"


def _runs(runs: Sequence[Mapping[str, Any]]) -> str:
    """The job that ran last and the one that is next; RFC 3339 texts are in the order of their times."""
    last = max((run for run in runs if run["last_finished"]), key=lambda run: str(run["last_finished"]), default=None)
    following = min((run for run in runs if run["next_due"]), key=lambda run: str(run["next_due"]), default=None)
    parts = []
    if last:
        parts.append(f"last {last['name']} at {last['last_finished']}")
    if following:
        parts.append(f"next {following['name']} at {following['next_due']}")
    return ", ".join(parts) or "none yet"


def _fleet(fleet: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    by_state = [f"{count:,} {state}" for state in STATES if (count := fleet["states"][state]["total"])]
    yield "workloads", f"{fleet['workloads']:,}" + (f": {', '.join(by_state)}" if by_state else "")
    missed = fleet["missed"]
    critical = f", {missed['critical']:,} of them critical" if missed["critical"] else ""
    see = " (see `privyseal fleet list --missed`)" if missed["total"] else ""
    yield "missed", f"{missed['total']:,}{critical}{see}"
    yield "unowned", f"{fleet['unowned']:,}"
    yield "renewals", "; ".join(_renewals(each) for each in fleet["renewals"])
    yield "survival", _survival(fleet["survival"])


def _renewals(each: Mapping[str, Any]) -> str:
    # Rounded down: what was missed never looks like all of it.
    share = "" if each["success"] is None else f" ({int(each['success'] * 10_000) / 100:.2f} %)"
    return f"last {each['period']} {each['renewed']:,} renewed, {each['missed']:,} missed{share}"


def _survival(survival: Mapping[str, Any] | None) -> str:
    if survival is None:
        return "no workload lives"
    moments = [f"{shown} in {span(survival[name]['seconds'])}" for name, shown in _SHOWN_SURVIVAL]
    return f"if signing stopped now, without a certificate: {', '.join(moments)}"


def _fresh(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    checkpoint = document["checkpoint"]
    yield "checkpoint", f"{checkpoint['size']:,} entries, {_old(checkpoint['age'])}" if checkpoint else "none yet"
    for crl in document["crls"][:_MOST_ISSUERS]:
        end = f"ends in {span(crl['left'])}" if crl["left"] > 0 else f"ended {span(crl['left'])} ago"
        lists = f"{crl['lists']} lists, the oldest " if crl["lists"] > 1 else ""
        yield "CRL", f"{clean(crl['issuer'])}: {lists}{_old(crl['age'])}, {end}"
    responders = [each["left"] for each in document["ocsp"]["responders"] if each["left"] is not None]
    end = f", the first of {len(responders)} responders ends in {span(min(responders))}" if responders else ""
    yield "OCSP", f"{document['ocsp']['due']:,} responses to be made anew{end}"
    yield "backup", _backup(document["backup"])
    waiting = document["notifications"]
    age = f", the oldest for {span(waiting['age'])}" if waiting["waiting"] else ""
    yield "notifications", f"{waiting['waiting']:,} waiting{age}"


def _backup(backup: Mapping[str, Any] | None) -> str:
    if backup is None:
        return "none is scheduled"
    if backup["problem"]:
        return f"{backup['folder']} cannot be read: {backup['problem']}"
    return f"{backup['last']}, {_old(backup['age'])}" if backup["last"] else f"none yet in {backup['folder']}"


def _old(seconds: int) -> str:
    return f"{span(seconds)} old"
