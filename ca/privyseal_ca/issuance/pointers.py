"""Where certificates say that their issuer, its CRLs and its OCSP responder are."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pointers:
    """The public URLs of one issuer, all plain HTTP: fetching them over TLS would need the answer first (RFC 5280 section 8)."""

    base_url: str
    """Of the plain listener, without a slash at the end."""
    issuer_id: str
    shards: int = 1
    """Into how many parts the issuer's CRL is divided for certificates that are issued now."""
    deltas: bool = False
    """Whether there is a delta CRL beside each part."""
    first_shard: int = 0
    """The first part for certificates that are issued now: those before it are named by another base URL."""
    former: tuple[tuple[int, str], ...] = ()
    """Base URLs from before, each with the first of its parts, in their order. A part is named as it was when certificates
    named it, for as long as there are any."""

    @property
    def ca_issuers(self) -> str:
        """The issuer's certificate."""
        return f"{self.base_url}/issuers/{self.issuer_id}.cer"

    @property
    def ocsp(self) -> str:
        """The OCSP responder."""
        return f"{self.base_url}/ocsp"

    def shard_of(self, serial: int) -> int:
        """The part of the CRL for a new certificate with ``serial``, whose low bits are random."""
        return self.first_shard + serial % self.shards

    @property
    def current(self) -> range:
        """The parts that certificates are given now."""
        return range(self.first_shard, self.first_shard + self.shards)

    def crl(self, shard: int | None) -> str:
        """The CRL that is one part of the list, or with None all of it."""
        return self._base_of(shard) + crl_path(self.issuer_id, shard)

    def delta(self, shard: int) -> str:
        """The delta CRL of one part."""
        return self._base_of(shard) + crl_path(self.issuer_id, shard, delta=True)

    def _base_of(self, shard: int | None) -> str:
        if shard is None or shard >= self.first_shard:
            return self.base_url
        return next((url for first, url in reversed(self.former) if shard >= first), self.base_url)


def crl_path(issuer_id: str, shard: int | None, *, delta: bool = False) -> str:
    """The path of a CRL below the base URL, which is its file's below the folder that `status publish` writes."""
    part = "" if shard is None else f"/{shard}"
    return f"/crl/{issuer_id}{part}{'-delta' if delta else ''}.crl"
