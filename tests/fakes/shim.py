"""A PKCS#11 module that fails on command, for the real service in a process of its own as well as for this process.

``tests/native/pkcs11_shim.c`` is built once with the machine's C compiler. A :class:`Shim` is a copy of it in a folder of
its own, with a copy of SoftHSM behind it; whatever loads :attr:`Shim.path` as its module shares the memory through which a
test says what is to fail, and reads what was called. It acts at once, on every process that has this copy loaded::

    shim = Shim(tmp_path / "a", softhsm_conf=softhsm.embed(tmp_path / "home"))
    server.init("--pkcs11-module", str(shim.path), ...)
    shim.fail("C_Sign", CKR.DEVICE_ERROR)                  # the next call did not sign
    shim.fail("C_Sign", CKR.DEVICE_ERROR, after=True)      # the next call signed, and says it failed
    shim.fail("C_Login", CKR.PIN_INCORRECT, times=None)    # until lift(): the token itself never sees the PIN
    with shim.hanging("C_Sign"): ...                       # every call, until the end of the block
    shim.take_away(); shim.bring_back()                    # no slot has a token; its sessions are dead afterwards
    shim.lose_sessions(); shim.log_out()                   # behind the caller's back, at its next call

**Two tokens in one process**: two shims with a ``softhsm_conf`` each have two stores of tokens, as both the library and
SoftHSM are copied, and each sets ``SOFTHSM2_CONF`` for the moment in which its own SoftHSM is initialised. Without
``softhsm_conf`` the variable of the process counts.

:attr:`Shim.signatures` has what was really signed, in order: the mechanism, the label of the key and the input, which for
CKM_ECDSA is the hash of the message. It holds 8192 signatures, and says so when there were more.
"""

import ctypes
import fcntl
import hashlib
import mmap
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from functools import cache
from pathlib import Path

from privyseal_ca.hsm.softhsm import find_module

SOURCE = Path(__file__).parents[1] / "native" / "pkcs11_shim.c"
_LIST = SOURCE.with_name("pkcs11_functions.h")
_INCLUDE = "/usr/include/p11-kit-1"
#: Every function of PKCS#11 2.40, in the order of that list.
FUNCTIONS = tuple(
    re.findall(r"^    (?:OWN|ANY|SLOT|SESSION)\((C_\w+)", _LIST.read_text(encoding="utf-8"), re.MULTILINE)
)
_NEVER, _BEFORE, _AFTER = range(3)
_UNTIL_LIFTED = 2**32 - 1
_LIES = 8
_SIGNATURES = 8192
_SIGNED_BYTES = 96
_PATIENCE = 20.0


class CKR(IntEnum):
    """Return values (PKCS#11 section 4.2)."""

    HOST_MEMORY = 0x02
    SLOT_ID_INVALID = 0x03
    GENERAL_ERROR = 0x05
    FUNCTION_FAILED = 0x06
    ARGUMENTS_BAD = 0x07
    DATA_INVALID = 0x20
    DATA_LEN_RANGE = 0x21
    DEVICE_ERROR = 0x30
    DEVICE_MEMORY = 0x31
    DEVICE_REMOVED = 0x32
    FUNCTION_CANCELED = 0x50
    FUNCTION_NOT_SUPPORTED = 0x54
    KEY_HANDLE_INVALID = 0x60
    MECHANISM_INVALID = 0x70
    OBJECT_HANDLE_INVALID = 0x82
    OPERATION_ACTIVE = 0x90
    OPERATION_NOT_INITIALIZED = 0x91
    PIN_INCORRECT = 0xA0
    PIN_LOCKED = 0xA4
    SESSION_CLOSED = 0xB0
    SESSION_COUNT = 0xB1
    SESSION_HANDLE_INVALID = 0xB3
    TOKEN_NOT_PRESENT = 0xE0
    TOKEN_NOT_RECOGNIZED = 0xE1
    USER_NOT_LOGGED_IN = 0x101
    BUFFER_TOO_SMALL = 0x150
    CRYPTOKI_NOT_INITIALIZED = 0x190
    CRYPTOKI_ALREADY_INITIALIZED = 0x191
    FUNCTION_REJECTED = 0x200
    VENDOR_DEFINED = 0x80000001


class CKA(IntEnum):
    """Attributes of keys that :meth:`Shim.lie` is used for."""

    SENSITIVE = 0x103
    EXTRACTABLE = 0x162
    LOCAL = 0x163
    NEVER_EXTRACTABLE = 0x164
    ALWAYS_SENSITIVE = 0x165
    ALWAYS_AUTHENTICATE = 0x202


class CKF(IntFlag):
    """Flags of tokens (PKCS#11 section 3.2)."""

    USER_PIN_COUNT_LOW = 0x10000
    USER_PIN_FINAL_TRY = 0x20000
    USER_PIN_LOCKED = 0x40000


class _Plan(ctypes.Structure):
    name: bytes
    key: bytes
    calls: int
    code: int
    fails: int
    left: int
    skip: int
    delay: int
    hang: int
    hanging: int
    _fields_ = (
        ("name", ctypes.c_char * 32),
        ("key", ctypes.c_char * 32),
        ("calls", ctypes.c_uint64),
        ("code", ctypes.c_uint64),
        ("fails", ctypes.c_uint32),
        ("left", ctypes.c_uint32),
        ("skip", ctypes.c_uint32),
        ("delay", ctypes.c_uint32),
        ("hang", ctypes.c_uint32),
        ("hanging", ctypes.c_uint32),
    )


class _Signature(ctypes.Structure):
    _fields_ = (
        ("mechanism", ctypes.c_uint64),
        ("told", ctypes.c_uint64),
        ("size", ctypes.c_uint32),
        ("done", ctypes.c_uint32),
        ("label", ctypes.c_char * 32),
        ("data", ctypes.c_uint8 * _SIGNED_BYTES),
    )


class _Lie(ctypes.Structure):
    _fields_ = (("attribute", ctypes.c_uint64), ("active", ctypes.c_uint32), ("value", ctypes.c_uint32))


class _Control(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_uint64),
        ("absent", ctypes.c_uint64),
        ("signatures", ctypes.c_uint64),
        ("token_flags", ctypes.c_uint64),
        ("lost", ctypes.c_uint32),
        ("logged_out", ctypes.c_uint32),
        ("lies", _Lie * _LIES),
        ("plans", _Plan * len(FUNCTIONS)),
        ("log", _Signature * _SIGNATURES),
    )


@dataclass(frozen=True)
class Signature:
    """One signature that the token made."""

    key: str
    """The label of the key."""
    mechanism: int
    data: bytes
    """What C_Sign was given, but for what is beyond its first 96 bytes."""
    told: int
    """What the caller was told: 0, or the CKR_ of a failure although it was made."""


class Shim:
    """One copy of the library with its SoftHSM. ``folder`` is made if need be.

    ``module`` is the real module, by default the machine's SoftHSM; ``softhsm_conf`` is its SOFTHSM2_CONF.
    """

    def __init__(self, folder: Path, *, module: Path | None = None, softhsm_conf: Path | None = None) -> None:
        module = module or find_module()
        assert module is not None, "install softhsm2"
        folder.mkdir(parents=True, exist_ok=True)
        #: The module to name in URIs.
        self.path = folder / "shim.so"
        real, shared = folder / module.name, folder / "control"
        # Copies: the dynamic linker loads one file once in a process, and with it its state.
        shutil.copyfile(_built(), self.path)
        shutil.copyfile(module, real)
        lines = [f"module={real}", f"control={shared}", f"softhsm={softhsm_conf or ''}"]
        Path(f"{self.path}.conf").write_text("\n".join(lines) + "\n", encoding="utf-8")
        with shared.open("w+b") as file:
            file.truncate(ctypes.sizeof(_Control))
            self._control = _Control.from_buffer(mmap.mmap(file.fileno(), ctypes.sizeof(_Control)))
        self._control.size = ctypes.sizeof(_Control)
        self._plans: dict[str, _Plan] = dict(zip(FUNCTIONS, self._control.plans, strict=True))
        for name, plan in self._plans.items():
            plan.name = name.encode()

    # What fails

    def fail(
        self, function: str, code: int, *, times: int | None = 1, after: bool = False, skip: int = 0, key: str = ""
    ) -> None:
        """Answer with ``code`` to the next ``times`` calls, or to all, once ``skip`` calls have passed.

        ``after`` the real call, which is made then, or instead of it. ``key``: only C_SignInit and C_Sign with the key of
        that label fail. A new plan replaces the function's old one.
        Length queries of C_Sign neither fail nor count.
        """
        plan = self._plans[function]
        plan.fails = _NEVER
        plan.code, plan.skip, plan.key = code, skip, key.encode()
        plan.left = _UNTIL_LIFTED if times is None else times
        plan.fails = _AFTER if after else _BEFORE

    def pending(self, function: str) -> bool:
        """Whether a failure is planned that has not happened yet."""
        plan = self._plans[function]
        return plan.fails != _NEVER and plan.left > 0

    def hang(self, function: str, *, after: bool = False, key: str = "") -> None:
        """Have every call hang before or ``after`` the real one, for a minute at most; ``key`` as for :meth:`fail`."""
        self._plans[function].key = key.encode()
        self._plans[function].hang = _AFTER if after else _BEFORE

    def release(self, function: str) -> None:
        """Let the calls that hang go on."""
        self._plans[function].hang = _NEVER

    @contextmanager
    def hanging(self, function: str, *, after: bool = False, key: str = "") -> Iterator[None]:
        """:meth:`hang` for as long as the block lasts."""
        self.hang(function, after=after, key=key)
        try:
            yield
        finally:
            self.release(function)

    def wait_until_hanging(self, function: str) -> None:
        """Return when a call hangs."""
        deadline = time.monotonic() + _PATIENCE
        while not self._plans[function].hanging:
            assert time.monotonic() < deadline, f"no call of {function} hangs"
            time.sleep(0.005)

    def delay(self, function: str, seconds: float) -> None:
        """Have every call take that much longer."""
        self._plans[function].delay = int(seconds * 1000)

    def take_away(self, code: int = CKR.DEVICE_REMOVED) -> None:
        """The token is gone: no slot has one, what asks for it by its slot gets CKR_TOKEN_NOT_PRESENT, sessions ``code``."""
        self._control.lost += 1
        self._control.absent = code

    def bring_back(self) -> None:
        """The token is there again; sessions of before are not."""
        self._control.absent = 0

    def lose_sessions(self) -> None:
        """Every session is closed at the next call, which then fails as the real module has it."""
        self._control.lost += 1

    def log_out(self) -> None:
        """The user is logged out at the next call, whose handles of private objects are dead then."""
        self._control.logged_out += 1

    def lie(self, attribute: int, value: bool) -> None:
        """Say that each key has this value of a boolean attribute."""
        free = next(lie for lie in self._control.lies if not lie.active)
        free.attribute, free.value = attribute, value
        free.active = 1

    def flag(self, flags: CKF) -> None:
        """Say ``flags`` of each token besides its own."""
        self._control.token_flags = flags

    def lift(self) -> None:
        """No more faults, delays, hangs and lies, and the token is there. What was counted stays."""
        for plan in self._plans.values():
            plan.fails = plan.hang = plan.delay = _NEVER
        for lie in self._control.lies:
            lie.active = 0
        self.flag(CKF(0))
        self.bring_back()

    # What happened

    def calls(self, function: str) -> int:
        """How often it was called, by whomever, however it ended."""
        return int(self._plans[function].calls)

    @property
    def logins(self) -> int:
        """How often a PIN was tried."""
        return self.calls("C_Login")

    @property
    def signatures(self) -> list[Signature]:
        """What the token has signed by C_Sign since the shim was made."""
        count = int(self._control.signatures)
        assert count <= _SIGNATURES, f"{count} signatures, of which {_SIGNATURES} were kept"
        made = [self._control.log[index] for index in range(count)]
        assert all(each.done for each in made), "a signature is being made at this moment"
        return [
            Signature(
                each.label.decode(),
                each.mechanism,
                bytes(each.data)[: each.size],
                each.told,
            )
            for each in made
        ]

    @property
    def signature_count(self) -> int:
        """How many those are."""
        return int(self._control.signatures)


@cache
def _built() -> Path:
    """The library, compiled when this source was not yet on this machine. Several runs of pytest may come here at once."""
    compiler = shutil.which("cc")
    assert compiler is not None, "install gcc and libc6-dev"
    assert Path(_INCLUDE).is_dir(), "install libp11-kit-dev"
    command = [compiler, "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{_INCLUDE}"]
    digest = hashlib.sha256(SOURCE.read_bytes() + _LIST.read_bytes() + " ".join(command).encode()).hexdigest()[:32]
    folder = Path(tempfile.gettempdir()) / f"privyseal-shim-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    assert folder.stat().st_uid == os.getuid(), f"{folder} belongs to somebody else"
    library = folder / f"{digest}.so"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            draft = library.with_suffix(".draft")
            done = subprocess.run(
                [*command, "-o", str(draft), str(SOURCE), "-pthread", "-ldl"],
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            draft.rename(library)
    return library


def make_tokens(shim: Shim, *labels: str, pin: str = "user-pin") -> None:
    """Set up tokens with SoftHSM's own tool, as an operator does with a maker's."""
    for label in labels:
        command = ["softhsm2-util", "--module", str(shim.path), "--init-token", "--free", "--label", label]
        subprocess.run([*command, "--so-pin", "so-pin", "--pin", pin], capture_output=True, timeout=30, check=True)
