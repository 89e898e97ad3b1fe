"""The append-only record of every security decision."""
