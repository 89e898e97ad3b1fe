"""``privyseal serve``: the service in a process of its own, and what it says when it is ready."""

import asyncio
import os
import resource
import shlex
from pathlib import Path

import click
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from privyseal_acme.service import Service, serve_until_stopped
from privyseal_ca.config import ROOTS_FILE, Settings
from privyseal_ca.telemetry.logs import configure_logs


def serve(settings: Settings) -> int:
    """Serve until the process is told to stop; the exit code."""
    prepare_process()
    configure_logs(settings.log)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve_until_stopped(settings, ready=lambda service: click.echo(welcome(settings, service))))
    return 0


def prepare_process() -> None:
    """New files are their owner's alone, memory that holds PINs and keys is dumped nowhere, descriptors do for the bounds."""
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def welcome(settings: Settings, service: Service) -> str:
    """What a person needs for a first certificate: the directory, the root's fingerprint, and commands to paste."""
    directory = service.context.urls.directory
    roots = settings.home / ROOTS_FILE
    trust = shlex.quote(str(roots))
    port = settings.validation.http_port
    bound = settings.acme.external_account_required
    certbot = (
        f"REQUESTS_CA_BUNDLE={trust} certbot certonly --standalone --http-01-port {port} --server {directory} "
        f"--non-interactive --agree-tos --register-unsafely-without-email {'--eab-kid KID --eab-hmac-key KEY ' * bound}"
        "--config-dir certbot --work-dir certbot --logs-dir certbot -d demo.localhost"
    )
    lego = (
        f"LEGO_CA_CERTIFICATES={trust} lego --server {directory} --accept-tos --email you@example.internal "
        f"{'--eab --kid KID --hmac KEY ' * bound}"
        f"--path lego --http --http.port :{port} --domains demo.localhost run"
    )
    binding = ["New accounts need a key: `privyseal eab create` prints its KID and KEY."] * bound
    return "\n".join(
        [
            f"Directory:  {directory}",
            f"Roots:      {roots}",
            *(f"SHA-256:    {fingerprint}" for fingerprint in _fingerprints(roots)),
            "",
            f"A first certificate, by a client on this machine that answers on port {port}:",
            *binding,
            "",
            f"  {certbot}",
            "",
            f"  {lego}",
            "",
        ]
    )


def _fingerprints(roots: Path) -> list[str]:
    return [
        certificate.fingerprint(hashes.SHA256()).hex(":").upper()
        for certificate in x509.load_pem_x509_certificates(roots.read_bytes())
    ]
