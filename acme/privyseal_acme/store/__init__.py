"""The tables of the ACME server and the statements on them."""
