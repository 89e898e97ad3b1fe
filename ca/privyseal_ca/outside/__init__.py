"""Looking at a log from elsewhere, over HTTP only: audits and monitors that need no home and trust nothing but a key."""
