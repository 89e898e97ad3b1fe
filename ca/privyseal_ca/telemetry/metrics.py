"""Prometheus metrics with few labels, never a certificate's name or serial (DESIGN section 8). ``docs/metrics.md`` lists them."""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

#: What certificates that end are counted by: the name of each span of time, and its end in seconds from now.
EXPIRING: Final = (
    ("1h", 3600),
    ("6h", 6 * 3600),
    ("1d", 86400),
    ("3d", 3 * 86400),
    ("7d", 7 * 86400),
    ("30d", 30 * 86400),
    ("90d", 90 * 86400),
    ("later", 2**62),
)

_COMMITS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
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
        self.token_up = Gauge(
            "privyseal_token_up",
            "Whether any of the open keys can be used in the token (1) or not (0).",
            ("token",),
            registry=self.registry,
        )
        self.token_keys = Gauge(
            "privyseal_token_keys",
            "Open keys that are used in this token now, and not in another that has them too.",
            ("token",),
            registry=self.registry,
        )
        self.parked = Gauge(
            "privyseal_orders_processing", "Orders that wait for their certificate.", registry=self.registry
        )
        self.tls_not_after = Gauge(
            "privyseal_server_certificate_not_after_seconds",
            "When the server's own certificate ends, in seconds since the epoch.",
            registry=self.registry,
        )
        self._add_work()
        self._add_retention()
        self._add_crls()
        self._add_ocsp()
        self._add_watch()
        self._add_ledger()
        self._add_exports()
        self._add_witnesses()
        self._add_jobs()
        self._add_fleet()
        self._add_notifications()

    def _add_work(self) -> None:
        self.issuances = Counter(
            "privyseal_issuances",
            "Ends of issuances by profile: issued, refused, failed, uncertain.",
            ("profile", "result"),
            registry=self.registry,
        )
        self.denied = Counter(
            "privyseal_denied",
            "Requests that limits, full queues or policy refused, by reason.",
            ("reason",),
            registry=self.registry,
        )
        self.queue_depth = Gauge(
            "privyseal_queue_depth",
            "What waits or is being worked on: store, token, validation, orders, ocsp.",
            ("queue",),
            registry=self.registry,
        )
        self.commit_seconds = Histogram(
            "privyseal_commit_seconds",
            "Duration of each durable commit of the database, which a group of changes shares.",
            buckets=_COMMITS,
            registry=self.registry,
        )
        self.commit_failures = Counter(
            "privyseal_commit_failures", "Groups of changes that the database did not take.", registry=self.registry
        )
        self.committed_units = Counter(
            "privyseal_committed_changes", "Changes that were made durable, in groups.", registry=self.registry
        )
        self.probe_seconds = Histogram(
            "privyseal_probe_seconds",
            "Duration of each look at whether a part can be used, failed ones too: token, database.",
            ("part",),
            buckets=_STAGES,
            registry=self.registry,
        )
        self.expiring = Gauge(
            "privyseal_certificates_expiring",
            "Certificates by how soon they end, each in one bucket; up to 100,000 of a bucket are counted.",
            ("within",),
            registry=self.registry,
        )
        self.trace_spans = Counter(
            "privyseal_trace_spans",
            "Spans that were to be sent to the collector: exported, dropped.",
            ("result",),
            registry=self.registry,
        )

    def _add_retention(self) -> None:
        self.swept = Counter(
            "privyseal_swept",
            "Rows removed after their time: orders, authorizations.",
            ("what",),
            registry=self.registry,
        )
        self.retention_backlog = Gauge(
            "privyseal_retention_backlog",
            "Rows that are due and that the last sweep left to the next, counted up to 10,000: orders, authorizations.",
            ("what",),
            registry=self.registry,
        )

    def _add_crls(self) -> None:
        self.crls_published = Counter("privyseal_crls_published", "CRLs published.", registry=self.registry)
        self.crl_build_seconds = Histogram(
            "privyseal_crl_build_seconds",
            "Duration of building and signing one CRL.",
            buckets=_STAGES,
            registry=self.registry,
        )
        self.crl_number = Gauge(
            "privyseal_crl_number", "The number of the newest CRL.", ("issuer", "scope"), registry=self.registry
        )
        self.crl_entries = Gauge(
            "privyseal_crl_entries",
            "Certificates that the newest CRL lists.",
            ("issuer", "scope"),
            registry=self.registry,
        )

    def _add_ocsp(self) -> None:
        self.ocsp_requests = Counter(
            "privyseal_ocsp_requests",
            "OCSP requests by method and by what was answered.",
            ("method", "answer"),
            registry=self.registry,
        )
        self.ocsp_signed = Counter(
            "privyseal_ocsp_responses_signed",
            "OCSP responses signed, by reason: ready, revoked, request, nonce, unknown.",
            ("reason",),
            registry=self.registry,
        )
        self.ocsp_due = Gauge(
            "privyseal_ocsp_responses_due", "OCSP responses that wait to be made anew.", registry=self.registry
        )
        self.ocsp_responder_not_after = Gauge(
            "privyseal_ocsp_responder_not_after_seconds",
            "When the responder's certificate ends, in seconds since the epoch.",
            ("issuer",),
            registry=self.registry,
        )

    def _add_watch(self) -> None:
        self.watch_ok = Gauge(
            "privyseal_watch_ok",
            "Whether what is served at the public URLs is as it must be (1) or not (0), by check: crl, ocsp, canary.",
            ("issuer", "check"),
            registry=self.registry,
        )
        self.watch_finished = Gauge(
            "privyseal_watch_finished_seconds",
            "When the watcher last finished a round, in seconds since the epoch.",
            registry=self.registry,
        )
        self.served_age = Gauge(
            "privyseal_served_age_seconds",
            "Age of the oldest that is served, since its thisUpdate: crl, delta, ocsp.",
            ("issuer", "what"),
            registry=self.registry,
        )
        self.served_remaining = Gauge(
            "privyseal_served_remaining_seconds",
            "Seconds until the next nextUpdate of what is served: crl, delta, ocsp.",
            ("issuer", "what"),
            registry=self.registry,
        )
        self.revocation_visible = Gauge(
            "privyseal_revocation_visible_seconds",
            "Seconds from the last canary's revocation until it was seen: crl, ocsp.",
            ("issuer", "what"),
            registry=self.registry,
        )

    def _add_ledger(self) -> None:
        self.ledger_entries = Gauge("privyseal_ledger_entries", "Entries of the ledger.", registry=self.registry)
        self.ledger_checkpoint_size = Gauge(
            "privyseal_ledger_checkpoint_size",
            "Entries that the newest signed checkpoint covers.",
            registry=self.registry,
        )
        self.ledger_checkpoint_seconds = Gauge(
            "privyseal_ledger_checkpoint_seconds",
            "When the newest checkpoint was signed, in seconds since the epoch.",
            registry=self.registry,
        )

    def _add_witnesses(self) -> None:
        self.checkpoint_refused = Gauge(
            "privyseal_checkpoint_refused",
            "Whether no checkpoint is signed because the ledger is not what was signed or witnessed before (1) or not (0).",
            registry=self.registry,
        )
        self.checkpoint_cosignatures = Gauge(
            "privyseal_checkpoint_cosignatures",
            "Witnesses that have cosigned the newest checkpoint.",
            registry=self.registry,
        )
        self.checkpoint_quorum = Gauge(
            "privyseal_checkpoint_quorum",
            "Whether as many witnesses as the quorum asks for have cosigned the newest checkpoint (1) or not (0).",
            registry=self.registry,
        )
        # Where nobody asks for one, it is never missing.
        self.checkpoint_quorum.set(1)
        self.witness_up = Gauge(
            "privyseal_witness_up",
            "Whether the witness did what it was last asked for (1) or not (0).",
            ("witness",),
            registry=self.registry,
        )

    def _add_jobs(self) -> None:
        self.scheduler_leader = Gauge(
            "privyseal_scheduler_leader",
            "Whether this process does the work that one does for all (1) or not (0).",
            registry=self.registry,
        )
        self.job_last_success = Gauge(
            "privyseal_job_last_success_seconds",
            "When a job last ended without a problem, in seconds since the epoch.",
            ("job",),
            registry=self.registry,
        )
        self.job_duration = Gauge(
            "privyseal_job_duration_seconds", "Duration of a job's last run.", ("job",), registry=self.registry
        )
        self.job_failures = Counter(
            "privyseal_job_failures", "Runs of a job that failed.", ("job",), registry=self.registry
        )

        self.backup_last_success = Gauge(
            "privyseal_backup_last_success_seconds",
            "When the last scheduled backup was made, in seconds since the epoch; 0 when none is scheduled.",
            registry=self.registry,
        )
        self.audited = Counter(
            "privyseal_audited_certificates",
            "Certificates that were looked up in the ledger: complete, incomplete.",
            ("result",),
            registry=self.registry,
        )
        self.issuer_not_after = Gauge(
            "privyseal_issuer_not_after_seconds",
            "When the certificate of an active issuer ends, in seconds since the epoch.",
            ("issuer",),
            registry=self.registry,
        )

    def _add_fleet(self) -> None:
        self.fleet_lineages = Gauge(
            "privyseal_fleet_lineages",
            "Workloads by state: current, due, overdue, silent, failing, revoked, retired.",
            ("state", "criticality"),
            registry=self.registry,
        )
        self.fleet_missed = Gauge(
            "privyseal_fleet_missed",
            "Workloads whose renewal was due and did not come.",
            ("criticality",),
            registry=self.registry,
        )
        self.fleet_unowned = Gauge(
            "privyseal_fleet_unowned", "Workloads that nobody is known to own.", registry=self.registry
        )
        self.fleet_failing = Gauge(
            "privyseal_fleet_failing",
            "Failing workloads by the problem type of their last attempt.",
            ("problem",),
            registry=self.registry,
        )
        self.renewals = Counter(
            "privyseal_renewals",
            "Renewals: in_time, late (after the deadline), missed (counted when the deadline passes).",
            ("result",),
            registry=self.registry,
        )
        # There from the beginning: what first appears with its first count is not seen to grow.
        for result in ("in_time", "late", "missed"):
            self.renewals.labels(result)
        self.renewal_polls = Counter(
            "privyseal_renewal_polls", "Questions for renewal information that were answered.", registry=self.registry
        )
        self.survival = Gauge(
            "privyseal_survival_seconds",
            "If signing stopped now, seconds until the first workload, and 10, 50 and 90 percent of them, have no certificate.",
            ("by", "group", "fraction"),
            registry=self.registry,
        )

    def _add_notifications(self) -> None:
        self.notifications = Counter(
            "privyseal_notifications",
            "Attempts to deliver a notification: delivered, failed.",
            ("result",),
            registry=self.registry,
        )
        for result in ("delivered", "failed"):
            self.notifications.labels(result)
        self.notifications_waiting = Gauge(
            "privyseal_notifications_waiting", "Notifications that are not delivered yet.", registry=self.registry
        )
        self.notification_age = Gauge(
            "privyseal_notification_age_seconds",
            "Age of the oldest notification that is not delivered yet; 0 when there is none.",
            registry=self.registry,
        )

    def _add_exports(self) -> None:
        self.export_lag = Gauge(
            "privyseal_export_lag_entries",
            "Entries of the ledger that an export has not handed over for certain.",
            ("name",),
            registry=self.registry,
        )
        self.export_age = Gauge(
            "privyseal_export_age_seconds",
            "Seconds since an export last moved, or saw that there was nothing to hand over.",
            ("name",),
            registry=self.registry,
        )
        self.export_problem = Gauge(
            "privyseal_export_problem",
            "Whether an export does not go on (1) or does (0).",
            ("name",),
            registry=self.registry,
        )

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self.registry)


class WitnessMetrics:
    """The metrics of one witness (``privyseal witness serve``)."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.answers = Counter(
            "privyseal_witness_answers",
            "Checkpoints that were submitted, by HTTP status of the answer.",
            ("code",),
            registry=self.registry,
        )
        self.logs = Gauge("privyseal_witness_logs", "Logs that are watched.", registry=self.registry)
        self.conflicts = Gauge(
            "privyseal_witness_conflicts",
            "Checkpoints kept as evidence that contradict what was cosigned: proven, unproven.",
            ("kind",),
            registry=self.registry,
        )

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self.registry)
