"""Metrics as a scraper sees them: stable names, and labels whose values nobody from outside can make up."""

import re
import urllib.request
from collections import defaultdict
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from fakes.acme_client import AcmeClient, make_csr
from fakes.service import NewClient, RunningService, StartService
from privyseal_acme.protocol.problems import STATUS
from privyseal_ca.errors import (
    LintError,
    PrivySealError,
    ProfileRefusedError,
    SignatureUncertainError,
    SignerUnavailableError,
    StoreUnavailableError,
)
from privyseal_ca.fleet.states import State
from privyseal_ca.fleet_sections import CRITICALITIES
from privyseal_ca.issuance.authority import result_of
from privyseal_ca.store.certificates import COUNTED
from privyseal_ca.telemetry.figures import count_expiring
from privyseal_ca.telemetry.metrics import EXPIRING, Metrics, WitnessMetrics

#: Every label, and what it may be: one of these words, or what the pattern says. Operators' own names (profiles, issuers,
#: tokens, witnesses, exports) are as many as their settings name.
LABELS: dict[str, frozenset[str] | str] = {
    "answer": r"[a-z_]+",
    "by": frozenset({"all", "issuer", "profile", "owner", "criticality"}),
    "challenge": frozenset({"http-01", "dns-01", "tls-alpn-01"}),
    "check": frozenset({"crl", "ocsp", "canary"}),
    "code": r"[1-5]\d\d",
    "criticality": frozenset(CRITICALITIES),
    "fraction": frozenset({"first", "10", "50", "90"}),
    # At most 33 of each `by`: `tests/unit/test_fleet_survey.py`.
    "group": r".*",
    "issuer": r"[\w .-]+",
    "kind": frozenset({"proven", "unproven"}),
    "job": r"[a-z-]+",
    "method": frozenset({"get", "post"}),
    "name": r".+",
    "part": r"[a-z]+",
    "problem": frozenset(STATUS) | {"other"},
    "profile": r"[a-z][a-z0-9-]*",
    "queue": frozenset({"store", "token", "validation", "orders", "ocsp"}),
    "reason": r"[a-z_]+",
    "result": frozenset(
        {"valid", "invalid", "issued", "refused", "failed", "uncertain", "exported", "dropped"}
        | {"in_time", "late", "missed", "complete", "incomplete", "delivered"}
    ),
    "route": r"unknown|/acme/[\w/{}-]*",
    "scope": r"full|\d{1,3}",
    "stage": frozenset({"request", "validation", "template", "intent", "sign", "check", "record"}),
    "state": frozenset(State),
    "token": r"pkcs11:.+",
    "type": frozenset(STATUS),
    "what": frozenset({"crl", "delta", "ocsp", "orders", "authorizations"}),
    "within": frozenset(name for name, _ in EXPIRING),
    "witness": r".+",
}

DENIED = frozenset(
    {"new_accounts", "account_changes", "new_orders", "failed_validations"}
    | {"validation_queue", "order_queue"}
    | {"names", "profile", "csr", "key", "binding"}
)

#: Bounded by what jobs, issuers, states and groups there are.
_OF_JOBS = ("privyseal_job_", "privyseal_fleet_", "privyseal_survival_", "privyseal_watch_", "privyseal_served_")


def scraped(service: RunningService) -> dict[str, Metric]:
    with urllib.request.urlopen(f"{service.status}/metrics", timeout=10) as answer:  # noqa: S310 (plain, loopback)
        return {family.name: family for family in text_string_to_metric_families(answer.read().decode())}


def values(service: RunningService, name: str, suffix: str = "") -> dict[tuple[str, ...], float]:
    """The samples of a family by the values of their labels, in the order of the labels' names."""
    family = scraped(service)[name]
    return {
        tuple(sample.labels[label] for label in sorted(sample.labels)): sample.value
        for sample in family.samples
        if sample.name == name + suffix
    }


def families() -> list[Metric]:
    found = []
    for attribute in (*vars(Metrics()).values(), *vars(WitnessMetrics()).values()):
        if hasattr(attribute, "describe"):
            (family,) = attribute.describe()
            found.append(family)
    return found


def test_names_say_what_is_counted_and_in_which_unit() -> None:
    for family in families():
        assert re.fullmatch(r"privyseal_[a-z]+(_[a-z]+)*", family.name), family.name
        assert family.documentation.endswith("."), family.name
        assert not family.name.endswith(("_ms", "_milliseconds", "_total", "_count", "_sum", "_bucket")), family.name
        if family.type == "histogram":
            assert family.name.endswith("_seconds"), family.name


def test_two_metrics_do_not_share_a_name() -> None:
    names = [family.name for family in families()]
    assert len(names) == len(set(names))


def test_what_clients_send_makes_no_series(service: RunningService, new_client: NewClient) -> None:
    client = new_client(service)

    def everything(number: int) -> None:
        client.issue(f"series-{number}.test")
        client.new_order(f"refused-{number}.example.org")
        client.new_order(f"profile-{number}.test", profile=f"none-{number}")
        client.request("GET", f"{service.directory}-{number}")
        client.request(f"M{number}", service.directory)
        client.post(f"{service.directory.removesuffix('directory')}order/made-up-{number}")

    everything(1)
    before = series(service)
    for number in range(2, 6):
        everything(number)
    assert series(service) == before


def series(service: RunningService) -> set[tuple[Any, ...]]:
    """What there is to scrape, but for what jobs show when they are first done, whatever clients send."""
    samples = (sample for each in scraped(service).values() for sample in each.samples)
    return {(sample.name, *sorted(sample.labels.items())) for sample in samples if not sample.name.startswith(_OF_JOBS)}


def test_every_label_has_values_of_its_own_kind(service: RunningService, client: AcmeClient) -> None:
    client.issue("labels.test")
    seen: dict[str, set[str]] = defaultdict(set)
    for family in scraped(service).values():
        for sample in family.samples:
            for label, value in sample.labels.items():
                if label != "le":
                    seen[label].add(value)
    for label, found in seen.items():
        allowed = LABELS[label]
        for value in found:
            assert value in allowed if isinstance(allowed, frozenset) else re.fullmatch(allowed, value), (label, value)
    assert {"profile", "queue", "result", "route", "stage", "within"} <= seen.keys()


def test_every_label_is_known() -> None:
    for attribute in (*vars(Metrics()).values(), *vars(WitnessMetrics()).values()):
        for label in getattr(attribute, "_labelnames", ()):
            assert label in LABELS, f"{attribute}: say in LABELS what {label} may be, and that this is bounded"


def test_issuances_are_counted_by_how_they_end(service: RunningService, new_client: NewClient) -> None:
    client = new_client(service)
    before = values(service, "privyseal_issuances", "_total")
    client.issue("counted.test")
    order = client.ready_order("counted-badly.test")
    assert (
        client.finalize(order, make_csr(["another.test"], ec.generate_private_key(ec.SECP256R1()))).problem == "badCSR"
    )
    after = values(service, "privyseal_issuances", "_total")
    default = service.settings.issuance.default_profile
    risen = {
        labels: after[labels] - before.get(labels, 0) for labels in after if after[labels] != before.get(labels, 0)
    }
    assert risen == {(default, "issued"): 1, (default, "refused"): 1}


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (ProfileRefusedError, "refused"),
        (LintError, "refused"),
        (SignatureUncertainError, "uncertain"),
        (SignerUnavailableError, "failed"),
        (StoreUnavailableError, "failed"),
    ],
)
def test_an_issuance_that_fails_is_counted_by_whose_fault_it_is(error: type[PrivySealError], result: str) -> None:
    assert result_of(error("x", hint="y")) == result


def test_a_denial_is_counted_by_what_denied_it(start_service: StartService, new_client: NewClient) -> None:
    service = start_service(limits={"new_orders": 2, "new_orders_period": 3600})
    client = new_client(service)
    assert client.new_order("nobody.example.org").problem == "rejectedIdentifier"
    assert client.new_order("some.test", profile="none").problem == "invalidProfile"
    problems = [client.new_order(f"many-{number}.test").status for number in range(4)]
    assert 429 in problems
    denied = values(service, "privyseal_denied", "_total")
    assert denied[("names",)] == denied[("profile",)] == 1
    assert denied[("new_orders",)] == problems.count(429)
    assert {reason for (reason,) in denied} <= DENIED


def test_an_outage_is_no_denial(service: RunningService, client: AcmeClient) -> None:
    before = values(service, "privyseal_denied", "_total")
    assert client.new_order("*").problem == "malformed"
    assert values(service, "privyseal_denied", "_total") == before


def test_queues_are_there_and_empty_at_rest(service: RunningService) -> None:
    depths = values(service, "privyseal_queue_depth")
    assert depths.keys() == {(queue,) for queue in LABELS["queue"]}
    assert depths["validation",] == depths["orders",] == depths["ocsp",] == 0


def test_commits_and_probes_are_timed(service: RunningService, client: AcmeClient) -> None:
    before = values(service, "privyseal_commit_seconds", "_count")[()]
    client.issue("timed.test")
    after = scraped(service)["privyseal_commit_seconds"].samples
    (count,) = [sample.value for sample in after if sample.name.endswith("_count")]
    assert count > before
    urllib.request.urlopen(f"{service.status}/readyz", timeout=10).close()  # noqa: S310 (plain, loopback)
    probes = values(service, "privyseal_probe_seconds", "_count")
    assert probes.keys() == {("database",), ("token",)}
    assert min(probes.values()) >= 1


def test_certificates_are_counted_by_how_soon_they_end(fresh_service: RunningService, fresh_client: AcmeClient) -> None:
    service = fresh_service
    context = service.service.context

    def counted() -> dict[str, float]:
        service.call(count_expiring(context.store, context.metrics, context.clock))
        return {within: value for (within,), value in values(service, "privyseal_certificates_expiring").items()}

    before = counted()
    assert before.keys() == LABELS["within"]
    issued = fresh_client.issue("ends.test")
    left = issued.chain[0].not_valid_after_utc.timestamp() - service.clock.now()
    bucket = next(name for name, seconds in EXPIRING if left <= seconds)
    now = counted()
    assert {within for within in now if now[within] != before[within]} == {bucket}
    # Half an hour before its end it is in the first bucket, and afterwards in none.
    service.clock.advance(left - 1800)
    near = counted()
    assert near["1h"] >= 1
    service.clock.advance(1801)
    assert sum(counted().values()) == sum(near.values()) - near["1h"]
    assert COUNTED == 100_000
