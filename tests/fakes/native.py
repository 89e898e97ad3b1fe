"""Libraries in C that tests put before a real program, built from ``tests/native`` when they are first needed."""

import os
import subprocess
from functools import cache
from hashlib import sha256
from pathlib import Path
from tempfile import gettempdir

_SOURCES = Path(__file__).parents[1] / "native"


@cache
def preloaded(name: str) -> Path:
    """The library ``name``, built when there is none of its source yet; any number of processes may ask at the same time."""
    source = _SOURCES / f"{name}.c"
    digest = sha256(source.read_bytes()).hexdigest()[:16]
    built = Path(gettempdir()) / f"privyseal-{name}-{os.getuid()}-{digest}.so"
    if not built.exists():
        mine = built.with_suffix(f".{os.getpid()}")
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o", mine, source, "-ldl"], check=True
        )
        mine.replace(built)
    return built
