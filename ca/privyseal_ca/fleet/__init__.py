"""The fleet: workloads, whose they are, and whether they renew. Pure: no store, no HTTP, no clock."""
