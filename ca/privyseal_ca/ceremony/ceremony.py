"""The key ceremony of ``privyseal init``.

Each step looks for what is there before it makes anything, and what it makes is recorded in one transaction with its
entry in the ledger. It may be stopped anywhere and run again: there will be one root, one intermediate and one transcript.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from privyseal_ca.ceremony.certificates import check_base_url, fingerprint
from privyseal_ca.ceremony.files import REQUEST_SUFFIX, write_file
from privyseal_ca.ceremony.issuers import CaSpec, IssuerMaker, Root
from privyseal_ca.ceremony.plan import ISSUING_NAME, ROOT_NAME, WRAPPING_NAME, NameSpace, Plan, subject
from privyseal_ca.ceremony.root_crl import renew_root_crl, root_crl_is_due
from privyseal_ca.ceremony.roots import write_roots
from privyseal_ca.ceremony.transcript import CEREMONY_FACT, FINISHED, Transcript
from privyseal_ca.errors import ConfigurationError
from privyseal_ca.hsm.pin import Pin
from privyseal_ca.hsm.pkcs11 import Hsm
from privyseal_ca.hsm.uri import KeyUri
from privyseal_ca.ledger.entries import Kind
from privyseal_ca.store.issuers import IssuerRow, add_secret, find_fact, find_secret, set_fact
from privyseal_ca.store.statement import Transaction

#: Secrets of the service itself, wrapped by the token (promise P10), with their length in octets.
SERVICE_SECRETS = {"nonce": 32}
_PLAN_FACT = "ceremony-plan"

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token that the ceremony is to make."""

    label: str
    so_pin: Pin
    user_pin: Pin


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the ceremony has made."""

    issuer: IssuerRow
    #: The root; None when it is elsewhere.
    root: x509.Certificate | None
    #: The request for the intermediate's certificate; None when a root has signed it.
    request: Path | None

    @property
    def root_fingerprint(self) -> str | None:
        """The root's SHA-256 in hex."""
        return None if self.root is None else fingerprint(self.root)


class Ceremony:
    """Makes what ``plan`` says in ``home`` and the store.

    ``base_url`` goes into the intermediate's certificate; empty when the service's owner has not said what it is called from
    outside. An interrupted ceremony goes on with the same one only.
    """

    def __init__(
        self,
        *,
        home: Path,
        plan: Plan,
        base_url: str,
        new_tokens: Sequence[NewToken],
        hsm: Hsm,
        transcript: Transcript,
        random_bytes: Callable[[int], bytes],
        progress: Progress,
    ) -> None:
        self._home = home
        self._plan = plan
        self._base_url = "" if plan.offline_root else base_url
        self._new_tokens = new_tokens
        self._hsm = hsm
        self._transcript = transcript
        self._store = transcript.store
        self._random_bytes = random_bytes
        self._progress = progress
        self._maker = IssuerMaker(hsm, transcript, random_bytes)

    async def run(self) -> Outcome:
        """Do all that is not done yet.

        Raises:
            ConfigurationError: the ceremony was finished before, or begun with another plan.
            SignerError: a token failed.
            StoreError: the database failed.
        """
        await self._begin()
        await self._initialise_tokens()
        root = None if self._plan.offline_root else await self._make_root()
        issuer = await self._make_intermediate(root)
        if root is not None and await root_crl_is_due(self._transcript, root):
            await renew_root_crl(self._transcript, root)
        await self._make_secrets()
        return await self._finish(issuer, root)

    async def _begin(self) -> None:
        check_base_url(self._base_url)
        payload = self._plan.payload() | {"http_url": self._base_url or None}
        plan = json.dumps(payload, sort_keys=True)

        def unit(transaction: Transaction) -> bool:
            state = find_fact(transaction, CEREMONY_FACT)
            if state is None:
                set_fact(transaction, CEREMONY_FACT, "started")
                set_fact(transaction, _PLAN_FACT, plan)
                self._transcript.append(transaction, Kind.CEREMONY_STARTED, payload)
                return False
            if state == FINISHED:
                raise already_initialised(self._home)
            _refuse_other_plan(json.loads(find_fact(transaction, _PLAN_FACT) or "{}"), payload)
            return True

        if await self._store.write(unit):
            self._progress("An earlier ceremony was interrupted; continuing it.")

    async def _initialise_tokens(self) -> None:
        for token in self._new_tokens:
            await self._hsm.initialise_token(
                self._plan.module, token.label, so_pin=token.so_pin, user_pin=token.user_pin
            )
            done = await self._transcript.record_once(
                f"token:{token.label}",
                Kind.TOKEN_INITIALISED,
                {"label": token.label, "module": str(self._plan.module)},
            )
            if done:
                self._progress(f"Token {token.label} is initialised.")

    async def _make_root(self) -> Root:
        plan = self._plan
        spec = CaSpec(
            ROOT_NAME,
            KeyUri(token=plan.root_token, module_path=plan.module),
            plan.root_key,
            subject(plan.organization, plan.root_common_name),
            NameSpace(),
        )
        root = await self._maker.root(spec)
        self._progress(f"Root: {plan.root_common_name}, {plan.root_key}, key generated in token {plan.root_token}.")
        return root

    async def _make_intermediate(self, root: Root | None) -> IssuerRow:
        plan = self._plan
        spec = CaSpec(
            ISSUING_NAME,
            KeyUri(token=plan.issuing_token, module_path=plan.module),
            plan.issuing_key,
            subject(plan.organization, plan.issuing_common_name),
            plan.names,
            self._base_url,
        )
        issuer = await self._maker.intermediate(spec, root)
        self._progress(
            f"Intermediate: {plan.issuing_common_name}, {plan.issuing_key}, key generated in token {plan.issuing_token}."
        )
        return issuer

    async def _make_secrets(self) -> None:
        key = await self._maker.keys.wrapping_key(
            KeyUri(token=self._plan.issuing_token, module_path=self._plan.module), WRAPPING_NAME
        )
        for name, octets in SERVICE_SECRETS.items():
            wrapped = await key.wrap(self._random_bytes(octets), name.encode())
            await self._store.write(partial(_add_secret_once, name=name, wrapped=wrapped))

    async def _finish(self, issuer: IssuerRow, root: Root | None) -> Outcome:
        request = None
        if issuer.csr is not None:
            request = self._home / f"{issuer.name}{REQUEST_SUFFIX}"
            write_file(request, request_pem(issuer.csr), mode=0o644)
        await write_roots(self._store, self._home)
        await self._transcript.record_once(
            "finish",
            Kind.CEREMONY_FINISHED,
            {"issuer": issuer.id, "state": issuer.state, "root": None if root is None else root.id},
            lambda tx: set_fact(tx, CEREMONY_FACT, FINISHED),
        )
        return Outcome(issuer, None if root is None else root.certificate, request)


def already_initialised(home: Path) -> ConfigurationError:
    """What a second ``init`` is told."""
    return ConfigurationError(
        f"{home} is initialised already; nothing was changed.",
        hint="Start the service with `privyseal serve`, or choose another home with --home.",
    )


def request_pem(der: bytes) -> bytes:
    """A request as PEM."""
    return x509.load_der_x509_csr(der).public_bytes(serialization.Encoding.PEM)


def _refuse_other_plan(begun: dict[str, object], now: dict[str, object]) -> None:
    different = sorted(name for name in begun.keys() | now.keys() if begun.get(name) != now.get(name))
    if different:
        raise ConfigurationError(
            f"The interrupted ceremony was begun with other options: {', '.join(different)} differ.",
            hint="Run it with the options of the first time, or begin anew with another home and database.",
        )


def _add_secret_once(transaction: Transaction, name: str, wrapped: bytes) -> None:
    if find_secret(transaction, name) is None:
        add_secret(transaction, name, wrapped)
