"""A hook for ACME clients' dns-01: ``dns_hook.py PORT ZONE add|delete`` with certbot's variables in the environment.

Values are added to those that are there, as a name and its wildcard are proved by two values at one name.
"""

import os
import sys

import dns.query
import dns.rcode
import dns.update


def main(port: str, zone: str, action: str) -> None:
    """Make one change (RFC 2136)."""
    update = dns.update.UpdateMessage(f"{zone}.")
    record = (f"_acme-challenge.{os.environ['CERTBOT_DOMAIN']}.", "TXT", os.environ["CERTBOT_VALIDATION"])
    if action == "add":
        update.add(record[0], 1, *record[1:])
    else:
        update.delete(*record)
    answer = dns.query.tcp(update, "127.0.0.1", port=int(port), timeout=5)
    if answer.rcode() != dns.rcode.NOERROR:
        sys.exit(f"the update was refused: {dns.rcode.to_text(answer.rcode())}")


if __name__ == "__main__":
    main(*sys.argv[1:])
