"""HTTP and JWS around the flows."""
