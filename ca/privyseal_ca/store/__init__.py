"""Tables, transactions and group commit (promises P2 and P3)."""
