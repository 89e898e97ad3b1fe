"""The sections of the settings. Their field descriptions are the manual: ``docs/configuration.md`` is written from them.

Times are seconds.
"""

from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from privyseal_ca.closed_periods import parse_closed_periods, parse_zone

IPNetwork = IPv4Network | IPv6Network


def _networks(*texts: str) -> tuple[IPNetwork, ...]:
    return tuple(ip_network(text) for text in texts)


PRIVATE_NETWORKS = _networks(
    "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "127.0.0.0/8", "100.64.0.0/10", "fc00::/7", "::1/128"
)
# Cloud metadata services stand beside link-local: a certificate authority has no business there.
NEVER_VALIDATED_NETWORKS = _networks(
    "169.254.0.0/16",
    "fe80::/10",
    "100.100.100.200/32",
    "fd00:ec2::254/128",
    "0.0.0.0/8",
    "224.0.0.0/4",
    "ff00::/8",
)
SPECIAL_USE_SUFFIXES = (
    "internal",
    "home.arpa",
    "localhost",
    "test",
    "local",
    "lan",
    "svc",
    "cluster.local",
)


class Section(BaseModel):
    """A section of the settings: frozen, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class ServerSettings(Section):
    """Where the service listens and what it is called from outside."""

    https: str = Field("127.0.0.1:8443", description="Address and port of the TLS listener: ACME under `/acme/`.")
    http: str = Field(
        "127.0.0.1:8080",
        description="Address and port of the plain listener: `/roots.pem`, `/issuers/`, `/crl/`, `/crls.pem`, `/ocsp`, "
        "`/ledger/`, `/metrics`, `/healthz`, `/readyz`.",
    )
    https_url: str = Field(
        "",
        description="Public base URL of the TLS listener; it goes into the directory. From `https` when empty.",
    )
    http_url: str = Field(
        "",
        description="Public base URL of the plain listener; it goes into certificates, into those of intermediates only "
        "when it is set. From `http` when empty. Every relying party must reach it.",
    )
    names: tuple[str, ...] = Field(
        (),
        description="More names and addresses for the server's own certificate, beside the hosts of `https` and `https_url`.",
    )
    tls_lifetime: int = Field(
        86400,
        ge=600,
        le=30 * 86400,
        description="Lifetime of the server's own certificate. It is replaced at two thirds of it.",
    )
    shutdown_grace: float = Field(
        15, gt=0, le=300, description="How long SIGTERM waits for requests and issuances in flight."
    )

    @field_validator("https", "http")
    @classmethod
    def _listener(cls, value: str) -> str:
        parse_listener(value)
        return value

    @field_validator("https_url", "http_url")
    @classmethod
    def _base_url(cls, value: str, info: Any) -> str:
        if not value:
            return value
        scheme = info.field_name.removesuffix("_url")
        parts = urlsplit(value)
        if parts.scheme != scheme or not parts.netloc or parts.query or parts.fragment or not value.isascii():
            raise ValueError(f"must be an absolute {scheme}:// URL of ASCII characters without query or fragment")
        return value.rstrip("/")

    @property
    def public_https(self) -> str:
        """The base URL of the TLS listener, without a slash at the end."""
        return self.https_url or f"https://{_reachable(self.https, 443)}"

    @property
    def public_http(self) -> str:
        """The base URL of the plain listener, without a slash at the end."""
        return self.http_url or f"http://{_reachable(self.http, 80)}"


class DatabaseSettings(Section):
    """Where state is kept."""

    url: str = Field(
        "",
        repr=False,
        description="`sqlite:///FILE` (a relative FILE is in the home) or `postgresql://USER@HOST/NAME`. Empty: "
        "`sqlite:///privyseal.db`.",
    )
    connections: int = Field(4, ge=1, le=64, description="PostgreSQL connections for reading. SQLite needs one.")
    queue: int = Field(
        4096,
        ge=16,
        le=1_000_000,
        description="Units of work that may wait for the writer before requests are refused.",
    )
    timeout: float = Field(
        10, gt=0, le=120, description="How long one unit of work may wait for the database's lock or answer."
    )


class HsmSettings(Section):
    """How the PKCS#11 token is reached. Which keys it holds is recorded with each issuer."""

    pin_file: Path | None = Field(
        None,
        description="File with the user PIN, readable by its owner only. Default: the systemd credential "
        "`privyseal-pin`, else `secrets/pin` in the home. `PRIVYSEAL_HSM__PIN` takes precedence over files.",
    )
    pin: str = Field(
        "",
        repr=False,
        description="The user PIN. Meant for the environment (`PRIVYSEAL_HSM__PIN`); refused in `privyseal.toml`.",
    )
    queue: int = Field(
        1024, ge=1, le=100_000, description="Requests that may wait for the token before they are refused."
    )
    timeout: float = Field(
        10, gt=0, le=300, description="How long one request may wait for the token before it counts as away."
    )
    retry_after: float = Field(
        2,
        gt=0,
        le=300,
        description="First pause before a token that failed is tried again; it doubles up to one minute.",
    )
    replicas: tuple[str, ...] = Field(
        (),
        description="Further tokens that hold the same keys as the issuing token, as RFC 7512 URIs with a module, such as "
        "`pkcs11:token=issuing-b?module-path=/usr/lib/vendor/libpkcs11.so`. While a token is away, the next one that has the key "
        "is used. How keys get into both is the matter of the tokens' maker.",
    )


class ValidationSettings(Section):
    """How control over names is checked."""

    http_port: int = Field(80, ge=1, le=65535, description="Port of http-01 (RFC 8555 section 8.3).")
    tls_port: int = Field(443, ge=1, le=65535, description="Port of tls-alpn-01 (RFC 8737).")
    resolvers: tuple[str, ...] = Field(
        (), description="DNS servers as `ADDRESS` or `ADDRESS:PORT`. The system's resolver when empty."
    )
    allowed_networks: tuple[IPNetwork, ...] = Field(
        PRIVATE_NETWORKS,
        description="Networks that validation may connect to.",
    )
    denied_networks: tuple[IPNetwork, ...] = Field(
        NEVER_VALIDATED_NETWORKS,
        description="Networks that validation never connects to, even when they are allowed: link-local, multicast and cloud "
        "metadata services.",
    )
    challenges: tuple[str, ...] = Field(
        ("http-01", "dns-01", "tls-alpn-01", "dns-account-01"),
        description="Challenge types that are offered.",
    )
    timeout: float = Field(5, gt=0, le=60, description="How long one attempt may take, DNS and redirects included.")
    attempts: int = Field(3, ge=1, le=10, description="Attempts before a validation fails.")
    retry_delay: float = Field(
        0.5, ge=0, le=60, description="Pause after the first failed attempt; it doubles each time."
    )
    redirects: int = Field(5, ge=0, le=20, description="Redirects that http-01 follows.")
    concurrency: int = Field(256, ge=1, le=10_000, description="Validations that run at the same time.")
    queue: int = Field(
        20_000,
        ge=1,
        le=1_000_000,
        description="Validations that may wait before responses to challenges are refused.",
    )
    caa: bool = Field(False, description="Whether CAA records are checked (RFC 8659 and 8657).")
    caa_identities: tuple[str, ...] = Field((), description="This authority's own domain names in CAA records.")

    @field_validator("challenges")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        unknown = set(value) - {"http-01", "dns-01", "tls-alpn-01", "dns-account-01"}
        if unknown or not value:
            raise ValueError(f"unknown or no challenge types: {', '.join(sorted(unknown)) or 'none given'}")
        return value

    @model_validator(mode="after")
    def _caa_has_identity(self) -> "ValidationSettings":
        if self.caa and not self.caa_identities:
            raise ValueError("caa = true needs caa_identities, the names that CAA records give this authority")
        return self


class AcmeSettings(Section):
    """The ACME server (RFC 8555)."""

    terms_of_service: str = Field("", description="URL of the terms; when set, new accounts must agree to them.")
    website: str = Field("", description="URL about this authority, shown in the directory.")
    external_account_required: bool = Field(
        False, description="Whether new accounts need an external account binding (`privyseal eab create`)."
    )
    order_lifetime: int = Field(7 * 86400, ge=300, le=30 * 86400, description="How long an order may stay unfinished.")
    authorization_lifetime: int = Field(
        86400,
        ge=60,
        le=30 * 86400,
        description="How long a validated authorization counts, for revocation and reuse.",
    )
    reuse_authorizations: bool = Field(
        False,
        description="Whether a validated authorization of an earlier order serves a new order. Authorizations made by newAuthz "
        "always do.",
    )
    max_identifiers: int = Field(100, ge=1, le=1000, description="Identifiers in one order.")
    max_contacts: int = Field(10, ge=0, le=100, description="Contacts of one account.")
    nonce_lifetime: int = Field(3600, ge=60, le=86400, description="How long an unused nonce is accepted.")
    orders_page: int = Field(100, ge=1, le=1000, description="Orders on one page of an account's list.")
    max_body: int = Field(65536, ge=4096, le=1 << 20, description="Largest request body in bytes.")
    finalize_wait: float = Field(
        5,
        gt=0,
        le=60,
        description="How long finalize waits for the certificate before it answers `processing`.",
    )


class LimitSettings(Section):
    """Rate limits: `N` events per `period` seconds, in bursts of up to `N`; 0 turns a limit off."""

    new_accounts: int = Field(50_000, ge=0, description="New accounts from one address.")
    new_accounts_period: int = Field(3600, ge=1, description="Period of `new_accounts`.")
    account_changes: int = Field(
        1000, ge=0, description="Changes of contacts and keys of one account, each of which is an entry of the ledger."
    )
    account_changes_period: int = Field(3600, ge=1, description="Period of `account_changes`.")
    new_orders: int = Field(
        100_000, ge=0, description="New orders of one account, and new authorizations ahead of orders."
    )
    new_orders_period: int = Field(3600, ge=1, description="Period of `new_orders`.")
    failed_validations: int = Field(10_000, ge=0, description="Failed validations of one account.")
    failed_validations_period: int = Field(3600, ge=1, description="Period of `failed_validations`.")


class PolicySettings(Section):
    """Which names an account may have. Deny wins over allow; what neither names is refused (promise P11).

    A DNS entry is a suffix, such as `corp.example`: the name itself and everything below it. An entry that holds `*`
    is a pattern for the whole name, label by label, such as `web-*.corp.example`.
    """

    allow_dns: tuple[str, ...] = Field(
        SPECIAL_USE_SUFFIXES, description="DNS suffixes and patterns that may be certified."
    )
    deny_dns: tuple[str, ...] = Field((), description="DNS suffixes and patterns that are refused.")
    allow_single_labels: bool = Field(True, description="Whether names of one label, such as `db1`, may be certified.")
    allow_wildcards: bool = Field(True, description="Whether `*.` may stand before an allowed name.")
    allow_ip: tuple[IPNetwork, ...] = Field(
        PRIVATE_NETWORKS,
        description="Networks whose addresses may be certified.",
    )
    deny_ip: tuple[IPNetwork, ...] = Field((), description="Networks whose addresses are refused.")
    allow_uri: tuple[str, ...] = Field((), description="URI prefixes that may be certified.")
    deny_uri: tuple[str, ...] = Field((), description="URI prefixes that are refused.")
    allow_email: tuple[str, ...] = Field((), description="Mail domains whose addresses may be certified.")
    profiles: tuple[str, ...] = Field((), description="Profiles that may be used. All when empty.")


class KeyPolicySettings(Section):
    """Which public keys are good enough."""

    min_rsa_bits: int = Field(2048, ge=2048, le=8192, description="Smallest RSA modulus.")
    max_rsa_bits: int = Field(4096, ge=2048, le=16384, description="Largest RSA modulus.")
    blocklist: Path | None = Field(
        None,
        description="A badkeys `blocklist.dat` of known-compromised keys, checked beside the built-in list.",
    )


class IssuanceSettings(Section):
    """How certificates are issued."""

    default_profile: str = Field("mtls", description="Profile of orders that name none.")
    profiles_dir: Path = Field(
        Path("profiles"),
        description="Folder with more profiles as TOML files (a relative folder is in the home).",
    )


class StatusSettings(Section):
    """Revocation: CRLs, OCSP, and how both are watched."""

    interval: float = Field(
        1,
        gt=0,
        le=60,
        description="How often revocations are looked for. What is found at the same time becomes one CRL.",
    )
    crl_lifetime: int = Field(
        3 * 86400, ge=600, le=30 * 86400, description="How long after its thisUpdate a CRL's nextUpdate is."
    )
    crl_refresh: int = Field(
        6 * 3600,
        ge=60,
        le=15 * 86400,
        description="After how long a CRL without new revocations is replaced; at most half of `crl_lifetime`.",
    )
    crl_shards: int = Field(
        8,
        ge=1,
        le=256,
        description="Into how many parts an issuer's CRL is divided. The part is chosen when a certificate is issued and "
        "named in it, so a change counts for new certificates only.",
    )
    delta_crls: bool = Field(
        False,
        description="Whether there is a delta CRL beside each part, which new certificates name (freshestCRL).",
    )
    ocsp_lifetime: int = Field(
        3 * 86400,
        ge=120,
        le=15 * 86400,
        description="How long after its thisUpdate an OCSP response's nextUpdate is. It is replaced at half of that.",
    )
    ocsp_hashes: tuple[str, ...] = Field(
        ("sha1", "sha256"),
        description="Hashes of the CertIDs for which responses are kept ready: `sha1`, which most clients use, and `sha256`. "
        "For the other a response is signed when it is first asked for.",
    )
    ocsp_delay: int = Field(
        60,
        ge=0,
        le=3600,
        description="How long after its issuance a certificate's first responses are made, so that nobody waits for them. "
        "Who asks the service earlier gets one made at once; the status role and published files have none until then.",
    )
    ocsp_queue: int = Field(
        64,
        ge=1,
        le=10_000,
        description="Responses that may be signed on request at the same time before clients are told to try later.",
    )
    responder_lifetime: int = Field(
        14 * 86400,
        ge=600,
        le=90 * 86400,
        description="Lifetime of the OCSP responders' certificates; at least three times `ocsp_lifetime`. They are replaced at "
        "half of it.",
    )
    max_age: int = Field(
        60, ge=0, le=86400, description="How long caches may keep a CRL or an OCSP response without asking again."
    )
    watch_interval: float = Field(
        60, gt=0, le=3600, description="How often what is really served at the public URLs is fetched and checked."
    )
    canary_lifetime: int = Field(
        2 * 86400,
        ge=600,
        le=30 * 86400,
        description="Lifetime of the certificates that are issued and revoked to watch that revocations become visible. "
        "There is a new one at half of it.",
    )

    @field_validator("ocsp_hashes")
    @classmethod
    def _known_hashes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if set(value) - {"sha1", "sha256"}:
            raise ValueError("may hold sha1 and sha256 only")
        return value

    @model_validator(mode="after")
    def _in_time(self) -> "StatusSettings":
        if self.crl_refresh * 2 > self.crl_lifetime:
            raise ValueError("crl_refresh must be at most half of crl_lifetime")
        if self.responder_lifetime < 3 * self.ocsp_lifetime:
            raise ValueError("responder_lifetime must be at least three times ocsp_lifetime")
        return self


class WitnessSettings(Section):
    """A witness that cosigns this ledger's checkpoints (C2SP tlog-witness)."""

    vkey: str = Field(description="Its verification key for cosignatures, as `privyseal witness vkey` prints it there.")
    url: str = Field(
        pattern="^https?://", description="Its submission prefix: checkpoints are sent to `add-checkpoint` below it."
    )
    monitoring_url: str = Field(
        "",
        pattern="^(https?://.*)?$",
        description="Its monitoring prefix, where the newest checkpoint that it has cosigned is read. Default: `url`.",
    )


class LedgerSettings(Section):
    """What is served of the ledger, who cosigns it, and where its newest checkpoint is kept outside.

    Checkpoints, hashes and receipts are open to everybody.
    """

    entries: str = Field(
        "closed",
        pattern="^(open|token|closed)$",
        description="Who may read whole entries at `/ledger/tile/entries/`: everybody (`open`), whoever shows the token in "
        "`entries_token_file` (`token`), or nobody (`closed`). They hold internal names, accounts and operators. "
        "`privyseal status publish` writes them only when it is `open`.",
    )
    entries_token_file: Path | None = Field(
        None,
        description="File with the access token, one line of 32 to 255 characters, readable by its owner only (a relative "
        "file is in the home). Clients send it as `Authorization: Bearer TOKEN`; the plain listener does not encrypt it.",
    )

    witnesses: tuple[WitnessSettings, ...] = Field(
        (), description="Witnesses that are asked to cosign every checkpoint, each with `vkey` and `url`."
    )
    quorum: int = Field(
        0,
        ge=0,
        le=32,
        description="How many witnesses have to cosign a checkpoint. With fewer, a metric and a warning say so.",
    )
    quorum_required: bool = Field(
        False,
        description="Whether issuance waits while the quorum is missing for longer than `quorum_patience`. Otherwise witnesses "
        "are never a reason to stop.",
    )
    quorum_patience: float = Field(
        60, gt=0, le=86400, description="How long the quorum may be missing before issuance waits, when it is required."
    )
    witness_timeout: float = Field(
        0.5, gt=0, le=30, description="How long the publication of a checkpoint waits for cosignatures."
    )
    outside: tuple[str, ...] = Field(
        (),
        description="Where this ledger's newest checkpoint is kept outside: files, or URLs such as that of a folder written by "
        "`privyseal status publish`. The service does not start while its database is behind one of them. Witnesses are asked "
        "too. A place that cannot be reached is passed over, unless a backup was restored since the last start.",
    )

    kept_checkpoint: Path = Field(
        Path("newest-checkpoint"),
        description="File in which the service keeps its newest checkpoint (a relative one is in the home). A database that was "
        "put back to an earlier state is found by it when the service starts: keep it elsewhere than the database's files.",
    )

    @model_validator(mode="after")
    def _quorum_can_be_reached(self) -> "LedgerSettings":
        if self.quorum > len(self.witnesses):
            raise ValueError("quorum is larger than the number of witnesses")
        if self.quorum_required and not self.quorum:
            raise ValueError("quorum_required needs a quorum")
        return self

    @model_validator(mode="after")
    def _token_has_a_file(self) -> "LedgerSettings":
        if (self.entries == "token") != (self.entries_token_file is not None):
            raise ValueError('entries = "token" and entries_token_file need each other')
        return self


class RenewalSettings(Section):
    """When clients that ask are told to renew (ARI, RFC 9773)."""

    capacity: float = Field(
        0,
        ge=0,
        le=100_000,
        description="Certificates per second that can be signed; renewals are planned for half of it. 0: as many as were "
        "issued in the busiest minute that is known, at least 16.",
    )
    spread: float = Field(
        1 / 6,
        ge=0.02,
        le=0.3,
        description="The part of a certificate's life over which renewals are spread, around two thirds of it (half of lives "
        "under ten days). It grows to the front when more fall due than `capacity` allows.",
    )
    margin: float = Field(
        0.25,
        ge=0.1,
        le=0.45,
        description="The part of a certificate's life that is left at least when its window ends, for further attempts.",
    )
    poll: int = Field(
        6 * 3600,
        ge=60,
        le=86400,
        description="After how long clients ask again (Retry-After), a quarter more or less; a 24th of the certificate's life "
        "when that is shorter, at least a minute.",
    )
    closed: tuple[str, ...] = Field(
        (),
        max_length=64,
        description="Periods in which nothing is to be renewed: weekly, as in `FR 18:00/MO 06:00` or `MO TU 22:00/02:00`, or "
        "once, as in `2026-12-20T00:00/2027-01-06T00:00`.",
    )
    time_zone: str = Field(
        "UTC", description="Time zone of `closed`, a name of the IANA database such as `Europe/Berlin`."
    )

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        parse_zone(value)
        return value

    @field_validator("closed")
    @classmethod
    def _periods(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        parse_closed_periods(value, "UTC")
        return value

    @model_validator(mode="after")
    def _periods_in_their_zone(self) -> "RenewalSettings":
        # Whether an interval ends after it begins may depend on the zone, when one end has an offset of its own.
        parse_closed_periods(self.closed, self.time_zone)
        return self


class RetentionSettings(Section):
    """How long what has ended is kept. Accounts, certificates, revocations and ledger entries are kept for ever."""

    orders: int = Field(
        30 * 86400,
        ge=86400,
        le=3650 * 86400,
        description="How long an order is kept: counted from its `expires`; with a certificate from the certificate's end, or "
        "from the end of the one that it replaces when that is later. Orders that wait for their certificate always stay.",
    )
    authorizations: int = Field(
        30 * 86400,
        ge=86400,
        le=3650 * 86400,
        description="How long an authorization is kept with its challenges after its `expires`. Orders that are kept longer go "
        "on naming it.",
    )


class SchedulerSettings(Section):
    """Work that is due again and again."""

    lease: float = Field(
        15,
        ge=3,
        le=300,
        description="How long the process that does the work which one does for all is waited for before another does it. "
        "It renews this lease after a third of the time.",
    )


class LogSettings(Section):
    """What is logged, and how."""

    format: str = Field("json", pattern="^(json|text)$", description="`json` or `text`, on standard error.")
    level: str = Field("info", pattern="^(debug|info|warning|error)$", description="Least severe event that is logged.")


class TelemetrySettings(Section):
    """Traces of requests, for a collector that speaks OTLP over HTTP. Metrics need no settings."""

    otlp_endpoint: str = Field(
        "",
        pattern="^(https?://[^\\s@]+)?$",
        description="Where traces are sent, as in `http://collector.internal:4318/v1/traces`. Default: nothing is traced.",
    )
    otlp_ca_file: Path | None = Field(
        None,
        description="PEM file with the certificates that vouch for the collector. Default: the public authorities.",
    )
    otlp_queue: int = Field(
        4096,
        ge=1,
        le=1_000_000,
        description="How many spans may wait for the collector; further ones are dropped and counted.",
    )
    sample_ratio: float = Field(0.1, ge=0, le=1, description="The part of all traces that is recorded.")
    client_traces: str = Field(
        "ignore",
        pattern="^(ignore|link|parent)$",
        description="What becomes of a client's `traceparent` header: nothing (`ignore`), a link to its trace (`link`), or its "
        "trace is continued (`parent`), which lets clients choose what is recorded.",
    )


def parse_listener(text: str) -> tuple[str, int]:
    """``HOST:PORT`` or ``[IPv6]:PORT`` as host and port.

    Raises:
        ValueError: it is neither.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or not 0 <= int(port) <= 65535:
        raise ValueError("must be HOST:PORT")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError("an IPv6 address must stand in brackets, as in [::1]:8443")
    if not host:
        raise ValueError("must name a host before the port")
    return host, int(port)


def _reachable(listener: str, default_port: int) -> str:
    """The host and port under which a listener is reached from this machine."""
    host, port = parse_listener(listener)
    if host in {"0.0.0.0", "::"}:  # noqa: S104 (compared, not bound)
        host = "localhost"
    if ":" in host:
        host = f"[{host}]"
    return host if port == default_port else f"{host}:{port}"
