"""Telling people: what is news of workloads and of the service itself, who is told, in which words, and delivering that."""
