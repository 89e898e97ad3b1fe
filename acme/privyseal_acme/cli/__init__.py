"""``privyseal``: the authority's commands and those of the ACME server."""

from privyseal_ca.cli.frame import Deferred, Root

_COMMANDS = {
    "account": Deferred("privyseal_acme.cli.accounts", "account", "List, show, describe and deactivate ACME accounts."),
    "backup": Deferred("privyseal_ca.cli.backup", "backup", "Make and verify backups."),
    "cert": Deferred("privyseal_ca.cli.certificates", "cert", "List, show, revoke and adopt certificates."),
    "config": Deferred("privyseal_ca.cli.configuration", "config", "Show settings and what they mean."),
    "crl": Deferred("privyseal_ca.cli.crls", "crl", "List, show, bundle and import CRLs, and sign the root's."),
    "doctor": Deferred("privyseal_ca.cli.diagnosis", "doctor", "Check a home and say what to do."),
    "eab": Deferred("privyseal_acme.cli.eab", "eab", "Create, list and revoke keys that bind ACME accounts."),
    "fleet": Deferred("privyseal_ca.cli.fleet", "fleet", "List, show, export and retire workloads."),
    "init": Deferred(
        "privyseal_ca.cli.init", "init", "Hold the key ceremony: make a root, an intermediate and this home."
    ),
    "issuer": Deferred("privyseal_ca.cli.issuers", "issuer", "List, create, certify, retire and revoke issuing CAs."),
    "report": Deferred(
        "privyseal_ca.cli.report",
        "report",
        "Write a page about the fleet: what is missed, what ends when, whose it is, and how long it would survive.",
    ),
    "job": Deferred(
        "privyseal_ca.cli.jobs", "job", "List what the service does again and again, and have it done now."
    ),
    "ledger": Deferred("privyseal_ca.cli.ledger", "ledger", "Show, verify, prove, audit, watch and export the ledger."),
    "notify": Deferred("privyseal_ca.cli.notify", "notify", "Try routes, and show what is told and what waits."),
    "ocsp": Deferred("privyseal_ca.cli.ocsp", "ocsp", "Show OCSP responders and what is answered, and make requests."),
    "profile": Deferred("privyseal_ca.cli.profiles", "profile", "List and show certificate profiles."),
    "recovery": Deferred("privyseal_ca.cli.recovery", "recovery", "Show and settle what a restored database lacks."),
    "restore": Deferred(
        "privyseal_ca.cli.backup", "restore", "Put a backup into an empty home (--home) and an empty database."
    ),
    "serve": Deferred("privyseal_acme.cli.serve", "serve", "Run the service."),
    "status": Deferred("privyseal_ca.cli.status", "status", "Show the state of this authority."),
    "version": Deferred("privyseal_ca.cli.version", "version_command", "Show the version of this program."),
    "witness": Deferred(
        "privyseal_acme.cli.witness",
        "witness",
        "Witness the ledgers of other authorities: cosign their checkpoints, and notice when one shows two faces.",
    ),
}

cli = Root(
    "privyseal",
    deferred=_COMMANDS,
    help="An internal certificate authority with an ACME server.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line; ends the process with its exit code."""
    cli(prog_name="privyseal")
