"""Proof of control over an identifier: http-01, dns-01, tls-alpn-01 and dns-account-01, and optionally CAA.

``validator.py`` runs the attempts, ``attempt.py`` holds what one of them uses, ``resolver.py`` and ``targets.py`` decide
where a connection may go, and one module per challenge type says what must be found there.
"""
