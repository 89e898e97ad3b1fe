"""A survey of all workloads in the database, beside everything else that the process does."""

import asyncio
from functools import partial

from privyseal_ca.fleet.survey import MOST_GROUPS, FleetFigures, Survey
from privyseal_ca.store.engine import Store
from privyseal_ca.store.fleet_survey import count_retired, survey_page


async def survey_fleet(store: Store, now: float, *, most: int = MOST_GROUPS) -> FleetFigures:
    """The figures of the fleet at ``now``; ``most`` as in :class:`privyseal_ca.fleet.survey.Survey`.

    The event loop is free between pages of a few milliseconds, and what is made of them is made in a thread. Workloads that
    change meanwhile count as they were or as they are.

    Raises:
        StoreUnavailableError: the database is away.
    """
    survey = Survey(now, most=most)
    after = ""
    while rows := await store.read(partial(survey_page, after=after)):
        survey.add(rows)
        after = rows[-1].id
        await asyncio.sleep(0)
    # Over the years they are the most, and nothing is to be said of them.
    survey.add_retired(await store.read(count_retired))
    return await asyncio.to_thread(survey.figures)
