"""What is to be checked, independent of how."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ChallengeTask:
    """One challenge (RFC 8555 section 8) that its client says is ready to be checked.

    Attributes:
        type: ``http-01``, ``dns-01``, ``tls-alpn-01`` or ``dns-account-01``.
        identifier_type: ``dns`` or ``ip``.
        value: the name in lower case without ``*.``, or the address in its RFC 5952 form.
        wildcard: whether the order asked for ``*.`` in front of ``value``.
        token: the challenge's token.
        key_authorization: token and account key thumbprint, joined by a dot (section 8.1).
        account_url: the account's URL; dns-account-01 and CAA's ``accounturi`` depend on it.
    """

    type: str
    identifier_type: str
    value: str
    wildcard: bool
    token: str
    key_authorization: str
    account_url: str
