"""What the metrics show of issuers."""

from privyseal_ca.issuance.issuers import IssuerSet
from privyseal_ca.telemetry.metrics import Metrics


async def show_issuers(issuers: IssuerSet, metrics: Metrics) -> None:
    """Show when the certificate of each active issuer ends. It is read when the service starts: cheap to show again."""
    for issuer in issuers:
        metrics.issuer_not_after.labels(issuer.identity.name).set(issuer.identity.not_after)
