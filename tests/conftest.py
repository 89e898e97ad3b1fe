"""Fixtures that every folder of tests may use; each is described in its own module."""

import gc
from collections.abc import Generator

import pytest

pytest_plugins = ("fakes.softhsm", "fakes.home", "fakes.postgresql", "fakes.service", "fakes.restores")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect without looking for garbage: all of it stays, and looking through it, again and again, takes a third of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
