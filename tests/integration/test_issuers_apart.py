"""Issuers whose keys are in different tokens: what one of them lacks is no matter of the others."""

import asyncio
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import rsa

from fakes.acme_client import AcmeClient, make_csr
from fakes.dns import Knot
from fakes.home import MakeSettings
from fakes.http01 import Http01
from fakes.outages import readiness
from fakes.service import RunningService, serving
from privyseal_acme.cli import cli
from privyseal_acme.flow import finalize
from privyseal_acme.flow.finalize import IssuanceDesk
from privyseal_acme.opening import open_hsm
from privyseal_ca.config import Settings
from privyseal_ca.errors import SignerMisconfiguredError
from privyseal_ca.hsm import softhsm
from privyseal_ca.hsm.pin import Pin
from privyseal_ca.hsm.signing import TokenSigningKey

_PATIENCE = 20.0


@pytest.fixture
def settings(make_settings: MakeSettings, dns_server: Knot, http01: Http01) -> Settings:
    return make_settings(
        validation={"resolvers": (dns_server.address,), "http_port": http01.port}, hsm={"retry_after": 0.05}
    )


@pytest.fixture
def second_token(settings: Settings, softhsm_home: Path, softhsm_module: Path) -> Path:
    """The folder of a token of its own, with the key of an RSA issuer named ``second``."""
    label = f"second-{secrets.token_hex(4)}"
    folder = softhsm_home / softhsm.TOKENS_DIRECTORY
    before = set(folder.iterdir())

    async def make() -> None:
        hsm = open_hsm(settings)
        pin = Pin((settings.home / "secrets" / "pin").read_text(encoding="utf-8").strip())
        await hsm.initialise_token(softhsm_module, label, so_pin=Pin("so-pin"), user_pin=pin)
        await hsm.close()

    asyncio.run(make())
    command(settings, "issuer", "create", "second", "--key-type", "rsa-2048", "--token", label)
    (made,) = set(folder.iterdir()) - before
    return made


def command(settings: Settings, *arguments: str) -> None:
    environment = {"PRIVYSEAL_HOME": str(settings.home), "PRIVYSEAL_DATABASE__URL": settings.database_url}
    result = CliRunner().invoke(cli, list(arguments), env=environment)
    assert result.exit_code == 0, result.output


@contextmanager
def registered(service: RunningService, http01: Http01) -> Iterator[AcmeClient]:
    client = AcmeClient(service.directory, service.roots, http01=http01)
    try:
        client.register()
        yield client
    finally:
        client.close()


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_orders_of_an_issuer_that_is_away_are_not_taken_up_again_and_again(
    settings: Settings, second_token: Path, http01: Http01, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time costs reading the CSR, the policies and the database, for as many orders as wait."""
    monkeypatch.setattr(finalize, "_DRAIN_PAUSE", 0.02)
    drains, resumed = [], []
    drain, resume = IssuanceDesk._drain, IssuanceDesk._resume

    async def counted(desk: IssuanceDesk) -> bool:
        drains.append(None)
        return await drain(desk)

    async def noted(desk: IssuanceDesk, order_id: str) -> None:
        resumed.append(order_id)
        await resume(desk, order_id)

    monkeypatch.setattr(IssuanceDesk, "_drain", counted)
    monkeypatch.setattr(IssuanceDesk, "_resume", noted)
    with serving(settings) as service, registered(service, http01) as client:
        (key,) = [each.key for each in service.service.context.authority.issuers if each.identity.name == "second"]
        assert isinstance(key, TokenSigningKey)
        held = key._held
        held.refuse(SignerMisconfiguredError("It is not what it was.", hint="none"))
        order = client.ready_order("rsa.test")
        csr = make_csr(["rsa.test"], rsa.generate_private_key(65537, 2048))
        assert client.finalize(order, csr).json["status"] == "processing"
        before = len(drains)
        until(lambda: len(drains) > before + 10)
        client.issue("ec.test")
        assert len(resumed) <= 1
        held._refused = None
        assert client.poll(order.headers["Location"], ("processing",)).json["status"] == "valid"


def test_a_retired_issuer_whose_token_is_away_does_not_make_the_service_unready(
    settings: Settings, second_token: Path, http01: Http01, tmp_path: Path
) -> None:
    """A token that was taken out of service with its issuer: nothing that is issued needs it."""
    with serving(settings) as service:
        assert readiness(service.status)["ready"]
    command(settings, "issuer", "retire", "second")
    away = second_token.rename(tmp_path / "away")
    try:
        with serving(settings, clock=service.clock) as service, registered(service, http01) as client:
            client.issue("ec.test")
            document = readiness(service.status)
            assert document["parts"]["token"] == "ok"
            assert document["ready"]
    finally:
        away.rename(second_token)
