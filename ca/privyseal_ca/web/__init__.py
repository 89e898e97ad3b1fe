"""The plain HTTP front: issuers, roots, health and metrics."""
