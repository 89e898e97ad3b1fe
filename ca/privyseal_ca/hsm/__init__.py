"""Keys in PKCS#11 tokens (promise P1)."""
