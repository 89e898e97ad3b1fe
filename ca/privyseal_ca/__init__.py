"""The certificate authority: keys, ledger, policy and issuance, without any knowledge of ACME."""
