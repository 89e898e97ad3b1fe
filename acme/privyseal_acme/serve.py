"""``privyseal serve``: the service in a process of its own, and what it says when it is ready."""

import asyncio
import os
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
    configure_logs(settings.log)
    os.umask(0o077)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve_until_stopped(settings, ready=lambda service: click.echo(welcome(settings, service))))
    return 0


def welcome(settings: Settings, service: Service) -> str:
    """What a person needs for a first certificate: the directory, the root's fingerprint, and commands to paste."""
    directory = service.context.urls.directory
    roots = settings.home / ROOTS_FILE
    port = settings.validation.http_port
    certbot = (
        f"REQUESTS_CA_BUNDLE={roots} certbot certonly --standalone --http-01-port {port} --server {directory} "
        "--non-interactive --agree-tos --register-unsafely-without-email "
        "--config-dir certbot --work-dir certbot --logs-dir certbot -d demo.localhost"
    )
    lego = (
        f"LEGO_CA_CERTIFICATES={roots} lego --server {directory} --accept-tos --email you@example.internal "
        f"--path lego --http --http.port :{port} --domains demo.localhost run"
    )
    return "\n".join(
        [
            f"Directory:  {directory}",
            f"Roots:      {roots}",
            *(f"SHA-256:    {fingerprint}" for fingerprint in _fingerprints(roots)),
            "",
            "A first certificate, on this machine:",
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
