"""Prometheus metrics with few labels, never a name or a serial (DESIGN section 8). ``docs/metrics.md`` lists them."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_STAGES = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """The metrics of one service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "privyseal_http_requests",
            "HTTP requests by route and status code.",
            ("route", "code"),
            registry=self.registry,
        )
        self.problems = Counter(
            "privyseal_acme_problems",
            "Problem documents by type, without the ACME prefix.",
            ("type",),
            registry=self.registry,
        )
        self.issued = Counter(
            "privyseal_certificates_issued", "Certificates issued by profile.", ("profile",), registry=self.registry
        )
        self.abandoned = Counter(
            "privyseal_intents_abandoned", "Issuances that ended without a certificate.", registry=self.registry
        )
        self.revoked = Counter("privyseal_certificates_revoked", "Certificates revoked.", registry=self.registry)
        self.validations = Counter(
            "privyseal_acme_validations",
            "Finished validations by challenge type and result.",
            ("challenge", "result"),
            registry=self.registry,
        )
        self.stage_seconds = Histogram(
            "privyseal_stage_seconds",
            "Duration of each stage: request, validation, template, intent, sign, check, record.",
            ("stage",),
            buckets=_STAGES,
            registry=self.registry,
        )
        self.ready = Gauge(
            "privyseal_ready", "Whether each part is usable (1) or not (0).", ("part",), registry=self.registry
        )
        self.parked = Gauge(
            "privyseal_orders_processing", "Orders that wait for their certificate.", registry=self.registry
        )
        self.tls_not_after = Gauge(
            "privyseal_server_certificate_not_after_seconds",
            "When the server's own certificate ends, in seconds since the epoch.",
            registry=self.registry,
        )

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self.registry)
