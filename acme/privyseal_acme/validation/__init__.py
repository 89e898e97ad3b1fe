"""Proof of control over an identifier: http-01, dns-01, tls-alpn-01, dns-account-01."""
