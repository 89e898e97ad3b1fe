"""Fixtures that every folder of tests may use; each is described in its own module."""

pytest_plugins = ("fakes.softhsm", "fakes.home", "fakes.postgresql", "fakes.service", "fakes.restores")
