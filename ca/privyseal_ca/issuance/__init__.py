"""From a vetted request to a certificate: profiles, linting and the issuance cycle."""
