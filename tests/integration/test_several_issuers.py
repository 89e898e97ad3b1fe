"""Several issuers at a time: an ECDSA and an RSA one, an old one that is retired, and what clients see of it."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from fakes.acme_client import AcmeClient
from fakes.dns import Knot
from fakes.home import MakeSettings
from fakes.http01 import Http01
from fakes.service import RunningService, serving
from privyseal_acme.cli import cli
from privyseal_ca.config import Settings


@pytest.fixture
def settings(make_settings: MakeSettings, dns_server: Knot, http01: Http01) -> Settings:
    return make_settings(validation={"resolvers": (dns_server.address,), "http_port": http01.port})


def command(settings: Settings, *arguments: str) -> None:
    environment = {"PRIVYSEAL_HOME": str(settings.home), "PRIVYSEAL_DATABASE__URL": settings.database_url}
    result = CliRunner().invoke(cli, list(arguments), env=environment)
    assert result.exit_code == 0, result.output


@pytest.fixture
def second_issuer(settings: Settings) -> str:
    name = f"rsa-{secrets.token_hex(4)}"
    command(settings, "issuer", "create", name, "--key-type", "rsa-2048")
    return name


@contextmanager
def connected(service: RunningService, http01: Http01) -> Iterator[AcmeClient]:
    client = AcmeClient(service.directory, service.roots, http01=http01)
    try:
        yield client
    finally:
        client.close()


def test_the_issuer_is_of_the_family_of_the_key(settings: Settings, second_issuer: str, http01: Http01) -> None:
    with serving(settings) as service, connected(service, http01) as client:
        client.register()
        by_ec = client.issue("ec.several.test").chain
        by_rsa = client.issue("rsa.several.test", key=rsa.generate_private_key(65537, 2048)).chain
    assert by_ec[0].issuer != by_rsa[0].issuer
    assert second_issuer in by_rsa[0].issuer.rfc4514_string()
    for leaf, intermediate, *_ in (by_ec, by_rsa):
        leaf.verify_directly_issued_by(intermediate)


def test_certificates_of_a_retired_issuer_can_still_be_fetched_and_revoked(
    settings: Settings, second_issuer: str, http01: Http01
) -> None:
    with serving(settings) as service, connected(service, http01) as client:
        client.register()
        issued = client.issue("old.several.test")
    command(settings, "issuer", "retire", "issuing-1")
    with serving(settings, clock=service.clock) as service, connected(service, http01) as again:
        again.key, again.account = client.key, client.account
        assert [der(item) for item in again.download(issued.order.json["certificate"])] == [
            der(item) for item in issued.chain
        ]
        assert again.issue("new.several.test").chain[0].issuer != issued.chain[0].issuer
        assert again.revoke(issued.der, reason=4).status == 200


def der(certificate: x509.Certificate) -> bytes:
    return certificate.tbs_certificate_bytes
