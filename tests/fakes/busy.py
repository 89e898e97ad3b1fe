"""A service that is busy: some of everything that it does, so that everything that it counts has happened."""

from fakes import status_client
from fakes.acme_client import AcmeClient, Issued
from fakes.collector import eventually
from fakes.http01 import Http01
from fakes.outages import readiness
from fakes.service import RunningService
from privyseal_acme.protocol.ari import certificate_id
from privyseal_ca.issuance.record import serial_text
from privyseal_ca.store.fleet import LineageRow, lineage_of
from privyseal_ca.store.scheduling import all_jobs, ask_for_job


class Work:
    """Some of everything that a service does, by a client of its own."""

    def __init__(self, service: RunningService, http01: Http01) -> None:
        self._service = service
        self._client = AcmeClient(service.directory, service.roots, http01=http01)
        self._client.at_any_time = True
        self._client.register()

    def do(self) -> None:
        """Certificates, refusals, failures, revocations, questions and looks. Done again, the certificates are renewals."""
        client = self._client
        # One from before the clock was turned may be too old.
        client.fresh_nonce()
        readiness(self._service.status)
        issued = client.issue("web.shop.test")
        client.issue("csr.test")
        # What fails in the second of a certificate does not count: it came before it.
        self._service.clock.advance(2)
        revoked = client.issue("stolen.test")
        assert client.new_order("nobody.example").problem == "rejectedIdentifier"
        assert client.finalize(client.ready_order("csr.test"), b"no CSR").problem == "badCSR"
        url = client.order("nothing-there.test").json["authorizations"][0]
        challenge = next(each for each in client.post(url).json["challenges"] if each["type"] == "http-01")
        client.post(challenge["url"], {})
        assert client.poll(url).json["status"] == "invalid"
        assert client.revoke(revoked.der).status == 200
        status_client.fetch_crl(status_client.crl_url(issued.certificate))
        issuer = status_client.issuer_of(issued.certificate)
        status_client.ask(issued.certificate, issuer)
        status_client.ask(revoked.certificate, issuer, nonce=b"n" * 16)
        self._service.call(self._service.service.publication.watcher.look())
        row = self._workload(issued)
        question = certificate_id(bytes.fromhex(row.issuer_id), issued.certificate.serial_number)
        assert client.request("GET", f"{client.directory['renewalInfo']}/{question}").status == 200

    def miss(self) -> None:
        """Let a critical workload miss its renewal."""
        issued = self._client.issue("forgotten.shop.test")
        row = self._workload(issued)
        self._service.clock.advance(row.deadline - self._service.clock.now() + 1)
        self.follow()

    def _workload(self, issued: Issued) -> LineageRow:
        self.follow()
        row = self._service.read(lambda tx: lineage_of(tx, serial_text(issued.certificate.serial_number)))
        assert row is not None
        return row

    def follow(self) -> None:
        """What the jobs of the fleet do, now."""
        fleet = self._service.service.fleet
        for work in (fleet.follower.follow, fleet.follower.write_notes, fleet.judge.judge, fleet.gauges.show):
            self._service.call(work())

    def close(self) -> None:
        """Close the client's connection."""
        self._client.close()

    def jobs(self, *names: str) -> None:
        """Have jobs done as ``privyseal job run`` does."""
        tickets = self._service.write(lambda tx: {name: ask_for_job(tx, name) or 0 for name in names})
        assert all(tickets.values()), tickets

        def answered() -> bool:
            rows = {row.name: row for row in self._service.read(all_jobs)}
            return all(rows[name].answered >= ticket for name, ticket in tickets.items())

        eventually(answered, f"not done: {names}")
