"""The ACME front door (RFC 8555) of the certificate authority in :mod:`privyseal_ca`."""
