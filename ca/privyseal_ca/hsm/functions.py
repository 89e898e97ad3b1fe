"""The few functions of a PKCS#11 module that are called without python-pkcs11.

It does not offer C_InitToken, and it calls C_Finalize while it holds the interpreter's lock: a module that hangs there
would stop the whole process, not only its own thread. What is called here lets go of the lock.
"""

import ctypes
from pathlib import Path
from typing import Any

from privyseal_ca.errors import SignerError

OK = 0x0
NOT_INITIALIZED = 0x190
ALREADY_INITIALIZED = 0x191

# Places in CK_FUNCTION_LIST (PKCS#11 section 4.6).
_INITIALIZE, _FINALIZE, _INIT_TOKEN = 0, 1, 9


class _FunctionList(ctypes.Structure):
    """Its start: a version and pointers, C_InitToken the tenth."""

    _fields_ = (("version", ctypes.c_ubyte * 2), ("functions", ctypes.c_void_p * 10))


class ModuleFunctions:
    """Functions of the module at ``path``, which is the same copy of it that python-pkcs11 has loaded.

    Each gives the CKR_ that the module gives.

    Raises:
        SignerError: the file is no PKCS#11 module.
    """

    def __init__(self, path: Path) -> None:
        functions = ctypes.POINTER(_FunctionList)()
        if ctypes.CDLL(str(path)).C_GetFunctionList(ctypes.byref(functions)) != OK:
            raise SignerError(f"{path} does not give its functions.", hint="It is no PKCS#11 module.")
        self._functions = functions.contents.functions

    def initialize(self) -> int:
        """C_Initialize without arguments, as python-pkcs11 calls it."""
        return int(self._function(_INITIALIZE, ctypes.c_void_p)(None))

    def finalize(self) -> int:
        """C_Finalize."""
        return int(self._function(_FINALIZE, ctypes.c_void_p)(None))

    def init_token(self, slot: int, so_pin: bytes, label: str) -> int:
        """C_InitToken."""
        function = self._function(_INIT_TOKEN, ctypes.c_ulong, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
        return int(function(slot, so_pin, len(so_pin), label.encode().ljust(32)))

    def _function(self, place: int, *arguments: Any) -> Any:
        return ctypes.CFUNCTYPE(ctypes.c_ulong, *arguments)(self._functions[place])
