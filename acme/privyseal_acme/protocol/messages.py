"""What clients send: the payloads of RFC 8555 as typed, immutable values. Unknown members are ignored (section 7.3)."""

from typing import Any, Literal, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from privyseal_acme.protocol.problems import malformed

M = TypeVar("M", bound="Message")

#: The most that the settings allow: what is longer is refused at its first item too many, and its first bad one.
_MAX_CONTACTS, _MAX_IDENTIFIERS = 100, 1000


class Message(BaseModel):
    """A payload. Types are strict: a number is never taken for text."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class IdentifierMessage(Message):
    """An identifier (section 9.7.7)."""

    type: str = Field(max_length=64)
    value: str = Field(max_length=2048)


class NewAccount(Message):
    """newAccount (section 7.3)."""

    contact: tuple[str, ...] | None = Field(None, max_length=_MAX_CONTACTS, fail_fast=True)
    terms_of_service_agreed: bool = Field(False, alias="termsOfServiceAgreed")
    only_return_existing: bool = Field(False, alias="onlyReturnExisting")
    external_account_binding: dict[str, Any] | None = Field(None, alias="externalAccountBinding")


class AccountUpdate(Message):
    """A change of an account (sections 7.3.2 and 7.3.6)."""

    contact: tuple[str, ...] | None = Field(None, max_length=_MAX_CONTACTS, fail_fast=True)
    status: str | None = None
    terms_of_service_agreed: bool | None = Field(None, alias="termsOfServiceAgreed")


class KeyChange(Message):
    """The inner payload of keyChange (section 7.3.5)."""

    account: str
    old_key: dict[str, Any] = Field(alias="oldKey")


class NewOrder(Message):
    """newOrder (section 7.4), with ARI's ``replaces`` and the profiles draft's ``profile``."""

    identifiers: tuple[IdentifierMessage, ...] = Field(max_length=_MAX_IDENTIFIERS, fail_fast=True)
    not_before: AwareDatetime | None = Field(None, alias="notBefore")
    not_after: AwareDatetime | None = Field(None, alias="notAfter")
    replaces: str | None = Field(None, max_length=256)
    profile: str | None = Field(None, max_length=256)


class NewAuthz(Message):
    """newAuthz (section 7.4.1)."""

    identifier: IdentifierMessage


class AuthorizationUpdate(Message):
    """A change of an authorization (section 7.5.2)."""

    status: Literal["deactivated"]


class ChallengeResponse(Message):
    """The response to a challenge (section 7.5.1): any object."""


class Finalize(Message):
    """finalize (section 7.4)."""

    csr: str


class RevokeCert(Message):
    """revokeCert (section 7.6)."""

    certificate: str
    reason: int | None = None


def parse_message(kind: type[M], payload: bytes) -> M:
    """``payload`` as a message of ``kind``.

    Raises:
        Problem: malformed, naming the first member that is wrong.
    """
    if not payload:
        raise malformed("The payload is empty; this resource takes a JSON object.")
    try:
        return kind.model_validate_json(payload)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise malformed(
            f"The payload is not right{f' at {where[:64]}' if where else ''}: {first['msg'][:160]}."
        ) from None
