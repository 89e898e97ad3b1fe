"""When certificates are to be renewed, so that the load is even (RFC 9773). Pure: no store, no HTTP, no clock."""
