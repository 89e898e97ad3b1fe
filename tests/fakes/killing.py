"""A command in a process of its own that ends itself by SIGKILL when it calls a function of the recovery room.

The function is wrapped in that process; the product itself has no such hook.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

_ENTRIES = 5


def killed_command(drill: Any, command: Sequence[str], *, at: str, call: int = 0) -> None:
    """Run ``command`` for the home of ``drill`` until it calls ``at``, ``MODULE.FUNCTION``, after ``call`` calls.

    Batches of entries that are brought back have five entries.
    """
    done = subprocess.run(
        [sys.executable, "-P", __file__, json.dumps(list(command)), at, str(call)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env={**os.environ, **drill.environment, "PYTHONPATH": str(Path(__file__).parents[1])},
        timeout=60,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, (done.stdout, done.stderr)


def _main() -> None:
    from privyseal_acme.cli import cli  # noqa: PLC0415
    from privyseal_ca.recovery import catch_up  # noqa: PLC0415

    command, at, left = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    name, _, function = at.partition(".")
    module = import_module(f"privyseal_ca.recovery.{name}")
    original = getattr(module, function)

    def call_or_die(*arguments: Any) -> Any:
        nonlocal left
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return original(*arguments)

    catch_up._BATCH = _ENTRIES  # type: ignore[misc]
    setattr(module, function, call_or_die)
    cli(command)


if __name__ == "__main__":
    _main()
