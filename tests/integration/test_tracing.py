"""Traces, as a collector gets them from a real service: what is in them, what is not, and what a bad collector can do."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web
from prometheus_client import Counter

from fakes.acme_client import AcmeClient
from fakes.collector import eventually
from fakes.dns import LOOPBACK, free_port
from fakes.otlp import OtlpReceiver, Seen, otlp_receiver
from fakes.service import NewClient, RunningService, StartService
from privyseal_ca.config import Settings
from privyseal_ca.errors import ConfigurationError, StoreError
from privyseal_ca.sections import TelemetrySettings
from privyseal_ca.store.engine import Store
from privyseal_ca.telemetry.metrics import Metrics
from privyseal_ca.telemetry.otlp import OtlpTracing
from privyseal_ca.telemetry.tracing import NO_SPAN, NO_TRACING, TRACE_ID, open_tracing

#: Of a client's own (W3C Trace Context section 3.2); sampled.
THEIRS = "4bf92f3577b34da6a3ce929d0e0e4736"
HEADER = f"00-{THEIRS}-00f067aa0ba902b7-01"


@pytest.fixture
def collector() -> Iterator[OtlpReceiver]:
    with otlp_receiver() as receiver:
        yield receiver


def traced(start_service: StartService, endpoint: str, **settings: Any) -> RunningService:
    return start_service(telemetry={"otlp_endpoint": endpoint, "sample_ratio": 1, **settings})


def counted(counter: Counter, **labels: str) -> float:
    return sum(
        sample.value
        for family in counter.collect()
        for sample in family.samples
        if sample.name.endswith("_total") and all(sample.labels[key] == value for key, value in labels.items())
    )


def spans_of(service: RunningService) -> tuple[float, float]:
    """How many spans were exported, and how many dropped."""
    spans = service.service.context.metrics.trace_spans
    return counted(spans, result="exported"), counted(spans, result="dropped")


def test_an_order_is_traced_from_the_request_to_the_commit(
    start_service: StartService, new_client: NewClient, collector: OtlpReceiver
) -> None:
    service = traced(start_service, collector.url)
    client = new_client(service)
    client.issue("secret-project.test")
    service.stop()

    by_id = {span.id: span for span in collector.spans}
    assert len(by_id) == len(collector.spans)

    def root(span: Seen) -> Seen:
        return root(by_id[span.parent]) if span.parent else span

    # Whatever is below something else has the same correlation and trace, and did not begin before it.
    for span in collector.spans:
        assert span.begun <= span.ended
        if span.parent:
            above = by_id[span.parent]
            assert (span.trace, span.attributes["privyseal.correlation"]) == (
                above.trace,
                above.attributes["privyseal.correlation"],
            ), span
            assert span.begun >= above.begun

    # Every entry of the order in the ledger has a trace whose request has the entry's correlation.
    ledger = [entry for entry in service_ledger(service) if entry.get("actor", "").startswith("account:")]
    kinds = {entry["kind"]: entry["correlation"] for entry in ledger}
    assert kinds.keys() == {"account.created", "authorization.validated", "certificate.intent"}
    requests = {span.attributes["privyseal.correlation"]: span for span in collector.named("request")}
    assert set(kinds.values()) <= requests.keys()

    # The finalize: issuance, its stages and its two commits, in one trace.
    finalize = requests[kinds["certificate.intent"]]
    assert finalize.attributes["http.route"] == "/acme/order/{id}/finalize"
    assert finalize.attributes["http.response.status_code"] == 200
    (issuance,) = [span for span in collector.named("issuance") if root(span) is finalize]
    stages = [span for span in collector.spans if span.parent == issuance.id]
    assert [span.name for span in sorted(stages, key=lambda span: span.begun)] == [
        "template",
        "intent",
        "sign",
        "check",
        "record",
    ]
    assert issuance.attributes["privyseal.serial"] == ledger[-1]["payload"]["serial"]
    for stage in stages:
        below = [span.name for span in collector.spans if span.parent == stage.id]
        assert below == (["database"] if stage.name in {"intent", "record"} else [])

    # The validation goes on after its request was answered, in the same trace.
    (validation,) = collector.named("validation")
    assert root(validation) is requests[kinds["authorization.validated"]]
    assert validation.attributes["privyseal.valid"] is True

    # No names, contacts or keys.
    assert not any(b"secret-project" in body for body in collector.bodies)
    assert spans_of(service) == (len(collector.spans), 0)


def service_ledger(service: RunningService) -> list[dict[str, Any]]:
    """The entries, read from the file: the service has stopped."""
    from privyseal_acme.opening import open_store  # noqa: PLC0415
    from privyseal_ca.ledger.entries import decode_entry  # noqa: PLC0415
    from privyseal_ca.ledger.log import entries  # noqa: PLC0415

    async def read() -> list[dict[str, Any]]:
        store = open_store(service.settings)
        await store.open()
        try:
            return await store.read(lambda tx: [decode_entry(row.entry) for row in entries(tx, count=10_000)])
        finally:
            await store.close()

    return asyncio.run(read())


def test_a_request_that_is_refused_is_seen_with_its_problem(
    start_service: StartService, new_client: NewClient, collector: OtlpReceiver
) -> None:
    service = traced(start_service, collector.url)
    client = new_client(service)
    assert client.new_order("*").problem == "malformed"
    service.stop()
    (span,) = [span for span in collector.named("request") if "privyseal.problem" in span.attributes]
    assert span.attributes["privyseal.problem"] == "malformed"
    assert span.attributes["http.response.status_code"] == 400


def test_what_a_client_makes_up_is_in_no_span(
    start_service: StartService, new_client: NewClient, collector: OtlpReceiver
) -> None:
    service = traced(start_service, collector.url)
    client = new_client(service)
    base = service.directory.removesuffix("directory")
    csr = {"csr": "AAAA"}
    assert client.post(f"{base}order/made-up-order/finalize", csr).status == 404
    client.request("GET", f"{base}made-up-path?made-up-query", headers={"User-Agent": "made-up-agent"})
    client.request("PROPFIND", service.directory)
    client.new_order("made-up-name.example.org")
    service.stop()
    assert "_OTHER" in {span.attributes["http.request.method"] for span in collector.named("request")}
    assert b"made-up" not in b"".join(collector.bodies)


@pytest.mark.parametrize(
    ("setting", "trace", "linked"), [("ignore", False, False), ("link", False, True), ("parent", True, False)]
)
def test_a_clients_trace_counts_only_as_far_as_the_setting_says(
    start_service: StartService, collector: OtlpReceiver, new_client: NewClient, setting: str, trace: bool, linked: bool
) -> None:
    service = traced(start_service, collector.url, client_traces=setting)
    client = new_client(service, registered=False)
    for header in (HEADER, "00-garbage", "00-" + "0" * 32 + "-00f067aa0ba902b7-01", "x" * 4000):
        assert client.request("GET", service.directory, headers={"traceparent": header}).status == 200
    service.stop()
    spans = collector.named("request")
    assert [span.trace == THEIRS for span in spans].count(True) == trace
    assert [THEIRS in span.links for span in spans].count(True) == linked
    assert len({span.trace for span in spans}) == len(spans)


def test_nothing_is_recorded_of_what_is_not_sampled(
    start_service: StartService, new_client: NewClient, collector: OtlpReceiver
) -> None:
    service = traced(start_service, collector.url, sample_ratio=0, client_traces="link")
    client = new_client(service)
    client.issue("unsampled.test")
    assert client.request("GET", service.directory, headers={"traceparent": HEADER}).status == 200
    service.stop()
    assert (collector.requests, spans_of(service)) == (0, (0, 0))


async def _garbage(request: web.Request) -> web.StreamResponse:
    return web.Response(status=400, body=b"\xff" * 5_000_000)


async def _elsewhere(request: web.Request) -> web.StreamResponse:
    raise web.HTTPTemporaryRedirect(f"http://{LOOPBACK}:{request.url.port}/v1/traces")


@pytest.mark.parametrize("answer", [_garbage, _elsewhere, None])
def test_a_collector_that_refuses_or_is_away_costs_spans_and_nothing_else(
    start_service: StartService, new_client: NewClient, collector: OtlpReceiver, answer: Any
) -> None:
    collector.answer = answer
    endpoint = collector.url if answer else f"http://{LOOPBACK}:{free_port()}/v1/traces"
    service = traced(start_service, endpoint)
    new_client(service).issue("away.test")
    begun = time.monotonic()
    service.stop()
    assert time.monotonic() - begun < 10
    exported, dropped = spans_of(service)
    assert exported == 0
    assert dropped > 10
    assert collector.spans == []
    if answer is _elsewhere:
        assert collector.requests == 1


def test_a_slow_collector_holds_nobody_up_and_the_queue_stays_bounded(
    start_service: StartService, new_client: NewClient, collector: OtlpReceiver
) -> None:
    collector.answer = collector.stall
    service = traced(start_service, collector.url, otlp_queue=8)
    client = new_client(service)
    client.issue("slow.test")
    _, dropped = spans_of(service)
    assert dropped > 0  # at once: more than eight have ended
    begun = time.monotonic()
    client.issue("still-fast.test")
    assert time.monotonic() - begun < 2
    begun = time.monotonic()
    service.stop()
    assert time.monotonic() - begun < 10
    assert spans_of(service)[0] == 0


def test_spans_are_taken_again_when_the_collector_is_back(
    start_service: StartService, new_client: NewClient, collector: OtlpReceiver
) -> None:
    collector.answer = _garbage
    service = traced(start_service, collector.url)
    client = new_client(service, registered=False)
    client.request("GET", service.directory)
    eventually(lambda: spans_of(service)[1])
    collector.answer = None
    client.request("GET", service.directory)
    service.stop()
    assert [span.attributes["http.route"] for span in collector.spans] == ["/acme/directory"]


def test_off_nothing_is_imported_and_nothing_is_made() -> None:
    program = """
import sys
import privyseal_acme.cli, privyseal_acme.service, privyseal_acme.serve
from privyseal_ca.sections import TelemetrySettings
from privyseal_ca.telemetry.metrics import Metrics
from privyseal_ca.telemetry.tracing import NO_TRACING, open_tracing
assert open_tracing(TelemetrySettings(), Metrics()) is NO_TRACING
print(*(name for name in sys.modules if name.split(".")[0] in {"opentelemetry", "requests", "google"}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == ""


def test_off_a_span_is_always_the_same_object_that_does_nothing(service: RunningService, client: AcmeClient) -> None:
    tracing = service.service.context.tracing
    assert tracing is NO_TRACING
    assert not tracing.on
    assert tracing.request("GET", "c", HEADER) is tracing.span("x") is NO_SPAN
    assert tracing.waits() is None
    with tracing.span("x") as span:
        span.note("a", 1)
    with pytest.raises(ValueError, match="goes on"), tracing.span("x"):
        raise ValueError("goes on")
    client.issue("off.test")
    assert spans_of(service) == (0, 0)


def test_the_log_shows_the_trace_while_there_is_one(collector: OtlpReceiver) -> None:
    async def run() -> None:
        tracing = open_tracing(TelemetrySettings(otlp_endpoint=collector.url, sample_ratio=1), Metrics())
        with tracing.request("GET", "c1", None):
            outer = TRACE_ID.get()
            with tracing.span("validation"):
                assert TRACE_ID.get() == outer != ""
        assert TRACE_ID.get() == ""
        await tracing.close()
        assert {span.trace for span in collector.spans} == {outer}

    asyncio.run(run())


def test_a_line_of_the_log_has_the_trace_it_was_written_in() -> None:
    program = """
import structlog
from privyseal_ca.sections import LogSettings
from privyseal_ca.telemetry.logs import configure_logs
from privyseal_ca.telemetry.tracing import TRACE_ID
configure_logs(LogSettings())
structlog.get_logger("x").info("before")
TRACE_ID.set("abc")
structlog.get_logger("x").info("within")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line.get("trace") for line in lines] == [None, "abc"]


def test_an_error_leaves_its_type_and_not_its_text(collector: OtlpReceiver) -> None:
    async def run() -> None:
        tracing = OtlpTracing(TelemetrySettings(otlp_endpoint=collector.url, sample_ratio=1), Metrics())
        with pytest.raises(StoreError), tracing.request("POST", "c1", None), tracing.span("intent"):
            raise StoreError("the name secret.internal is refused")
        await tracing.close()

    asyncio.run(run())
    assert {(span.attributes["error.type"], span.failed) for span in collector.spans} == {("StoreError", True)}
    assert b"secret.internal" not in b"".join(collector.bodies)


def test_what_ends_after_the_end_is_counted_and_not_kept(collector: OtlpReceiver) -> None:
    async def run() -> Metrics:
        metrics = Metrics()
        tracing = OtlpTracing(TelemetrySettings(otlp_endpoint=collector.url, sample_ratio=1), metrics)
        await tracing.close()
        with tracing.request("GET", "c1", None):
            pass
        return metrics

    assert counted(asyncio.run(run()).trace_spans, result="dropped") == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"otlp_endpoint": "collector:4318"},
        {"otlp_endpoint": "http://user:secret@collector/v1/traces"},
        {"sample_ratio": 1.5},
        {"client_traces": "trust"},
        {"otlp_queue": 0},
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        Settings.model_validate({"telemetry": settings})


def test_authorities_that_are_not_there_are_told_of(tmp_path: Any) -> None:
    settings = TelemetrySettings(otlp_endpoint="https://collector/v1/traces", otlp_ca_file=tmp_path / "ca.pem")
    with pytest.raises(ConfigurationError, match=r"ca\.pem"):
        open_tracing(settings, Metrics())


def test_a_store_tells_its_watch_of_groups_and_of_failures(service: RunningService) -> None:
    metrics, store = service.service.context.metrics, service.service.context.store
    assert isinstance(store, Store)
    before = counted(metrics.committed_units)
    service.write(lambda _: None)
    assert counted(metrics.committed_units) > before
    assert counted(metrics.commit_failures) == 0
