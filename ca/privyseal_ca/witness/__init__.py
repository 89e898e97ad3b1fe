"""Witnesses (C2SP tlog-witness): asking them to cosign checkpoints, and being one for the logs of others."""
