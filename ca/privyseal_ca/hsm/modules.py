"""The PKCS#11 modules that this process has loaded.

PKCS#11 knows applications, not objects: initialisation, login and refused PINs belong to the process, and so does this
table. Everything that opens keys in one process shares a module's one thread through it.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from privyseal_ca.errors import SignerMisconfiguredError, SignerUnavailableError
from privyseal_ca.hsm import cryptoki
from privyseal_ca.hsm.softhsm_guard import guard_tokens
from privyseal_ca.hsm.worker import Worker

_log = logging.getLogger(__name__)


class Module:
    """One loaded module. All but ``worker`` is used on the worker's thread only."""

    def __init__(
        self,
        path: Path,
        load: Callable[[Path], cryptoki.Library],
        monotonic: Callable[[], float],
        refused_pins: dict[str, str],
    ) -> None:
        self.path = path
        self.worker = Worker(f"pkcs11 {path.name}", monotonic)
        self.monotonic = monotonic
        self.refused_pins = refused_pins
        """Label and serial number of a token -> why it refused a PIN. Kept as long as the process lives."""
        self.generation = 0
        """Counts initialisations: a handle of an earlier one may name something else now."""
        self.users = 0
        self._load = load
        self._library: cryptoki.Library | None = None
        self._distrusted = False

    def library(self) -> cryptoki.Library:
        """The module, loaded on first use, which is after any fork.

        Raises:
            SignerMisconfiguredError: the file cannot be loaded.
            CryptokiError: the module cannot be initialised.
        """
        if self._library is None:
            self._library = self._loaded()
        if self._distrusted:
            self.rescan()
        return self._library

    def distrust(self) -> None:
        """Have the module finalised and initialised before its next use."""
        self._distrusted = True

    def rescan(self) -> None:
        """Finalise and initialise the module, which ends every session and finds tokens that have come meanwhile."""
        self.generation += 1
        self._distrusted = True
        if self._library is not None:
            guard_tokens(os.environ)
            self._library.reinitialize()
        self._distrusted = False

    def finalise(self) -> None:
        """Log out, close every session and let the module go."""
        self.generation += 1
        library, self._library = self._library, None
        try:
            if library is not None:
                library.finalize()
        except cryptoki.CryptokiError as error:
            _log.warning("%s did not end in order: %s", self.path, type(error).__name__)

    def _loaded(self) -> cryptoki.Library:
        guard_tokens(os.environ)
        try:
            return self._load(self.path)
        except cryptoki.CryptokiError as error:
            if type(error) is not cryptoki.CryptokiError:
                raise
            # No code of the module's own: the dynamic linker refused it.
            raise SignerMisconfiguredError(
                f"The PKCS#11 module {self.path} cannot be loaded.",
                hint="Check module-path in the key's URI, and that the module is installed for this machine.",
            ) from error


class Modules:
    """The modules of one process, each loaded once and shared until its last user lets go of it."""

    def __init__(
        self,
        load: Callable[[Path], cryptoki.Library] = cryptoki.load,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load = load
        self._monotonic = monotonic
        self._modules: dict[Path, Module] = {}
        self._refused_pins: dict[Path, dict[str, str]] = {}
        self._process = os.getpid()
        self._lock = threading.Lock()

    def acquire(self, path: Path) -> Module:
        """The module at ``path``; to be given back with :meth:`release`.

        Raises:
            SignerMisconfiguredError: there is no such file, or this process was forked from one that has it loaded.
            SignerUnavailableError: its last user is just closing it.
        """
        real = path.resolve()
        if not real.is_file():
            raise SignerMisconfiguredError(
                f"There is no PKCS#11 module at {path}.", hint="Check module-path in the key's URI."
            )
        if self._process != os.getpid():
            if self._modules:
                # PKCS#11 section 5.4: what a child does with its parent's initialisation is undefined.
                raise SignerMisconfiguredError(
                    "This process was forked from one that has keys open, and PKCS#11 does not survive that.",
                    hint="Start workers before keys are opened, or spawn them.",
                )
            self._process, self._lock = os.getpid(), threading.Lock()
        with self._lock:
            module = self._modules.get(real)
            if module is None:
                refused = self._refused_pins.setdefault(real, {})
                module = self._modules[real] = Module(path, self._load, self._monotonic, refused)
            elif module.users == 0:
                raise SignerUnavailableError(f"The PKCS#11 module {path} is being closed.", hint="Try again later.")
            module.users += 1
            return module

    async def release(self, module: Module, patience: float) -> None:
        """Give a module back. The last user's release waits up to ``patience`` seconds for what is under way in it.

        A module that hangs longer cannot be opened again in this process before it goes on.
        """
        if self._process != os.getpid():
            return
        with self._lock:
            module.users -= 1
            if module.users:
                return
        if not await module.worker.stop(lambda: self._end(module), patience):
            _log.warning("%s hangs, and is closed when it goes on", module.path)

    def _end(self, module: Module) -> None:
        try:
            module.finalise()
        finally:
            with self._lock:
                self._modules = {path: each for path, each in self._modules.items() if each is not module}


PROCESS = Modules()
"""The modules of this process."""
