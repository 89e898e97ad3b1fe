"""Killed while revocations are being published: what was revoked never becomes good again, for anybody who asks (P4, P7)."""

import random
import signal
from pathlib import Path

from cryptography import x509
from cryptography.x509 import ocsp

from fakes import status_client
from fakes.process import PRIVYSEAL, ServerProcess
from fakes.relying import SHA1, Identity, ask, await_revoked, fetch, running_authority

_ROUNDS = 3
_EACH = 2


def numbers(urls: set[str]) -> dict[str, int]:
    """The CRL numbers that are served."""
    crls = {url: x509.load_der_x509_crl(fetch(url)) for url in urls}
    return {url: crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number for url, crl in crls.items()}


def is_good(reader: ServerProcess, identity: Identity) -> bool:
    """Whether the status role says that a certificate is good."""
    answer = status_client.ask(identity.certificate, identity.issuer, url=f"{reader.http_url}/ocsp")
    successful = answer.response_status is ocsp.OCSPResponseStatus.SUCCESSFUL
    return successful and answer.certificate_status is ocsp.OCSPCertStatus.GOOD


def test_nothing_goes_back(tmp_path: Path) -> None:
    chance = random.Random(4711)  # noqa: S311
    with running_authority(tmp_path) as authority:
        server = authority.server
        kept = authority.issue()
        gone = [authority.issue() for _ in range(_ROUNDS * _EACH)]
        for identity in (kept, *gone):
            # Every one has a response that is kept, and says good.
            assert ask(identity, SHA1).certificate_status is ocsp.OCSPCertStatus.GOOD
        reader = ServerProcess(server.home, command=(PRIVYSEAL, "serve", "--role", "status"))
        reader.settings = {**server.settings, "SERVER__HTTP": reader.settings["SERVER__HTTP"]}
        reader.start()
        try:
            assert all(is_good(reader, identity) for identity in (kept, *gone))
            before: dict[str, int] = {}
            for turn in range(_ROUNDS):
                for identity in gone[turn * _EACH : (turn + 1) * _EACH]:
                    server.command("cert", "revoke", f"{identity.certificate.serial_number:032x}", "--yes")
                if chance.random() < 0.5:
                    await_revoked(authority, gone[turn * _EACH])
                assert server.stop(signal.SIGKILL) == -signal.SIGKILL
                revoked = gone[: (turn + 1) * _EACH]
                status_client.eventually(lambda revoked=revoked: not any(is_good(reader, each) for each in revoked))
                server.start()
                for identity in revoked:
                    await_revoked(authority, identity)
                    assert not is_good(reader, identity)
                now = numbers({identity.crl_url for identity in gone})
                assert all(now[url] >= number for url, number in before.items())
                before = now
            assert ask(kept, SHA1).certificate_status is ocsp.OCSPCertStatus.GOOD
            assert is_good(reader, kept)
            server.json("ledger", "verify")
        finally:
            reader.close()
