"""The resource URLs, built from configuration and never from the Host header (RFC 8555 section 6.4)."""

import re
from base64 import urlsafe_b64encode


def new_id(random: bytes) -> str:
    """An unpredictable id of 22 characters from 16 random octets."""
    return urlsafe_b64encode(random).rstrip(b"=").decode()


def new_resource_id(now: float, random: bytes) -> str:
    """The id of a resource, 22 characters: the second it is made in, then 12 random octets (section 10.5).

    Resources that are used together stand together in the database's trees, which makes commits smaller.
    """
    return new_id(int(now).to_bytes(4, "big") + random)


class Urls:
    """The URLs under one public base URL, such as ``https://ca.internal:8443``."""

    def __init__(self, base: str) -> None:
        root = f"{base}/acme"
        self.root = root
        self.directory = f"{root}/directory"
        self.new_nonce = f"{root}/new-nonce"
        self.new_account = f"{root}/new-account"
        self.new_order = f"{root}/new-order"
        self.new_authz = f"{root}/new-authz"
        self.revoke_cert = f"{root}/revoke-cert"
        self.key_change = f"{root}/key-change"
        self.renewal_info = f"{root}/renewal-info"
        self.limits = f"{root}/limits"
        self.index_link = ("Link", f'<{self.directory}>;rel="index"')
        self._account = f"{root}/account/"
        self._order = f"{root}/order/"
        self._authorization = f"{root}/authz/"
        self._certificate = f"{root}/certificate/"
        self._explanation = f"{root}/renewal-explained/"
        self._account_pattern = re.compile(re.escape(self._account) + r"([A-Za-z0-9_-]{22})\Z")

    def account(self, account_id: str) -> str:
        """An account."""
        return self._account + account_id

    def account_id(self, url: str) -> str | None:
        """The id in an account URL that this server handed out, or None."""
        match = self._account_pattern.match(url)
        return match[1] if match else None

    def orders(self, account_id: str) -> str:
        """An account's list of orders."""
        return f"{self._account}{account_id}/orders"

    def order(self, order_id: str) -> str:
        """An order."""
        return self._order + order_id

    def finalize(self, order_id: str) -> str:
        """Where an order is finalized."""
        return f"{self._order}{order_id}/finalize"

    def authorization(self, authorization_id: str) -> str:
        """An authorization."""
        return self._authorization + authorization_id

    def challenge(self, authorization_id: str, challenge_type: str) -> str:
        """One challenge of an authorization."""
        return f"{self._authorization}{authorization_id}/{challenge_type}"

    def certificate(self, serial: str, chain: int = 0) -> str:
        """A certificate with its default chain, or with the alternate ``chain``."""
        return f"{self._certificate}{serial}" + (f"/{chain}" if chain else "")

    def explanation(self, certificate_id: str) -> str:
        """The page that tells people about a certificate's window (RFC 9773 section 4.2)."""
        return self._explanation + certificate_id
