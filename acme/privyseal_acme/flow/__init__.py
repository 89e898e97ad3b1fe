"""What each ACME request does, apart from HTTP."""
