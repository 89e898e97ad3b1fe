"""Conditions under which changes are made, looked at in the transaction of the change itself."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from privyseal_ca.store.statement import Transaction

T = TypeVar("T")

_guard: ContextVar[Callable[[Transaction], None] | None] = ContextVar("guard", default=None)


@contextmanager
def guarding(guard: Callable[[Transaction], None]) -> Iterator[None]:
    """Run ``guard`` in front of every unit that is given to a store inside the block, and by tasks that begin there.

    It runs in the unit's transaction, and an exception from it undoes the unit: what is written for a condition, such as a
    lease, is then written only while the condition holds, however late the unit comes.
    """
    token = _guard.set(guard)
    try:
        yield
    finally:
        _guard.reset(token)


def guarded(unit: Callable[[Transaction], T]) -> Callable[[Transaction], T]:
    """``unit`` behind the guard of the block it is given in; itself where there is none."""
    guard = _guard.get()
    if guard is None:
        return unit

    def both(transaction: Transaction) -> T:
        guard(transaction)
        return unit(transaction)

    return both
