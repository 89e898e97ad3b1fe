"""A hook for ACME clients' dns-01: ``dns_hook.py PORT ZONE add|delete [NAME VALUE]``; certbot gives name and value in the environment.

Values are added to those that are there, as a name and its wildcard are proved by two values at one name.
"""

import os
import sys

import dns.query
import dns.rcode
import dns.update


def main(port: str, zone: str, action: str, *given: str) -> None:
    """Make one change (RFC 2136)."""
    name, value = given or (os.environ["CERTBOT_DOMAIN"], os.environ["CERTBOT_VALIDATION"])
    update = dns.update.UpdateMessage(f"{zone}.")
    owner = f"_acme-challenge.{name}."
    if action == "add":
        update.add(owner, 1, "TXT", value)
    else:
        update.delete(owner, "TXT", value)
    answer = dns.query.tcp(update, "127.0.0.1", port=int(port), timeout=5)
    if answer.rcode() != dns.rcode.NOERROR:
        sys.exit(f"the update was refused: {dns.rcode.to_text(answer.rcode())}")


if __name__ == "__main__":
    main(*sys.argv[1:])
