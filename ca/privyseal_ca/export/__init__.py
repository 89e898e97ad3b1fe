"""Handing the ledger on to where security events are collected: JSON lines, OCSF, syslog."""
