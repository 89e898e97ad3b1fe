"""Profiles: what a kind of certificate looks like, written in TOML, checked when loaded, immutable afterwards.

A profile is the only source of a certificate's lifetime, usages and pointers; a request chooses among what it allows.
The fields of :class:`ProfileDocument` are the manual of the files.
"""

import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from privyseal_ca.config import problems_of
from privyseal_ca.errors import ConfigurationError, ProfileRefusedError, UnsupportedNameError
from privyseal_ca.identifiers import Identifier, IdentifierType, shown

MAX_PROFILES: Final = 100
MAX_PROFILE_FILE: Final = 64 * 1024  # octets

KeyType = Literal["ec-p256", "ec-p384", "ec-p521", "rsa", "ed25519"]
KeyUsageName = Literal["digitalSignature", "contentCommitment", "keyEncipherment", "keyAgreement"]
SubjectRule = Literal["none", "common-name"]
CrlPointer = Literal["none", "shard", "full"]

EXTENDED_KEY_USAGES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "serverAuth": "1.3.6.1.5.5.7.3.1",
        "clientAuth": "1.3.6.1.5.5.7.3.2",
        "codeSigning": "1.3.6.1.5.5.7.3.3",
        "emailProtection": "1.3.6.1.5.5.7.3.4",
        "timeStamping": "1.3.6.1.5.5.7.3.8",
    }
)
# anyExtendedKeyUsage undoes the restriction; OCSPSigning would make a responder of whoever has the key (RFC 6960 4.2.2.2).
_FORBIDDEN_EKUS: Final = frozenset({"2.5.29.37.0", "1.3.6.1.5.5.7.3.9"})

_Oid = Annotated[str, Field(pattern=r"^([A-Za-z]+|[0-2](\.(0|[1-9][0-9]{0,18})){1,20})$")]
_Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]


class ProfileDocument(BaseModel):
    """One profile as its file has it. The file's name without ``.toml`` is the profile's. Times are seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    description: str = Field(
        min_length=1, max_length=300, description="One line for people, shown in the ACME directory."
    )
    lifetime: int = Field(ge=300, le=398 * 86400, description="How long a certificate is valid when nothing is asked.")
    max_lifetime: int = Field(
        ge=300, le=398 * 86400, description="The longest validity that may be asked for, without backdating."
    )
    backdate: int = Field(
        120,
        ge=0,
        le=3600,
        description="How long before its issuance a certificate is valid, for clocks that are behind.",
    )
    key_types: tuple[KeyType, ...] = Field(min_length=1, description="Kinds of subscriber keys.")
    key_usage: tuple[KeyUsageName, ...] = Field(
        min_length=1,
        description="Key usage bits (RFC 5280 section 4.2.1.3). `keyEncipherment` is set for RSA keys only, "
        "`keyAgreement` for EC keys only.",
    )
    extended_key_usage: tuple[_Oid, ...] = Field(
        min_length=1, max_length=20, description="Extended key usages, by name or as dotted object identifiers."
    )
    subject: SubjectRule = Field(
        "none",
        description="`none`: an empty subject. `common-name`: the first DNS name of up to 64 characters, if there is one.",
    )
    san_types: tuple[IdentifierType, ...] = Field(min_length=1, description="Kinds of names that may be certified.")
    max_names: int = Field(100, ge=1, le=1000, description="Names in one certificate.")
    wildcard: bool = Field(True, description="Whether DNS names may begin with `*.`.")
    issuers: tuple[_Name, ...] = Field(
        (), max_length=20, description="Issuers in order of preference. Any active one when empty."
    )
    aia_ca_issuers: bool = Field(True, description="Whether certificates say where their issuer's certificate is.")
    ocsp: bool = Field(
        True,
        description="Whether certificates name the OCSP responder, and responses are kept ready for them. `false` with "
        "`no_rev_avail`.",
    )
    crl: CrlPointer = Field(
        "shard",
        description="The CRL that certificates name: `shard`, one of the parts of their issuer's list; `full`, all of it; "
        "or `none`, as with `no_rev_avail`.",
    )
    no_rev_avail: bool = Field(
        False, description="Whether certificates say that revocation information is never published (RFC 9608)."
    )

    @model_validator(mode="before")
    @classmethod
    def _without_pointers(cls, document: Any) -> Any:
        """What says that there is no revocation information names none unless it says so (RFC 9608 section 4)."""
        if isinstance(document, dict) and document.get("no_rev_avail") is True:
            return {"ocsp": False, "crl": "none", **document}
        return document

    @model_validator(mode="after")
    def _consistent(self) -> "ProfileDocument":
        """Raise ``ValueError`` for what each field allows alone but a certificate may not combine."""
        if self.lifetime > self.max_lifetime:
            raise ValueError("lifetime is longer than max_lifetime")
        if self.no_rev_avail and (self.ocsp or self.crl != "none"):
            raise ValueError("no_rev_avail excludes ocsp and crl (RFC 9608 section 4)")
        for field in ("key_types", "key_usage", "extended_key_usage", "san_types", "issuers"):
            values = getattr(self, field)
            if len(set(values)) != len(values):
                raise ValueError(f"{field} names something twice")
        oids = self.extended_key_usage_oids
        if len(set(oids)) != len(oids):
            raise ValueError("extended_key_usage names something twice")
        if forbidden := _FORBIDDEN_EKUS.intersection(oids):
            raise ValueError(f"extended_key_usage may not hold {', '.join(sorted(forbidden))}")
        for kind in self.key_types:
            if not usages_for(self.key_usage, kind):
                raise ValueError(f"key_usage leaves nothing for {kind} keys")
        return self

    @property
    def extended_key_usage_oids(self) -> tuple[str, ...]:
        """The extended key usages as dotted object identifiers; ``ValueError`` for an unknown name."""
        oids = []
        for entry in self.extended_key_usage:
            oid = EXTENDED_KEY_USAGES.get(entry, entry)
            if not oid[0].isdigit():
                raise ValueError(f"extended_key_usage: unknown name {entry}; use a dotted object identifier")
            oids.append(oid)
        return tuple(oids)


@dataclass(frozen=True, slots=True)
class Profile:
    """A checked profile. Times are seconds; the meaning of each field stands in :class:`ProfileDocument`."""

    name: str
    description: str
    lifetime: int
    max_lifetime: int
    backdate: int
    key_types: frozenset[str]
    key_usage: tuple[KeyUsageName, ...]
    extended_key_usage: tuple[str, ...]
    """Dotted object identifiers."""
    subject: SubjectRule
    san_types: frozenset[IdentifierType]
    max_names: int
    wildcard: bool
    issuers: tuple[str, ...]
    aia_ca_issuers: bool
    ocsp: bool
    crl: CrlPointer
    no_rev_avail: bool
    digest: str
    """SHA-256 over name and content in hexadecimal: what the ledger says which profile was used."""
    nameless: bool = False
    """Whether certificates have no names but a common name that the request says. Never so in profiles from files."""
    ocsp_no_check: bool = False
    """Whether certificates are those of OCSP responders (RFC 6960 section 4.2.2.2.1). Never so in profiles from files."""

    def __hash__(self) -> int:
        return hash(self.digest)

    def check_names(self, names: Collection[Identifier]) -> None:
        """Return when a certificate of this profile may carry ``names``.

        Raises:
            UnsupportedNameError: a kind of name, or a wildcard, that the profile does not have.
            ProfileRefusedError: too many names, none, or names that do not go together.
        """
        if self.nameless and not names:
            return
        if not 0 < len(names) <= self.max_names:
            raise ProfileRefusedError(
                f"{len(names)} names do not fit the profile {self.name}.", hint=f"Ask for 1 to {self.max_names} names."
            )
        for name in names:
            if name.type not in self.san_types or (not self.wildcard and name.wildcard):
                what = "wildcards" if name.wildcard and "dns" in self.san_types else f"names of type {name.type}"
                raise UnsupportedNameError(
                    name.type,
                    name.value,
                    f"{shown(name.value)} does not fit the profile {self.name}, which has no {what}.",
                    hint="Choose another profile or leave the name out.",
                )
        uris = [name.value for name in names if name.type == "uri"]
        if len(uris) > 1 and any(uri.startswith("spiffe:") for uri in uris):
            raise ProfileRefusedError(
                "A certificate with a SPIFFE ID has exactly one URI (X.509-SVID section 2).",
                hint="Order a certificate for each of them.",
            )

    def check_key_type(self, key_type: str) -> None:
        """Return when a certificate of this profile may carry a key of this kind.

        Raises:
            ProfileRefusedError: it may not.
        """
        if key_type not in self.key_types:
            raise ProfileRefusedError(
                f"Keys of the kind {shown(key_type)} do not fit the profile {self.name}.",
                hint=f"Use one of {', '.join(sorted(self.key_types))}.",
            )


def usages_for(key_usage: Collection[KeyUsageName], key_type: str) -> frozenset[KeyUsageName]:
    """Those of ``key_usage`` that a key of this kind can do (RFC 5480 section 3, RFC 8410 section 5)."""
    impossible: set[KeyUsageName] = set()
    if key_type != "rsa":
        impossible.add("keyEncipherment")
    if not key_type.startswith("ec-"):
        impossible.add("keyAgreement")
    return frozenset(key_usage) - impossible


def load_profiles(directory: Path | None) -> Mapping[str, Profile]:
    """The built-in profiles and those in the TOML files of ``directory``, by name.

    A file there with the name of a built-in profile takes its place. A folder that does not exist is an empty one.

    Raises:
        ConfigurationError: a file that cannot be read, or content that breaks a rule; it names file and key.
    """
    documents: dict[str, str] = {}
    for entry in sorted(files("privyseal_ca.issuance").joinpath("profiles").iterdir(), key=lambda entry: entry.name):
        documents[entry.name] = entry.read_text(encoding="utf-8")
    profiles = {profile.name: profile for profile in (_parsed(name, text) for name, text in documents.items())}
    if directory is not None and directory.is_dir():
        paths = sorted(directory.glob("*.toml"))
        if len(paths) > MAX_PROFILES:
            raise ConfigurationError(
                f"{directory} holds more than {MAX_PROFILES} profiles.", hint="Remove those that nobody uses."
            )
        for path in paths:
            profile = _parsed(str(path), _text(path))
            profiles[profile.name] = profile
    return MappingProxyType(profiles)


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_PROFILE_FILE:
            raise ConfigurationError(f"{path} is larger than a profile can be.", hint="Remove or mend the file.")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}.", hint="Mend the file.") from error


def _parsed(path: str, text: str) -> Profile:
    name = Path(path).stem
    try:
        document = ProfileDocument.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"The profile {path} is no TOML: {error}.", hint="Mend the file.") from error
    except ValidationError as error:
        raise ConfigurationError(
            f"The profile {path} is not valid: {problems_of(error)}.", hint="docs/profiles.md describes every key."
        ) from error
    if not name or not name[0].isalnum() or not set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-"):
        raise ConfigurationError(
            f"The profile {path} has no usable name.",
            hint="Name the file with lower-case letters, digits, `.`, `_`, `-`.",
        )
    content = {"name": name, **document.model_dump(mode="json")}
    return Profile(
        name=name,
        description=document.description,
        lifetime=document.lifetime,
        max_lifetime=document.max_lifetime,
        backdate=document.backdate,
        key_types=frozenset(document.key_types),
        key_usage=document.key_usage,
        extended_key_usage=document.extended_key_usage_oids,
        subject=document.subject,
        san_types=frozenset(document.san_types),
        max_names=document.max_names,
        wildcard=document.wildcard,
        issuers=document.issuers,
        aia_ca_issuers=document.aia_ca_issuers,
        ocsp=document.ocsp,
        crl=document.crl,
        no_rev_avail=document.no_rev_avail,
        digest=sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest(),
    )


def own_profile(
    name: str,
    description: str,
    *,
    lifetime: int,
    backdate: int,
    key_types: Collection[str],
    extended_key_usage: str,
    ocsp: bool = False,
    crl: CrlPointer = "none",
    ocsp_no_check: bool = False,
) -> Profile:
    """A profile of the authority itself: certificates without names, by a common name. No order can ask for it.

    ``extended_key_usage`` is a dotted object identifier. Certificates that name OCSP say where their issuer's certificate is.
    """
    content = {
        "name": name,
        "lifetime": lifetime,
        "backdate": backdate,
        "key_types": sorted(key_types),
        "extended_key_usage": extended_key_usage,
        "ocsp": ocsp,
        "crl": crl,
        "ocsp_no_check": ocsp_no_check,
    }
    return Profile(
        name=name,
        description=description,
        lifetime=lifetime,
        max_lifetime=lifetime,
        backdate=backdate,
        key_types=frozenset(key_types),
        key_usage=("digitalSignature",),
        extended_key_usage=(extended_key_usage,),
        subject="none",
        san_types=frozenset(),
        max_names=0,
        wildcard=False,
        issuers=(),
        aia_ca_issuers=ocsp,
        ocsp=ocsp,
        crl=crl,
        no_rev_avail=False,
        digest=sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest(),
        nameless=True,
        ocsp_no_check=ocsp_no_check,
    )
