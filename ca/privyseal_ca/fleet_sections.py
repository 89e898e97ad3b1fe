"""The sections of the settings that are about the fleet: who owns which workload, and when one counts as gone."""

import re
from typing import Annotated, Final, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from privyseal_ca.sections import Section

#: From the most to the least urgent.
CRITICALITIES: Final = ("critical", "high", "normal", "low")
#: How many labels a workload may have.
MOST_LABELS: Final = 16

Criticality = Literal["critical", "high", "normal", "low"]
#: What an attribute may be: printable, and short enough for a table.
Word = Annotated[str, StringConstraints(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$", strip_whitespace=True)]
LabelName = Annotated[str, StringConstraints(pattern="^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$")]
#: Lower-case labels, as in the names of certificates.
_SUFFIX: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*")


class FleetRule(Section):
    """Says who owns the workloads that it matches: those that fulfil every condition it has."""

    name: str = Field(pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", description="What the rule is called.")
    dns: tuple[str, ...] = Field(
        (), max_length=256, description="Suffixes, one of which every DNS name of the workload has to be in."
    )
    accounts: tuple[str, ...] = Field((), max_length=256, description="Ids of the ACME accounts.")
    eab: tuple[str, ...] = Field((), max_length=256, description="Kids of the keys that bound the accounts.")
    policies: tuple[str, ...] = Field((), max_length=64, description="Policies of the accounts.")
    profiles: tuple[str, ...] = Field((), max_length=64, description="Profiles of the certificates.")
    owner: Word = Field("", description="Who answers for the workload: a person, a mail address, a rota.")
    team: Word = Field("", description="Their team.")
    service: Word = Field("", description="What the workload is a part of.")
    environment: Word = Field("", description="Such as `production`.")
    criticality: Criticality | None = Field(
        None, description="`critical` (renewed earlier than others), `high`, `normal` or `low`."
    )
    labels: dict[LabelName, Word] = Field({}, max_length=MOST_LABELS, description="Anything else, by name.")
    renews: bool | None = Field(
        None, description="`false` for workloads that are not expected to renew: nobody is told when they do not."
    )

    @field_validator("dns")
    @classmethod
    def _canonical(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        suffixes = tuple(suffix.lower().removeprefix("*").strip(".") for suffix in value)
        for suffix, written in zip(suffixes, value, strict=True):
            if not _SUFFIX.fullmatch(suffix):
                raise ValueError(f"{written[:64]!r} is no suffix of DNS names: no workload would match it")
        return suffixes

    @model_validator(mode="after")
    def _says_something(self) -> "FleetRule":
        if not (self.dns or self.accounts or self.eab or self.policies or self.profiles):
            raise ValueError("the rule has no condition; say which workloads it is for")
        if not any((self.owner, self.team, self.service, self.environment, self.criticality, self.labels)) and (
            self.renews is None
        ):
            raise ValueError("the rule says nothing of the workloads")
        return self


class FleetSettings(Section):
    """Whom workloads belong to, and when one that does not renew counts as gone.

    Each of owner, team, service, environment, criticality and labels comes from the first rule that says it, else from the
    account (`privyseal account describe`), else from the key that bound the account (`privyseal eab create`, `eab describe`).
    """

    rules: tuple[FleetRule, ...] = Field(
        (), max_length=1024, description="Rules. Each attribute comes from the first rule that matches and says it."
    )
    retire_after: int = Field(
        14 * 86400,
        ge=3600,
        le=3650 * 86400,
        description="How long after the end of its certificate, or its last attempt, a workload that did not renew counts as retired.",
    )
    forget_after: int = Field(
        365 * 86400,
        ge=86400,
        le=3650 * 86400,
        description="How long a retired workload is kept. Its certificates, and what the ledger says of them, stay.",
    )
    usual_delay: float = Field(
        0.05,
        ge=0,
        le=0.2,
        description="How much later than it was told, or than usual where it does not ask (ARI), a client may renew before its "
        "renewal counts as missed, as a part of the life.",
    )

    @field_validator("rules")
    @classmethod
    def _names_once(cls, value: tuple[FleetRule, ...]) -> tuple[FleetRule, ...]:
        names = [rule.name for rule in value]
        if len(set(names)) != len(names):
            raise ValueError("two rules have the same name")
        return value
