"""Whose a workload is: owner, team, service, environment, criticality and labels, and where each of them was found."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
from pydantic import TypeAdapter, ValidationError

from privyseal_ca.errors import ConfigurationError
from privyseal_ca.fleet_sections import CRITICALITIES, MOST_LABELS, FleetRule, LabelName, Word

#: Those that are text of any kind, in the order in which people read them.
WORDS: Final = ("owner", "team", "service", "environment")
_word: TypeAdapter[str] = TypeAdapter(Word)
_label: TypeAdapter[str] = TypeAdapter(LabelName)


@dataclass(frozen=True, slots=True)
class Attributes:
    """What somebody said of workloads. An empty text, and None, mean that they did not say."""

    owner: str = ""
    team: str = ""
    service: str = ""
    environment: str = ""
    criticality: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    renews: bool | None = None

    def __bool__(self) -> bool:
        """Whether anything is said."""
        return bool(self.document())

    def document(self) -> dict[str, Any]:
        """What is said, and nothing of what is not."""
        said: dict[str, Any] = {name: getattr(self, name) for name in (*WORDS, "criticality") if getattr(self, name)}
        if self.labels:
            said["labels"] = dict(sorted(self.labels.items()))
        if self.renews is not None:
            said["renews"] = self.renews
        return said

    def text(self) -> str | None:
        """The form in which accounts and keys keep it: JSON, or None when nothing is said."""
        return orjson.dumps(self.document()).decode() if self else None


NOTHING_SAID: Final = Attributes()


@dataclass(frozen=True, slots=True)
class Attribution:
    """The attributes of one workload, complete, and where each was found: ``rule:NAME``, ``account`` or ``eab:KID``."""

    attributes: Attributes
    sources: Mapping[str, str]

    @property
    def criticality(self) -> str:
        """``normal`` where nobody said anything else."""
        return self.attributes.criticality or "normal"

    @property
    def renews(self) -> bool:
        """Whether somebody is to be told when it does not renew."""
        return self.attributes.renews is not False


@dataclass(frozen=True, slots=True)
class Origin:
    """What rules go by."""

    #: As in a certificate's row: ``type:value`` each.
    names: Sequence[str]
    profile: str
    account: str
    policy: str = ""
    eab_kid: str = ""


def parse_attributes(text: str | None) -> Attributes:
    """What :meth:`Attributes.text` wrote."""
    return Attributes(**orjson.loads(text)) if text else Attributes()


def checked_attributes(
    *, labels: Iterable[str] = (), criticality: str = "", renews: bool | None = None, **words: str
) -> Attributes:
    """What an operator said on the command line. ``labels`` are ``name=value`` each.

    Raises:
        ConfigurationError: one of them cannot be used.
    """
    if criticality and criticality not in CRITICALITIES:
        raise ConfigurationError(
            f"There is no criticality {criticality[:32]!r}.", hint=f"Use one of {', '.join(CRITICALITIES)}."
        )
    found: dict[str, str] = {}
    checked = {name: _usable(_word, value, f"The {name}") for name, value in words.items()}
    for label in labels:
        name, separator, value = label.partition("=")
        if not separator:
            raise ConfigurationError(f"{label[:64]!r} is no label.", hint="Write it as name=value.")
        name = _usable(_label, name, f"The name of the label {name[:64]!r}")
        if name in found:
            raise ConfigurationError(f"The label {name} is given twice.", hint="A label has one value: leave one out.")
        found[name] = _usable(_word, value, f"The value of the label {name}")
    if len(found) > MOST_LABELS:
        raise ConfigurationError(f"There are more than {MOST_LABELS} labels.", hint="Leave some out.")
    return Attributes(criticality=criticality, labels=found, renews=renews, **checked)


def _usable(kind: TypeAdapter[str], value: str, what: str) -> str:
    try:
        return kind.validate_python(value)
    except ValidationError as error:
        raise ConfigurationError(
            f"{what} cannot be used: it is empty or too long, or has characters that it may not have.",
            hint="Use up to 200 printable characters; for names of labels up to 63 letters, digits and ./_-, "
            "beginning with a letter or digit.",
        ) from error


def attribute(
    origin: Origin, *, rules: Iterable[FleetRule], account: Attributes = NOTHING_SAID, eab: Attributes = NOTHING_SAID
) -> Attribution:
    """The attributes of the workload: each from the first rule that says it, else from its account, else from its EAB key."""
    hosts = [name.removeprefix("dns:").removeprefix("*.") for name in origin.names if name.startswith("dns:")]
    said = [(_of_rule(rule), f"rule:{rule.name}") for rule in rules if _matches(rule, origin, hosts)]
    said += [(account, "account"), (eab, f"eab:{origin.eab_kid}")]
    values: dict[str, Any] = {}
    labels: dict[str, str] = {}
    sources: dict[str, str] = {}
    for attributes, source in said:
        for name, value in attributes.document().items():
            if name == "labels":
                for label, text in value.items():
                    if label not in labels and len(labels) < MOST_LABELS:
                        labels[label], sources[f"labels.{label}"] = text, source
            elif name not in values:
                values[name], sources[name] = value, source
    return Attribution(Attributes(**values, labels=labels), sources)


def _of_rule(rule: FleetRule) -> Attributes:
    return Attributes(
        rule.owner, rule.team, rule.service, rule.environment, rule.criticality or "", rule.labels, rule.renews
    )


def _matches(rule: FleetRule, origin: Origin, hosts: Sequence[str]) -> bool:
    """Whether ``origin`` fulfils every condition that ``rule`` has."""
    # First what most rules fail by, at once for all their suffixes: there may be a thousand of them.
    if rule.dns and not (hosts and hosts[0].endswith(rule.dns)):
        return False
    for wanted, value in (
        (rule.accounts, origin.account),
        (rule.eab, origin.eab_kid),
        (rule.policies, origin.policy),
        (rule.profiles, origin.profile),
    ):
        if wanted and value not in wanted:
            return False
    return not rule.dns or all(_within(host, rule.dns) for host in hosts)


def _within(host: str, suffixes: tuple[str, ...]) -> bool:
    return any(host == suffix or host.endswith(f".{suffix}") for suffix in suffixes)
