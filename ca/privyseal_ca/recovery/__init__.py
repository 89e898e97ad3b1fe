"""Backups, restores, and the comparison with what was kept outside (promise P8)."""
