"""RFC 8555 as pure functions and values: no sockets, no database, no clock of its own."""
