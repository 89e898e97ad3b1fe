"""A real token for every test: SoftHSM2 in a directory of the test run's own.

``SOFTHSM2_CONF`` is read when the module is initialised and belongs to the process, so one configuration serves the whole
run, and each test gets a token with a label of its own. A process that a test starts for a home of its own must not inherit
the variable: the operator's word wins over the home's token.

SoftHSM opens every token of its folder whenever it begins, and asks each of them whenever one is looked for: a folder of
hundreds makes every test slow. So tokens go with the test or the module that made them, but for those of :func:`kept_tokens`.

Use it with ``pytest_plugins = ("fakes.softhsm",)`` and the fixtures ``soft_token`` and ``hsm``.
"""

import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import pytest_asyncio

from privyseal_ca.hsm import cryptoki, functions, softhsm
from privyseal_ca.hsm.modules import PROCESS, Modules
from privyseal_ca.hsm.pin import Pin
from privyseal_ca.hsm.pkcs11 import Hsm, KeyAlgorithm
from privyseal_ca.hsm.signing import TokenSigningKey
from privyseal_ca.hsm.softhsm_guard import COPIES_DIRECTORY
from privyseal_ca.hsm.uri import KeyUri

SO_PIN = "so-pin-of-the-tests"
USER_PIN = "user-pin-of-the-tests"
T = TypeVar("T")
_numbers = itertools.count(1)
_HOME = pytest.StashKey[Path]()
_BEFORE_CALL = pytest.StashKey[set[Path]]()
_kept: set[Path] = set()


@dataclass(frozen=True)
class SoftToken:
    """One initialised token, and an Hsm that has its PIN."""

    hsm: Hsm
    module: Path
    label: str
    tokens: Path
    """The directory of all tokens of the run."""

    @property
    def uri(self) -> str:
        """The token's URI."""
        return str(KeyUri(token=self.label, module_path=self.module))

    def key_uri(self, label: str) -> str:
        """The URI of the key with ``label``."""
        return str(replace(KeyUri.parse(self.uri), object=label))

    async def signing_key(self, algorithm: KeyAlgorithm = "ec-p256", label: str = "key") -> TokenSigningKey:
        """A key generated in the token, open."""
        number = next(_numbers).to_bytes(4, "big")
        attestation = await self.hsm.generate_signing_key(self.uri, label, algorithm, key_id=number)
        return await self.hsm.open_signing_key(attestation.uri)

    async def directly(self, action: Callable[[Any], T], modules: Modules = PROCESS) -> T:
        """The result of ``action`` with a session of python-pkcs11, behind the Hsm's back but on the module's thread."""

        def task(_: object) -> T:
            token = cryptoki.find_token(module.library(), KeyUri.parse(self.uri))
            assert token is not None
            cryptoki.open_session(token, Pin(USER_PIN))
            session = token.open(rw=True)
            try:
                return action(session)
            finally:
                session.close()

        module = modules.acquire(self.module)
        try:
            return await module.worker.call(task, patience=10, limit=1024)
        finally:
            await modules.release(module, 10)

    @property
    def directory(self) -> Path:
        """Where SoftHSM keeps this token."""
        for directory in self.tokens.iterdir():
            if self.label.encode() in (directory / "token.object").read_bytes():
                return directory
        raise AssertionError("the token has no directory")


def make_hsm(
    *,
    pins: Callable[[KeyUri], Pin] = lambda _: Pin(USER_PIN),
    queue: int = 1024,
    timeout: float = 10,
    retry_after: float = 2,
    modules: Modules = PROCESS,
) -> Hsm:
    """An Hsm with the settings that tests usually want."""
    return Hsm(pins=pins, queue=queue, timeout=timeout, retry_after=retry_after, modules=modules)


@pytest.fixture(scope="session")
def softhsm_home(pytestconfig: pytest.Config) -> Iterator[Path]:
    """A home for SoftHSM's tokens, named in the environment for this process and those it starts."""
    with tempfile.TemporaryDirectory(prefix="privyseal-softhsm-") as directory:
        before = os.environ.get(softhsm.CONF_VARIABLE)
        os.environ[softhsm.CONF_VARIABLE] = str(softhsm.embed(Path(directory)))
        pytestconfig.stash[_HOME] = Path(directory)
        yield Path(directory)
        if before is None:
            del os.environ[softhsm.CONF_VARIABLE]
        else:
            os.environ[softhsm.CONF_VARIABLE] = before


@pytest.fixture(scope="session")
def softhsm_module(softhsm_home: Path) -> Path:
    """SoftHSM's module, with ``SOFTHSM2_CONF`` set for it."""
    return _module()


@contextmanager
def kept_tokens(home: Path) -> Iterator[None]:
    """The tokens that are made inside the block stay until the run ends."""
    before = _folders(home)
    yield
    _kept.update(_folders(home) - before)


@contextmanager
def passing_tokens(home: Path) -> Iterator[None]:
    """The tokens that are made inside the block are removed at its end, if nobody has SoftHSM in use then."""
    before = _folders(home)
    try:
        yield
    finally:
        _remove(_folders(home) - before)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Note which tokens fixtures have made."""
    home = item.config.stash.get(_HOME, None)
    if home is not None:
        item.stash[_BEFORE_CALL] = _folders(home)
    yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, None, None]:
    """Remove what the test itself made, and after the last test of a module, when its fixtures are gone, all that came with it."""
    yield
    home = item.config.stash.get(_HOME, None)
    if home is not None:
        staying = item.stash[_BEFORE_CALL] if _BEFORE_CALL in item.stash else _folders(home)
        if nextitem is None or nextitem.path != item.path:
            staying = set()
        _remove(_folders(home) - staying)


def _folders(home: Path) -> set[Path]:
    """Where the tokens are."""
    tokens = home / softhsm.TOKENS_DIRECTORY
    return set(tokens.iterdir()) if tokens.is_dir() else set()


def _remove(folders: set[Path]) -> None:
    """Remove tokens, unless SoftHSM may be in use, which would miss them until it is initialised again."""
    folders = {folder for folder in folders - _kept if folder.is_dir()}
    if not folders or PROCESS._modules:
        return
    # A test with modules of its own may have left it initialised.
    functions.ModuleFunctions(_module()).finalize()
    for folder in folders:
        shutil.rmtree(folder)
        shutil.rmtree(folder.parents[1] / COPIES_DIRECTORY / folder.name, ignore_errors=True)


def _module() -> Path:
    module = softhsm.find_module()
    assert module is not None, "install softhsm2"
    return module


@asynccontextmanager
async def _fresh_token(home: Path, module: Path) -> AsyncIterator[SoftToken]:
    label = f"token-{os.getpid()}-{next(_numbers)}"
    with passing_tokens(home):
        hsm = make_hsm()
        await hsm.initialise_token(module, label, so_pin=Pin(SO_PIN), user_pin=Pin(USER_PIN))
        try:
            yield SoftToken(hsm, module, label, home / softhsm.TOKENS_DIRECTORY)
        finally:
            await hsm.close()


@pytest_asyncio.fixture
async def soft_token(softhsm_home: Path, softhsm_module: Path) -> AsyncIterator[SoftToken]:
    """A fresh token and an open Hsm."""
    async with _fresh_token(softhsm_home, softhsm_module) as token:
        yield token


@pytest_asyncio.fixture
async def second_token(softhsm_home: Path, softhsm_module: Path) -> AsyncIterator[SoftToken]:
    """Another fresh token, with an Hsm of its own."""
    async with _fresh_token(softhsm_home, softhsm_module) as token:
        yield token


@pytest_asyncio.fixture
async def hsm(soft_token: SoftToken) -> Hsm:
    """The Hsm of ``soft_token``."""
    return soft_token.hsm
