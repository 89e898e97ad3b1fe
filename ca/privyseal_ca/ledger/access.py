"""Who may read entry bundles, which hold internal names: everybody, holders of a token, or nobody."""

import hmac
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final, Literal

from privyseal_ca.config import Settings
from privyseal_ca.private_file import read_private_line

#: Of an access token in characters: 128 bits in hex.
_SHORTEST: Final = 32

Entries = Literal["open", "token", "closed"]


@dataclass(frozen=True, slots=True)
class EntriesAccess:
    """What :attr:`LedgerSettings.entries` says, with the token where there is one."""

    entries: Entries = "closed"
    token: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if (self.token is not None) != (self.entries == "token"):
            raise ValueError("a token is needed with `token`, and with nothing else")

    def admits(self, token: bytes | None) -> bool:
        """Whether whoever shows ``token`` may read entries. The time it takes tells nothing about the right one."""
        if self.entries != "token":
            return self.entries == "open"
        shown, right = sha256(token or b"").digest(), sha256(self.token or b"").digest()
        return hmac.compare_digest(shown, right) and token is not None


def entries_access(settings: Settings) -> EntriesAccess:
    """The access that ``settings`` give; the token is read from its file, once.

    Raises:
        ConfigurationError: the file cannot be used.
    """
    ledger = settings.ledger
    if ledger.entries_token_file is None:
        return EntriesAccess("open" if ledger.entries == "open" else "closed")
    path = settings.home / ledger.entries_token_file
    return EntriesAccess("token", read_private_line(path, what="the ledger's access token", shortest=_SHORTEST))
