"""Kills and breaks a real service while clients order from it, and counts what that costs: `make chaos`.

Every kind of fault, on SQLite and on PostgreSQL. Progress goes to standard error, the table to standard output. Exit code 0
only if nothing was lost, duplicated or unrecorded and nothing else was wrong; else home, logs and seed are kept.
"""

import argparse
import json
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

from chaos.plan import trials
from chaos.table import document, table
from chaos.trials import Trial
from chaos.world import new_folder


def main(arguments: Sequence[str] | None = None, plan: Callable[[int], Sequence[Trial]] = trials) -> int:
    """Run the trials of ``plan`` and print what they found; the exit code."""
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=300, help="kills; other faults are in proportion (default: 300)")
    parser.add_argument("--seed", default="", help="what chooses the moments (default: a new one, which is printed)")
    parser.add_argument("--only", default="", help="run only the trials whose name has this in it")
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    options = parser.parse_args(arguments)
    seed = options.seed or secrets.token_hex(4)
    say = partial(print, file=sys.stderr, flush=True)
    say(f"seed {seed}")
    begun = time.monotonic()
    outcomes = []
    for trial in plan(options.rounds):
        if options.only in trial.name:
            outcomes.append(trial.run(new_folder(), seed, say))
            for breach in outcomes[-1].breaches:
                say(f"{trial.name}: {breach}")
            if outcomes[-1].kept is not None:
                say(f"{trial.name}: home, logs and checkpoints are in {outcomes[-1].kept}")
    if not outcomes:
        say(f"no trial has {options.only!r} in its name")
        return 2
    seconds = time.monotonic() - begun
    print(json.dumps(document(outcomes, seed, seconds), indent=2) if options.json else table(outcomes, seed, seconds))
    return 0 if all(outcome.clean for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
