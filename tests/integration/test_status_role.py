"""``privyseal serve --role status``: answers from a read-only database or a folder, with nothing of the authority's secrets."""

import asyncio
import json
import shutil
import signal
import sqlite3
import subprocess
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import psycopg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from fakes.dns import LOOPBACK
from fakes.ledgers import log_in
from fakes.postgresql import Postgresql
from fakes.process import PRIVYSEAL, ServerProcess, run_command
from fakes.service import FakeClock
from fakes.status_rows import StatusRows
from privyseal_acme.status_role import status_running
from privyseal_ca.revocation.ocsp_request import encode_request

_PATIENCE = 30.0


class Answer(NamedTuple):
    code: int
    body: bytes


def get(url: str, body: bytes | None = None) -> Answer:
    request = urllib.request.Request(url, data=body)  # noqa: S310 (plain, loopback)
    if body is not None:
        request.add_header("Content-Type", "application/ocsp-request")
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310
            return Answer(answer.status, answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.read())


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


@pytest.fixture
def rows(tmp_path: Path) -> Iterator[StatusRows]:
    with closing(StatusRows(f"sqlite:///{tmp_path / 'privyseal.db'}")) as rows:
        rows.crl(3, serials=(6,))
        rows.crl(2, shard=0)
        rows.response(5)
        yield rows


def home_of(rows: StatusRows, tmp_path: Path) -> Path:
    """What another machine needs: the settings, which are in the environment here, and the trust anchors."""
    return rows.home(tmp_path / "status").home


@contextmanager
def role(home: Path, *arguments: str | Path, url: str | None = None, wait: bool = True) -> Iterator[ServerProcess]:
    """A status role as a process; it has to end with 0."""
    settings = {"STATUS__INTERVAL": "0.1", **({"DATABASE__URL": url} if url else {})}
    server = ServerProcess(home, settings, command=(PRIVYSEAL, "serve", "--role", "status", *arguments))
    try:
        server.start(wait=wait)
        yield server
        assert server.stop() == 0, server.log
    finally:
        server.close()


def ask(server: ServerProcess, rows: StatusRows, serial: int, hash_name: str = "sha1") -> ocsp.OCSPResponse:
    """The answer by POST, which has to be that by GET."""
    request = encode_request(rows.query(serial, hash_name))
    posted = get(f"{server.http_url}/ocsp", request)
    assert posted.code == 200
    path = quote(b64encode(request).decode(), safe="")
    assert get(f"{server.http_url}/ocsp/{path}").body == posted.body
    return ocsp.load_der_ocsp_response(posted.body)


def by_post(server: ServerProcess, rows: StatusRows, serial: int) -> ocsp.OCSPResponse:
    """The answer while it is about to change: one by GET might be the next one already."""
    return ocsp.load_der_ocsp_response(get(f"{server.http_url}/ocsp", encode_request(rows.query(serial, "sha1"))).body)


def readiness(server: ServerProcess) -> tuple[int, dict[str, str]]:
    answer = get(f"{server.http_url}/readyz")
    return answer.code, json.loads(answer.body)["parts"]


def check_everything(server: ServerProcess, rows: StatusRows) -> None:
    crl = x509.load_der_x509_crl(get(f"{server.http_url}/crl/{rows.id}.crl").body)
    assert crl.get_revoked_certificate_by_serial_number(6) is not None
    assert get(f"{server.http_url}/crl/{rows.id}/0.crl").code == 200
    assert get(f"{server.http_url}/crl/{rows.id}/1.crl").code == 404
    assert ask(server, rows, 5).certificate_status is ocsp.OCSPCertStatus.GOOD
    # Nobody may say good of what is not known, and nobody here can sign unknown.
    assert ask(server, rows, 99).response_status is ocsp.OCSPResponseStatus.UNAUTHORIZED
    assert get(f"{server.http_url}/roots.pem").body.decode() == rows.root.pem
    issuer = get(f"{server.http_url}/issuers/{rows.id}.cer").body
    assert issuer == rows.issuer.certificate.public_bytes(Encoding.DER)
    assert get(f"{server.http_url}/healthz").code == 200
    assert b"privyseal_ready" in get(f"{server.http_url}/metrics").body
    assert get(f"{server.http_url}/acme/directory").code == 404


def test_a_database_is_all_that_it_needs(rows: StatusRows, tmp_path: Path) -> None:
    home = home_of(rows, tmp_path)
    with role(home, url=rows.url) as server:
        check_everything(server, rows)
        assert readiness(server) == (200, {"database": "ok", "status": "ok", "public": "ok"})
        assert f"Status: {server.http_url}" in server.output
    assert {path.name for path in home.iterdir()} == {"roots.pem"}


def test_it_sees_what_changes(rows: StatusRows, tmp_path: Path) -> None:
    with role(home_of(rows, tmp_path), url=rows.url) as server:
        assert ask(server, rows, 5).certificate_status is ocsp.OCSPCertStatus.GOOD
        rows.crl(4, serials=(5, 6))
        rows.revoke(5, index=7)
        # Good must not be told any more; the new response is not there yet.
        until(lambda: by_post(server, rows, 5).response_status is ocsp.OCSPResponseStatus.TRY_LATER)
        rows.response(5, revoked=True)
        until(lambda: by_post(server, rows, 5).response_status is ocsp.OCSPResponseStatus.SUCCESSFUL)
        assert ask(server, rows, 5).certificate_status is ocsp.OCSPCertStatus.REVOKED
        until(
            lambda: (
                x509.load_der_x509_crl(
                    get(f"{server.http_url}/crl/{rows.id}.crl").body
                ).get_revoked_certificate_by_serial_number(5)
                is not None
            )
        )


def test_it_goes_on_when_the_database_is_gone(rows: StatusRows, tmp_path: Path) -> None:
    file = Path(rows.url.removeprefix("sqlite:///"))
    with role(home_of(rows, tmp_path), url=rows.url) as server:
        first = get(f"{server.http_url}/crl/{rows.id}.crl")
        assert ask(server, rows, 5).certificate_status is ocsp.OCSPCertStatus.GOOD
        file.rename(tmp_path / "away")
        until(lambda: readiness(server)[0] == 503)
        assert "No such file" in readiness(server)[1]["database"]
        assert readiness(server)[1]["status"] == "ok"
        assert get(f"{server.http_url}/crl/{rows.id}.crl") == first
        assert get(f"{server.http_url}/crl/{rows.id}/0.crl").code == 200
        # What was answered before is still known; what was not cannot be known now.
        assert ask(server, rows, 5).certificate_status is ocsp.OCSPCertStatus.GOOD
        assert ask(server, rows, 99).response_status is ocsp.OCSPResponseStatus.TRY_LATER
        (tmp_path / "away").rename(file)
        until(lambda: readiness(server)[0] == 200)


def test_a_crl_that_is_out_of_date_is_said_so(rows: StatusRows, tmp_path: Path) -> None:
    rows.crl(5, at=time.time() - 100, lifetime=50)
    with role(home_of(rows, tmp_path), url=rows.url, wait=False) as server:
        until(lambda: "Status:" in server.output)
        code, parts = readiness(server)
        assert code == 503
        assert "out of date" in parts["status"]
        # It is served all the same: relying parties decide.
        assert get(f"{server.http_url}/crl/{rows.id}.crl").code == 200


@pytest.mark.parametrize(("days", "reason"), [(364, "out of date"), (366, "ok")])
async def test_an_issuer_that_has_ended_needs_no_new_crl(
    rows: StatusRows, tmp_path: Path, days: int, reason: str
) -> None:
    """Its last CRL stays as it is for good, and that is no reason to send anybody away."""
    settings = rows.home(tmp_path / "status")
    server = settings.server.model_copy(update={"http": f"{LOOPBACK}:0"})
    settings = settings.model_copy(update={"server": server})
    clock = FakeClock(time.time() + days * 86400)
    async with status_running(settings, folder=None, clock=clock) as service:
        answer = await asyncio.to_thread(get, f"http://127.0.0.1:{service.http_port}/readyz")
    assert reason in json.loads(answer.body)["parts"]["status"]
    assert answer.code == (200 if reason == "ok" else 503)


async def test_a_database_that_can_be_read_makes_no_service_ready(rows: StatusRows, tmp_path: Path) -> None:
    """This stands in the place of a service that could not start by it."""
    settings = rows.home(tmp_path / "status")
    server = settings.server.model_copy(update={"http": f"{LOOPBACK}:0"})
    settings = settings.model_copy(update={"server": server})
    async with status_running(settings, folder=None, away={"database": "it takes no changes"}) as service:
        answer = await asyncio.to_thread(get, f"http://127.0.0.1:{service.http_port}/readyz")
    assert answer.code == 503
    assert json.loads(answer.body)["parts"]["database"] == "it takes no changes"


def test_a_database_that_is_away_at_the_start_is_waited_for(rows: StatusRows, tmp_path: Path) -> None:
    file = Path(rows.url.removeprefix("sqlite:///"))
    file.rename(tmp_path / "away")
    with role(home_of(rows, tmp_path), url=rows.url, wait=False) as server:
        until(lambda: "waits to start" in server.log)
        until(lambda: _code(f"{server.http_url}/readyz") == 503)
        assert _code(f"{server.http_url}/crl/{rows.id}.crl") in {503, None}
        (tmp_path / "away").rename(file)
        server.wait_until_ready()
        check_everything(server, rows)


def _code(url: str) -> int | None:
    """Between two attempts to start nobody listens."""
    try:
        return get(url).code
    except OSError:
        return None


def test_it_ends_while_it_waits(rows: StatusRows, tmp_path: Path) -> None:
    with role(home_of(rows, tmp_path), url=f"sqlite:///{tmp_path / 'nothing.db'}", wait=False) as server:
        until(lambda: "waits to start" in server.log)
    assert not (tmp_path / "nothing.db").exists()


def test_many_run_beside_a_service_and_after_it(tmp_path: Path) -> None:
    """The real service, two status roles on its home while it runs, and when it was killed; secrets and tokens unreadable."""
    main = ServerProcess(tmp_path / "home")
    try:
        main.init()
        main.start()
        copy = tmp_path / "copy"
        copy.mkdir()
        shutil.copy(main.home / "roots.pem", copy)
        (copy / "privyseal.toml").write_text(f'[database]\nurl = "sqlite:///{main.home / "privyseal.db"}"\n')
        with role(copy, wait=False) as first, role(copy, wait=False) as second:
            for server in (first, second):
                until(lambda server=server: server.http_url in server.output)  # type: ignore[misc]
                assert get(f"{server.http_url}/roots.pem").body == main.roots.read_bytes()
            main.stop(signal.SIGKILL)
            for secret in ("secrets", "tokens"):
                shutil.rmtree(main.home / secret)
            assert get(f"{first.http_url}/healthz").code == 200
            assert readiness(second)[1]["database"] == "ok"
        with role(copy, wait=False) as again:
            until(lambda: again.http_url in again.output)
            assert readiness(again)[1]["database"] == "ok"
    finally:
        main.close()


def test_it_opens_no_file_but_those_that_it_may(rows: StatusRows, tmp_path: Path) -> None:
    """By its open files and what it has mapped: no PKCS#11 module, nothing open for writing but its log."""
    home = home_of(rows, tmp_path)
    (home / "secrets").mkdir(mode=0)
    (home / "tokens").mkdir(mode=0)
    with role(home, url=rows.url) as server:
        check_everything(server, rows)
        mapped = Path(f"/proc/{server.pid}/maps").read_text()
        assert "pkcs11" not in mapped
        assert "softhsm" not in mapped.lower()
        opened = [str(path.readlink()) for path in Path(f"/proc/{server.pid}/fd").iterdir() if path.exists()]
        assert not [path for path in opened if "secrets" in path or "tokens" in path or path.endswith("-service")]


@pytest.mark.postgresql
def test_postgresql_with_a_role_that_may_only_select(postgresql: Postgresql, tmp_path: Path) -> None:
    with closing(StatusRows(postgresql.new_database())) as rows:
        rows.crl(3, serials=(6,))
        rows.crl(2, shard=0)
        rows.response(5)
        postgresql.administer("CREATE ROLE status_only LOGIN")
        name = rows.url.rpartition("/")[2]
        run_sql(rows.url, "GRANT SELECT ON ALL TABLES IN SCHEMA public TO status_only")
        try:
            url = f"postgresql://status_only@{LOOPBACK}:{postgresql.port}/{name}"
            with role(home_of(rows, tmp_path), url=url) as server:
                check_everything(server, rows)
                postgresql.stop()
                try:
                    until(lambda: readiness(server)[0] == 503)
                    assert get(f"{server.http_url}/crl/{rows.id}.crl").code == 200
                finally:
                    postgresql.start()
                until(lambda: readiness(server)[0] == 200)
        finally:
            run_sql(rows.url, "DROP OWNED BY status_only")
            postgresql.administer("DROP ROLE status_only")


def run_sql(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement)


def publish(rows: StatusRows, home: Path, folder: Path, *arguments: str, expect: int = 0) -> Any:
    environment = ServerProcess(home, {"DATABASE__URL": rows.url, "STATUS__INTERVAL": "0.1"}).environment
    done = run_command(PRIVYSEAL, "status", "publish", folder, "--json", *arguments, env=environment, expect=expect)
    return json.loads(done.stdout)


def test_a_ledger_that_was_rewritten_is_an_error_after_everything_else(rows: StatusRows, tmp_path: Path) -> None:
    folder, home = tmp_path / "published", home_of(rows, tmp_path)
    asyncio.run(_grow(rows.url, 30))
    document = publish(rows, home, folder)
    assert (document["ledger"], document["written"]["tiles"]) == (30, 1)
    checkpoint = folder / "ledger/checkpoint"
    before = checkpoint.read_bytes().replace(b"\n30\n", b"\n31\n")
    checkpoint.write_bytes(before)
    der = rows.crl(9)
    assert "everything but the ledger" in publish(rows, home, folder, expect=1)["error"]
    assert (folder / f"crl/{rows.id}.crl").read_bytes() == der
    assert checkpoint.read_bytes() == before


async def _grow(url: str, count: int) -> None:
    async with log_in(url) as log:
        await log.grow(count)


def test_a_folder_is_all_that_it_needs(rows: StatusRows, tmp_path: Path) -> None:
    folder, empty = tmp_path / "published", tmp_path / "empty"
    document = publish(rows, home_of(rows, tmp_path), folder)
    assert document["written"] == {"certificates": 6, "crls": 2, "responses": 1, "tiles": 0}
    again = publish(rows, home_of(rows, tmp_path), folder)
    assert again["written"] == {"certificates": 0, "crls": 0, "responses": 0, "tiles": 0}
    empty.mkdir()
    with role(empty, "--folder", folder) as server:
        check_everything(server, rows)
        assert readiness(server) == (200, {"folder": "ok", "status": "ok", "public": "ok"})
        rows.crl(4, serials=(5, 6))
        rows.response(5, revoked=True)
        publish(rows, home_of(rows, tmp_path), folder)
        until(lambda: ask(server, rows, 5).certificate_status is ocsp.OCSPCertStatus.REVOKED)
        until(
            lambda: (
                x509.load_der_x509_crl(
                    get(f"{server.http_url}/crl/{rows.id}.crl").body
                ).get_revoked_certificate_by_serial_number(5)
                is not None
            )
        )
        folder.rename(tmp_path / "elsewhere")
        until(lambda: readiness(server)[0] == 503)
        assert ask(server, rows, 99).response_status is ocsp.OCSPResponseStatus.TRY_LATER
    assert not list(empty.iterdir())


def test_a_folder_is_waited_for(rows: StatusRows, tmp_path: Path) -> None:
    folder = tmp_path / "published"
    with role(tmp_path / "none", "--folder", folder, wait=False) as server:
        until(lambda: "waits to start" in server.log)
        publish(rows, home_of(rows, tmp_path), folder)
        server.wait_until_ready()
        check_everything(server, rows)


def test_watching_takes_over_changes_until_it_is_told_to_stop(rows: StatusRows, tmp_path: Path) -> None:
    home, folder = home_of(rows, tmp_path), tmp_path / "published"
    environment = ServerProcess(home, {"DATABASE__URL": rows.url, "STATUS__INTERVAL": "0.1"}).environment
    process = subprocess.Popen(
        [PRIVYSEAL, "status", "publish", folder, "--watch", "--json"],
        env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        path = folder / f"crl/{rows.id}.crl"
        until(path.exists)
        der = rows.crl(9, serials=(1, 2, 3))
        until(lambda: path.read_bytes() == der)
        refused = publish(rows, home, folder, expect=1)
        assert "Another process" in refused["error"]
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=_PATIENCE)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, err
    assert json.loads(out)["written"]["crls"] == 3


def test_publishing_needs_a_database(tmp_path: Path) -> None:
    environment = ServerProcess(tmp_path / "none").environment
    done = run_command(PRIVYSEAL, "status", "publish", tmp_path / "published", env=environment, expect=1)
    assert "cannot be read" in done.stderr
    with closing(sqlite3.connect(tmp_path / "old.db")) as connection:
        connection.execute("CREATE TABLE other (x)")
    environment["PRIVYSEAL_DATABASE__URL"] = f"sqlite:///{tmp_path / 'old.db'}"
    done = run_command(PRIVYSEAL, "status", "publish", tmp_path / "published", env=environment, expect=1)
    assert "error:" in done.stderr


def test_a_folder_needs_the_status_role(tmp_path: Path) -> None:
    done = run_command(PRIVYSEAL, "serve", "--home", tmp_path, "--folder", tmp_path, expect=2)
    assert "--role status" in done.stderr
