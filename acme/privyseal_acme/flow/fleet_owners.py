"""Whose workloads are: rules of the settings, accounts, and the keys that bound those, as the database has them."""

from collections.abc import Sequence

import orjson

from privyseal_acme.store.accounts import AccountRow, find_account
from privyseal_acme.store.eab import find_eab_key
from privyseal_ca.fleet.attributes import Attributes, Attribution, Origin, attribute, parse_attributes
from privyseal_ca.fleet_sections import FleetRule
from privyseal_ca.store.statement import Transaction


class Owners:
    """Finds the attributes of workloads."""

    def __init__(self, rules: Sequence[FleetRule]) -> None:
        self._rules = tuple(rules)

    def of(self, transaction: Transaction, requester: str, names: str, profile: str) -> Attribution:
        """The attributes of a workload. ``names`` and ``profile`` are those of its certificate's row."""
        account_id = requester.removeprefix("account:")
        account = find_account(transaction, account_id)
        origin = Origin(
            names=orjson.loads(names),
            profile=profile,
            account=account_id,
            policy=account.policy if account else "",
            eab_kid=(account.eab_kid or "") if account else "",
        )
        return attribute(
            origin,
            rules=self._rules,
            account=parse_attributes(account.attributes) if account else Attributes(),
            eab=_of_key(transaction, account),
        )

    @staticmethod
    def columns(attribution: Attribution) -> dict[str, str | int]:
        """The columns of a lineage that say whose it is."""
        attributes = attribution.attributes
        return {
            "owner": attributes.owner,
            "team": attributes.team,
            "service": attributes.service,
            "environment": attributes.environment,
            "criticality": attribution.criticality,
            "labels": orjson.dumps(dict(sorted(attributes.labels.items()))).decode(),
            "sources": orjson.dumps(dict(sorted(attribution.sources.items()))).decode(),
            "renews": int(attribution.renews),
        }


def _of_key(transaction: Transaction, account: AccountRow | None) -> Attributes:
    key = find_eab_key(transaction, account.eab_kid) if account and account.eab_kid else None
    return parse_attributes(key.attributes) if key else Attributes()
