"""dns-01 (RFC 8555 section 8.4) and dns-account-01 (draft-ietf-acme-dns-account-label)."""

import base64
import hashlib
import hmac

from privyseal_acme.validation.attempt import Attempt
from privyseal_acme.validation.challenge import ChallengeTask
from privyseal_acme.validation.outcome import ValidationFailedError, printable

_SHOWN_VALUES = 3
_SHOWN_LENGTH = 64


def dns01_name(task: ChallengeTask) -> str:
    """The name whose TXT records dns-01 looks at. A wildcard and its base share it."""
    return f"_acme-challenge.{task.value}"


def dns_account01_name(task: ChallengeTask) -> str:
    """The name of dns-account-01: one for each account, so that several may prove control side by side."""
    digest = hashlib.sha256(task.account_url.encode()).digest()
    label = base64.b32encode(digest[:10]).decode("ascii").lower()
    return f"_{label}._acme-challenge.{task.value}"


def expected_value(key_authorization: str) -> bytes:
    """The TXT value that proves control: the key authorization's SHA-256 in base64url."""
    digest = hashlib.sha256(key_authorization.encode("ascii")).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=")


async def check_txt(name: str, task: ChallengeTask, attempt: Attempt) -> None:
    """Return when any TXT record of ``name`` holds the expected value.

    Raises:
        ValidationFailedError: none does, or DNS gave no answer.
        TimeoutError: the attempt's time is over.
    """
    values = await attempt.lookup.txt(name)
    attempt.evidence.note("digest", hashlib.sha256(b"\n".join(values)).hexdigest())
    expected = expected_value(task.key_authorization)
    if any(hmac.compare_digest(value, expected) for value in values):
        return
    if not values:
        raise ValidationFailedError("dns", f"No TXT record was found at {name}.")
    shown = ", ".join(f"'{printable(value, _SHOWN_LENGTH)}'" for value in values[:_SHOWN_VALUES])
    more = f" and {len(values) - _SHOWN_VALUES} more" if len(values) > _SHOWN_VALUES else ""
    raise ValidationFailedError(
        "incorrectResponse", f"{name} has TXT {shown}{more}; expected '{expected.decode('ascii')}'."
    )
