"""The result as people and programs read it."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from chaos.trials import Outcome, Tally

_COLUMNS = (
    "fault",
    "database",
    "injected",
    "acknowledged",
    "lost",
    "duplicated",
    "unrecorded",
    "recovery median s",
    "recovery max s",
)


def _row(tally: Tally) -> tuple[str | int | float | None, ...]:
    recovery = tally.recovery
    return (
        tally.fault,
        tally.database,
        tally.injected,
        tally.acknowledged,
        tally.lost,
        tally.duplicated,
        tally.unrecorded,
        round(median(recovery), 2) if recovery else None,
        round(max(recovery), 2) if recovery else None,
    )


def document(outcomes: Sequence[Outcome], seed: str, seconds: float) -> dict[str, Any]:
    """Everything, for programs."""
    return {
        "seed": seed,
        "seconds": round(seconds, 1),
        "clean": all(outcome.clean for outcome in outcomes),
        "faults": [
            dict(zip((name.replace(" ", "_") for name in _COLUMNS), _row(tally), strict=True))
            for outcome in outcomes
            for tally in outcome.tallies
        ],
        "trials": [
            {
                "name": outcome.name,
                "breaches": outcome.breaches,
                "retries": outcome.retries,
                "revoked": outcome.revoked,
                "abandoned": outcome.abandoned,
                "by_lego": outcome.programs,
                "checkpoints": outcome.checkpoints,
                "consistency_proofs": outcome.proofs,
                "crls": outcome.crls,
                "kept": None if outcome.kept is None else str(outcome.kept),
            }
            for outcome in outcomes
        ],
    }


def table(outcomes: Sequence[Outcome], seed: str, seconds: float) -> str:
    """The table, and one line for each trial."""
    tallies = [tally for outcome in outcomes for tally in outcome.tallies]
    total = Tally("all", "")
    for tally in tallies:
        total.injected += tally.injected
        total.acknowledged += tally.acknowledged
        total.lost += tally.lost
        total.duplicated += tally.duplicated
        total.unrecorded += tally.unrecorded
        total.recovery += tally.recovery
    rows = [_COLUMNS, *(tuple("-" if cell is None else str(cell) for cell in _row(each)) for each in (*tallies, total))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines = [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.append("")
    for outcome in outcomes:
        retries = sum(outcome.retries.values())
        lines.append(
            f"{outcome.name}: {f'{outcome.programs} certificates by lego, ' if outcome.programs else ''}{outcome.revoked} revoked, "
            f"{outcome.abandoned} serials abandoned, {outcome.checkpoints} checkpoints seen, {outcome.proofs} consistency proofs, "
            f"{outcome.crls} CRLs seen, {retries} retries, {len(outcome.breaches)} breaches"
        )
    lines.append(f"seed {seed}, {seconds:.0f} s")
    return "\n".join(lines)
