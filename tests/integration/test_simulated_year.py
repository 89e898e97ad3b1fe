"""A year of a fleet of a thousand workloads, with outages, clients that fail and leaders that are lost.

It takes less than a minute on a machine with two cores; what it took is printed (``pytest -s``).
What must hold is in :mod:`simulation.inspection`. That it is found out when it does not is shown by leaving something out.
"""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from time import process_time

import pytest
import structlog

from fakes.home import MakeSettings
from privyseal_acme.leases import Leadership
from privyseal_ca.revocation.ocsp import StoredOcsp
from privyseal_ca.revocation.ocsp_ready import ReadyResponses
from simulation.inspection import BrokenPromiseError
from simulation.troubles import Loss
from simulation.workloads import DAY, FleetPlan
from simulation.year import Report, Year, simulated_settings

_YEAR = 365


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Nobody reads a year's log."""
    before = structlog.get_config()
    disabled = logging.root.manager.disable
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    logging.disable(logging.ERROR)
    yield
    logging.disable(disabled)
    structlog.configure(**before)


def live(
    make_settings: MakeSettings,
    folder: Path,
    *,
    seed: int,
    size: int,
    lifetime: float,
    days: float,
    without: frozenset[str] = frozenset(),
) -> Report:
    """What happened in ``days``; certificates live for ``lifetime`` days."""
    life = lifetime * DAY
    settings = make_settings(**simulated_settings(folder / "profiles", life))
    # As long as it takes until a third of the certificates' life is over, so that not everybody renews together.
    plan = FleetPlan(size, life, arrival=life / 3)
    try:
        return asyncio.run(Year(settings, plan, seed=seed, days=days, without=without).run())
    except BaseException as error:
        error.add_note(f"The seed was {seed}.")
        raise


def test_a_year_of_a_thousand_workloads(make_settings: MakeSettings, tmp_path: Path) -> None:
    begun = process_time()
    report = live(make_settings, tmp_path, seed=2026, size=1000, lifetime=150, days=_YEAR)
    took = process_time() - begun
    print(f"{took:.0f} s: {report}")
    # It was a year in which something happened.
    assert report.renewals > 2000
    assert report.polls > 10_000
    assert report.answers > 1000
    assert report.token_hours > 48
    assert report.database_hours > 12
    assert min(report.lost[loss] for loss in Loss) >= 5
    assert report.leaders > 30
    assert report.refused > 10, "no leader woke up in the middle of its work"
    # Some renewals did not come, all of them were reported, and the product counted what it reported.
    assert report.expired > 20
    assert report.missed >= report.expired
    assert report.counted["missed"] >= report.missed
    assert report.counted["in_time"] > 0.95 * report.renewals


@pytest.mark.parametrize("seed", [5, 77])
def test_some_weeks_of_short_lives(seed: int, make_settings: MakeSettings, tmp_path: Path) -> None:
    """Other chances than in the year. What one seed leads to is nearly the same each time: other numbers look elsewhere."""
    report = live(make_settings, tmp_path, seed=seed, size=100, lifetime=30, days=60)
    assert report.renewals > 50


# Which of two looks comes first is a matter of chance.
@pytest.mark.parametrize(
    ("job", "days", "complaint"),
    [
        ("ocsp-responses", 18, "certificates have no OCSP response|is TRY_LATER"),
        ("crl-parts", 40, "CRL"),
        ("crl-full", 40, "CRL"),
        ("orders", 60, "and its certificate ended"),
        ("fleet-states", 60, "ends and is reported as current"),
        ("fleet-follow", 40, "is no workload of the fleet"),
    ],
    ids=["ocsp-responses", "crl-parts", "crl-full", "orders", "fleet-states", "fleet-follow"],
)
def test_work_that_is_not_done_is_found_out(
    job: str, days: float, complaint: str, make_settings: MakeSettings, tmp_path: Path
) -> None:
    with pytest.raises(BrokenPromiseError, match=complaint):
        live(make_settings, tmp_path, seed=1, size=60, lifetime=20, days=days, without=frozenset({job}))


def test_responses_that_are_not_renewed_are_found_out(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ReadyResponses, "_refresh", _nothing)
    with pytest.raises(BrokenPromiseError, match=r"OCSP responses are past their nextUpdate|is TRY_LATER"):
        live(make_settings, tmp_path, seed=1, size=60, lifetime=20, days=30)


def test_an_answer_that_is_kept_too_long_is_found_out(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Good, although the certificate has been revoked since."""
    honest = StoredOcsp._ready
    monkeypatch.setattr(StoredOcsp, "_ready", lambda self, found: honest(self, found._replace(revocation=None)))
    monkeypatch.setattr(ReadyResponses, "_replace_revoked", _nothing)
    with pytest.raises(BrokenPromiseError, match="is said to be GOOD, not REVOKED"):
        live(make_settings, tmp_path, seed=1, size=60, lifetime=20, days=60)


def test_leaders_that_write_beside_each_other_are_found_out(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Leadership, "guarding", lambda _: nullcontext())
    with pytest.raises(BrokenPromiseError, match="wrote as leader"):
        live(make_settings, tmp_path, seed=1, size=30, lifetime=90, days=60)


async def _nothing(*_: object) -> int:
    return 0
