"""Fixtures of tests with two tokens: ``pytest_plugins = ("fakes.two_tokens_fixtures",)``."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from fakes.two_tokens import Keys, TwoTokens
from privyseal_ca.hsm.pkcs11 import Hsm


@pytest.fixture
def tokens(tmp_path: Path) -> TwoTokens:
    """Two tokens, without keys yet."""
    return TwoTokens(tmp_path)


@pytest_asyncio.fixture
async def keys(tokens: TwoTokens) -> AsyncIterator[Keys]:
    """Keys in both tokens."""
    tokens.make(tokens.a)
    hsm = tokens.hsm(replicas=())
    attestation = await hsm.generate_signing_key(tokens.uri_a, "issuer", "ec-p256", key_id=b"\1")
    wrapping = await hsm.generate_wrapping_key(tokens.uri_a, "wrapping", key_id=b"\2")
    await hsm.close()
    tokens.replicate()
    yield Keys(attestation.uri, wrapping)
    tokens.lift()


@pytest_asyncio.fixture
async def opened(tokens: TwoTokens, keys: Keys) -> AsyncIterator[Callable[..., Hsm]]:
    """Makes Hsms of both tokens that are closed with the test."""
    made: list[Hsm] = []

    def make(**options: Any) -> Hsm:
        made.append(tokens.hsm(**options))
        return made[-1]

    yield make
    tokens.lift()
    for hsm in made:
        await hsm.close()
