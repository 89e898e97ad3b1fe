"""People are told once, in groups, with reason and next step; what cannot be delivered is kept, tried again and seen.

Mail goes to a real SMTP server and the rest to a real web hook. After every test, nothing of a URL's secrets may be in the
log, in an error, in the metrics or in the database.
"""

import asyncio
import os
import socket
import time
from contextlib import closing
from functools import partial

import pytest

from fakes.lineages import DAY, late, lineage
from fakes.notifying import HOUR, SECRET, START, TO_OWNER, WEB_HOOK, Desk
from fakes.receivers import hook
from privyseal_acme.flow import notifications as module
from privyseal_acme.flow.notifications import Notifier
from privyseal_acme.leases import Leadership
from privyseal_acme.scheduler import Job, Scheduler
from privyseal_ca.config import Settings
from privyseal_ca.errors import (
    ConfigurationError,
    LeaseLostError,
    NotificationError,
    StoreConflictError,
    StoreUnavailableError,
)
from privyseal_ca.notify import deliver as delivering
from privyseal_ca.notify.compose import MOST_NAMED
from privyseal_ca.notify.targets import Target
from privyseal_ca.notify.templates import Text
from privyseal_ca.store.issuers import find_fact
from privyseal_ca.store.notifications import DIGEST_FACT
from privyseal_ca.store.scheduling import JobRow, find_job, report_jobs

pytest_plugins = ("fakes.notifying",)


async def test_news_of_one_run_are_one_message_with_reason_and_next_step(anywhere: Desk) -> None:
    await anywhere.add(
        late("db", owner="bob", team="data"),
        late("pay", "pay.corp.example", owner="ann", team="shop", criticality="critical"),
        lineage("web", owner="ann", team="shop", state="failing", failing_since=START - 2 * HOUR, attempts=4),
        lineage("well", owner="ann"),
        lineage("nobody"),
    )
    await anywhere.notifier().run()
    (post,) = anywhere.hook.posts
    assert post["title"] == "Privy Seal: 2 renewals missed, 1 workload failing, 1 workload without an owner"
    assert post["type"] == "warning"
    body = post["message"]
    assert (
        body.index("Owner: ann (shop)") < body.index("pay.corp.example - missed (critical)") < body.index("Owner: bob")
    )
    assert body.count("Why: ") == body.count("Next: ") == 4
    assert "well.corp.test" not in body
    (row,) = await anywhere.rows()
    assert (row.kind, row.workloads, row.state, row.attempts) == ("missed", 4, "delivered", 1)
    assert anywhere.metric("privyseal_notifications_total", result="delivered") == 1
    assert anywhere.metric("privyseal_notifications_waiting") == 0


async def test_what_stays_is_not_told_again_and_what_ends_is_told_once(anywhere: Desk) -> None:
    notifier = anywhere.notifier()
    await anywhere.add(late("web", owner="ann"))
    for _ in range(3):
        await notifier.run()
        anywhere.clock.advance(60)
    # Neither does another process, or the next start.
    await anywhere.notifier().run()
    assert len(anywhere.hook.posts) == 1
    assert await anywhere.told("web") == f"missed:{START - 2 * DAY}"

    await anywhere.change("web", missed_at=0, state="current", state_since=START)
    for _ in range(2):
        await notifier.run()
    assert [post["title"] for post in anywhere.hook.posts[1:]] == ["Privy Seal: 1 workload recovered"]
    assert await anywhere.told("web") == ""

    await anywhere.change("web", missed_at=START + 60, state="silent")
    await notifier.run()
    assert anywhere.hook.posts[2]["title"] == "Privy Seal: 1 renewal missed"


async def test_each_route_gets_what_it_asks_for(desk: Desk) -> None:
    for name in ("shop", "critical", "unowned"):
        desk.url_file(name, WEB_HOOK.format(port=desk.hook.port).replace("/hook", f"/{name}?:route={name}"))
    await desk.add(
        late("a", owner="ann", team="shop"),
        late("b", owner="bob", team="data", criticality="critical"),
        lineage("c", environment="test"),
    )
    await desk.notifier(
        {"name": "shop", "url_file": "shop", "teams": ["shop"]},
        {"name": "critical", "url_file": "critical", "criticality": ["critical"], "kinds": ["missed"]},
        {"name": "unowned", "url_file": "unowned", "kinds": ["unowned"], "environments": ["test"]},
    ).run()
    assert {post["route"]: post["message"].partition(" - ")[0].split()[-1] for post in desk.hook.posts} == {
        "shop": "a.corp.test",
        "critical": "b.corp.test",
        "unowned": "c.corp.test",
    }


async def test_what_no_route_asked_for_is_told_when_one_does(desk: Desk) -> None:
    await desk.add(late("a", owner="ann"))
    await desk.notifier({"name": "ops", "kinds": ["unowned"]}).run()
    assert await desk.told("a") == ""
    await desk.notifier({"name": "ops"}).run()
    assert desk.hook.posts[0]["title"] == "Privy Seal: 1 renewal missed"


async def test_owners_get_mail_of_what_is_theirs(desk: Desk) -> None:
    await desk.add(
        late("a", owner="ann@corp.example"),
        late("b", owner="ann@corp.example", criticality="high"),
        late("c", owner="bob+ca@corp.example"),
        late("d", owner="a rota"),
        late("e", owner="eve@corp.example,mallory@corp.example"),
    )
    await desk.notifier({"name": "owners", "to_owner": True}).run()
    mails = {mail.recipients[0]: mail for mail in desk.mail.mails}
    assert sorted(mails) == ["ann@corp.example", "bob+ca@corp.example"]
    assert len(desk.mail.mails) == 2
    ann = mails["ann@corp.example"]
    assert ann.subject == "Privy Seal: 2 renewals missed"
    assert ann.message["To"] == "ann@corp.example"
    assert ann.message["From"] == "ca@corp.example"
    assert ann.text.index("b.corp.test") < ann.text.index("a.corp.test")
    assert "c.corp.test" not in ann.text
    # Who cannot be written to was not told.
    assert await desk.told("d") == await desk.told("e") == ""


async def test_at_most_so_many_are_named_and_all_are_told(anywhere: Desk) -> None:
    await anywhere.add(
        *(late(f"w{number:04}", owner="ann") for number in range(1, 1300)), late("top", criticality="critical")
    )
    await anywhere.notifier({"name": "ops", "kinds": ["missed"]}).run()
    (post,) = anywhere.hook.posts
    assert post["title"] == "Privy Seal: 1300 renewals missed"
    assert post["message"].count("Why: ") == MOST_NAMED
    assert f"And {1300 - MOST_NAMED} more" in post["message"]
    assert post["message"].index("top.corp.test") < post["message"].index("w0001.corp.test")
    assert await anywhere.told("w1299")
    await anywhere.notifier().run()
    assert len(await anywhere.rows()) == 2  # `top` has no owner, which the second route is told


async def test_what_is_not_delivered_is_kept_seen_and_delivered_when_it_can_be(desk: Desk) -> None:
    desk.hook.status = 503
    notifier = desk.notifier()
    await desk.add(late("a", owner="ann"))
    problem = await desk.fails(notifier)
    assert problem == "Not everybody is told. ops: Line 1 of the URLs: it answered with the HTTP status 503."
    (row,) = await desk.rows()
    assert (row.state, row.attempts, row.next_attempt) == ("waiting", 1, START + 60)
    assert desk.metric("privyseal_notifications_waiting") == 1
    # Before its time it is not tried, and the job goes on failing.
    desk.clock.advance(30)
    await desk.fails(notifier)
    assert desk.hook.asked == 1
    assert desk.metric("privyseal_notification_age_seconds") == 30
    desk.clock.advance(30)
    await desk.fails(notifier)
    (row,) = await desk.rows()
    assert (row.attempts, row.next_attempt) == (2, START + 60 + 120)
    # Another process has it as well.
    desk.hook.status = 200
    desk.clock.advance(120)
    await desk.notifier().run()
    assert desk.hook.posts[0]["title"] == "Privy Seal: 1 renewal missed"
    assert desk.metric("privyseal_notifications_total", result="failed") == 2
    assert desk.metric("privyseal_notification_age_seconds") == 0


async def test_after_a_day_it_is_given_up_and_the_digest_says_so(anywhere: Desk) -> None:
    anywhere.hook.status = 500
    notifier = anywhere.notifier()
    await notifier.run()  # from now on there are digests
    await anywhere.add(late("a", owner="ann"))
    tried = 0
    while anywhere.clock.now() < START + DAY:
        await anywhere.fails(notifier)
        (row, *_) = [row for row in await anywhere.rows() if row.kind == "missed"]
        assert row.attempts >= tried
        tried = row.attempts
        anywhere.clock.advance(HOUR)
    await anywhere.fails(notifier)
    (row,) = [row for row in await anywhere.rows() if row.kind == "missed"]
    assert (row.state, row.finished) == ("given-up", START + DAY)
    assert 20 < row.attempts < 40
    anywhere.hook.status = 200
    anywhere.clock.advance(DAY - HOUR)
    await notifier.run()
    assert any("1 given up in the last day" in post["message"] for post in anywhere.hook.posts)
    # A month later it is gone.
    anywhere.clock.advance(30 * DAY)
    await notifier.run()
    assert row.id not in {each.id for each in await anywhere.rows()}


async def test_news_are_told_and_remembered_in_one_or_not_at_all(
    anywhere: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise StoreConflictError("refused", hint="")

    await anywhere.add(late("a", owner="ann"))
    notifier = anywhere.notifier()
    with monkeypatch.context() as patch:
        patch.setattr(module, "set_told", refuse)
        with pytest.raises(StoreConflictError):
            await notifier.run()
    assert await anywhere.rows() == []
    assert await anywhere.told("a") == ""
    await notifier.run()
    assert len(anywhere.hook.posts) == 1


async def test_a_message_whose_delivery_was_not_recorded_is_delivered_again(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object, **__: object) -> None:
        raise StoreUnavailableError("away", hint="")

    await desk.add(late("a", owner="ann"))
    with monkeypatch.context() as patch:
        patch.setattr(module, "settle_notification", away)
        with pytest.raises(StoreUnavailableError):
            await desk.notifier().run()
    await desk.notifier().run()
    assert [post["title"] for post in desk.hook.posts] == ["Privy Seal: 1 renewal missed"] * 2


async def test_the_leader_does_it_and_its_failures_are_seen(anywhere: Desk) -> None:
    anywhere.hook.status = 500
    await anywhere.add(late("a", owner="ann"))
    leadership = Leadership(anywhere.store, anywhere.clock, holder="here", seconds=30)
    jobs = [Job("notifications", 60, anywhere.notifier().run)]
    scheduler = Scheduler(jobs, leadership, anywhere.store, anywhere.clock, anywhere.metrics, random=lambda: 0.5)
    async with scheduler.running():
        deadline = time.monotonic() + 20
        while True:
            row = await anywhere.store.read(lambda tx: find_job(tx, "notifications"))
            if row is not None and row.problem:
                break
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
    assert row.problem.startswith(
        "Not everybody is told. ops: Line 1 of the URLs: it answered with the HTTP status 500."
    )
    # Who lost the lease writes nothing any more.
    here, there = (Leadership(anywhere.store, anywhere.clock, holder=name, seconds=30) for name in ("a", "b"))
    assert await here.take()
    anywhere.clock.advance(HOUR)
    with here.guarding():
        late_work = asyncio.create_task(anywhere.notifier().run())
        assert await there.take()
        with pytest.raises(LeaseLostError):
            await late_work
    (message,) = await anywhere.rows()
    assert message.state == "waiting"


async def test_one_receiver_that_fails_does_not_have_the_others_told_twice(desk: Desk) -> None:
    other = await desk.stack.enter_async_context(hook())
    other.status = 429
    notifier = desk.notifier({"name": "ops", "url_file": "two"})
    desk.url_file("two", *(WEB_HOOK.format(port=port) for port in (desk.hook.port, other.port)))
    await desk.add(late("a", owner="ann"))
    assert "Line 2 of the URLs: it answered with the HTTP status 429." in await desk.fails(notifier)
    other.status = 200
    desk.clock.advance(60)
    await notifier.run()
    assert (len(desk.hook.posts), len(other.posts)) == (1, 1)


async def test_an_owner_who_cannot_be_written_to_does_not_keep_others_from_being_told(desk: Desk) -> None:
    desk.mail.refusals["ann@corp.example"] = f"550 5.1.1 no {SECRET} here"
    await desk.add(late("a", owner="ann@corp.example"), late("b", owner="bob@corp.example"))
    problem = await desk.fails(desk.notifier({"name": "owners", "to_owner": True}))
    assert problem == "Not everybody is told. owners: Line 1 of the URLs: the mail server answered 550."
    assert [mail.recipients for mail in desk.mail.mails] == [["bob@corp.example"]]


@pytest.mark.parametrize("what", ["login", "refused", "name", "url", "mode", "gone"])
async def test_why_it_fails_is_told_and_no_secret_with_it(desk: Desk, what: str) -> None:
    with closing(socket.socket()) as nobody:
        nobody.bind(("127.0.0.1", 0))
        notifier = desk.notifier()
        urls = {
            "login": TO_OWNER.format(port=desk.mail.port).replace("{owner}", "ops@corp.example"),
            "refused": WEB_HOOK.format(port=nobody.getsockname()[1]),
            "name": f"json://user:{SECRET}@nowhere.invalid/{SECRET}",
            "url": f"nonsense://{SECRET}",
        }
        path = desk.home / desk.url_file("hook", urls.get(what, urls["refused"]))
        if what == "mode":
            path.chmod(0o640)
        if what == "gone":
            path.unlink()
        desk.mail.refuse_login = True
        await desk.add(late("a", owner="ann"))
        problem = await desk.fails(notifier)
    expected = {
        "login": "Line 1 of the URLs: the mail server answered 535",
        "refused": "Line 1 of the URLs: the connection was refused",
        "name": "Line 1 of the URLs: the name of its host is not found",
        "url": "Line 1 of the URLs: it is no URL that Apprise understands",
        "mode": "can be used by others (mode 0640)",
        "gone": "cannot be read: No such file or directory",
    }
    assert expected[what] in problem


async def test_a_token_is_not_taken_where_a_receiver_points_to(desk: Desk) -> None:
    desk.hook.status = 307
    await desk.add(late("a", owner="ann"))
    assert "it answered with the HTTP status 307." in await desk.fails(desk.notifier())
    assert desk.hook.asked == 1


async def test_a_receiver_that_hangs_is_not_waited_for_and_others_are_told(desk: Desk) -> None:
    other = await desk.stack.enter_async_context(hook())
    desk.hook.open.clear()
    desk.url_file("other", WEB_HOOK.format(port=other.port))
    await desk.add(late("a", owner="ann"))
    begun = time.monotonic()
    quick = partial(delivering.deliver, limit=0.5)
    problem = await desk.fails(desk.notifier({"name": "ops"}, {"name": "other", "url_file": "other"}, deliver=quick))
    assert problem == "Not everybody is told. ops: Line 1 of the URLs: it did not answer in time."
    assert len(other.posts) == 1
    assert time.monotonic() - begun < 5
    desk.hook.open.set()


async def test_deliveries_that_hang_are_bounded(desk: Desk) -> None:
    desk.hook.open.clear()
    desk.settings()
    target = Target(1, WEB_HOOK.format(port=desk.hook.port))
    sending = [delivering.deliver(target, Text("title", "body"), urgent=False, limit=1) for _ in range(20)]
    problems = [str(problem) for problem in await asyncio.gather(*sending, return_exceptions=True)]
    assert problems.count("Line 1 of the URLs: it did not answer in time.") == 8
    assert problems.count("Line 1 of the URLs: earlier deliveries hang.") == 12
    desk.hook.open.set()
    deadline = time.monotonic() + 20
    while True:
        try:
            await delivering.deliver(target, Text("title", "body"), urgent=False, limit=5)
            break
        except NotificationError:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)


async def test_a_route_that_was_removed_takes_its_messages_along(desk: Desk) -> None:
    desk.hook.status = 500
    await desk.add(late("a", owner="ann"))
    await desk.fails(desk.notifier({"name": "old"}))
    desk.hook.status = 200
    desk.clock.advance(HOUR)
    await desk.notifier({"name": "new"}).run()
    (row,) = await desk.rows()
    assert (row.state, row.problem) == ("given-up", "There is no route of that name in the settings any more.")


# The digest


async def test_there_is_one_digest_a_day_over_restarts_and_after_a_pause(anywhere: Desk) -> None:
    await anywhere.add(late("a", owner="ann", told=f"missed:{START - 2 * DAY}"), lineage("b", owner="bob"))
    await anywhere.notifier().run()
    assert anywhere.hook.posts == []
    # To 06:59 in Berlin the next day, then past seven: 06:00Z.
    berlin = {"time_zone": "Europe/Berlin", "digest_at": "07:00"}
    anywhere.clock.advance(20 * HOUR - 60)
    await anywhere.notifier(**berlin).run()
    assert anywhere.hook.posts == []
    anywhere.clock.advance(120)
    for _ in range(3):
        await anywhere.notifier(**berlin).run()
        anywhere.clock.advance(60)
    (post,) = anywhere.hook.posts
    assert post["title"] == "Privy Seal, daily: 1 renewal missed"
    assert "a.corp.test - missed" in post["message"]
    # Nobody ran for four days: one digest.
    anywhere.clock.advance(4 * DAY)
    for _ in range(2):
        await anywhere.notifier(**berlin).run()
    assert len(anywhere.hook.posts) == 2


async def test_the_digest_says_that_all_is_well_and_to_owners_nothing(desk: Desk) -> None:
    await desk.add(lineage("a", owner="ann@corp.example"), lineage("b", owner="bob@corp.example"))
    notifier = desk.notifier({"name": "ops"}, {"name": "owners", "to_owner": True})
    await notifier.run()
    desk.clock.advance(DAY)
    await desk.change("b", state="silent", missed_at=START, told=f"missed:{START}")
    await notifier.run()
    assert [post["title"] for post in desk.hook.posts] == ["Privy Seal, daily: 1 renewal missed"]
    assert [mail.recipients for mail in desk.mail.mails] == [["bob@corp.example"]]
    await desk.change("b", state="current", missed_at=0, told="")
    desk.clock.advance(DAY)
    await notifier.run()
    assert desk.hook.posts[1]["title"] == "Privy Seal, daily: every workload is well"
    assert len(desk.mail.mails) == 1


async def test_what_stays_is_named_again_when_it_is_its_turn(desk: Desk) -> None:
    await desk.add(late("a", owner="ann", missed_at=START - 2 * DAY, told=f"missed:{START - 2 * DAY}"))
    notifier = desk.notifier(repeat=3 * DAY, digest_at="09:00")
    await notifier.run()
    for _ in range(8):
        desk.clock.advance(DAY)
        await notifier.run()
    assert len(desk.hook.posts) == 8
    assert all(post["title"] == "Privy Seal, daily: 1 renewal missed" for post in desk.hook.posts)
    # It began 2 days before the first run; the digests are an hour earlier in the day than it.
    named = [number for number, post in enumerate(desk.hook.posts, 1) if "a.corp.test" in post["message"]]
    assert named == [2, 5, 8]


async def test_a_clock_that_was_wrong_does_not_end_the_digests(desk: Desk) -> None:
    desk.clock.advance(400 * DAY)
    await desk.notifier().run()
    desk.clock.advance(-400 * DAY)
    await desk.notifier().run()
    assert await desk.store.read(lambda tx: find_fact(tx, DIGEST_FACT)) == str(START - 3 * HOUR)
    desk.clock.advance(DAY)
    await desk.notifier().run()
    assert len(desk.hook.posts) == 1


# The service's own work


async def test_work_that_fails_for_long_is_told_and_so_is_its_end(anywhere: Desk) -> None:
    fails = JobRow(
        "token-probe", "process", 2000, last_succeeded=START - 2 * HOUR, failures_in_row=9, problem="The token is away."
    )
    await anywhere.store.write(lambda tx: report_jobs(tx, [fails]))
    notifier = anywhere.notifier(
        {"name": "ops"}, {"name": "owners", "to_owner": True}, {"name": "web", "teams": ["web"]}
    )
    for _ in range(2):
        await notifier.run()
    (post,) = anywhere.hook.posts
    assert post["title"] == "Privy Seal: its own work fails: token-probe"
    assert "The token is away." in post["message"]
    assert "Next: `privyseal doctor`" in post["message"]
    well = fails._replace(last_succeeded=START, failures_in_row=0, problem="")
    await anywhere.store.write(lambda tx: report_jobs(tx, [well]))
    for _ in range(2):
        await notifier.run()
    assert [post["title"] for post in anywhere.hook.posts[1:]] == ["Privy Seal: its own work is well again"]


async def test_nobody_is_told_of_anything_without_routes(desk: Desk) -> None:
    await desk.add(late("a", owner="ann"))
    settings = Settings().model_copy(update={"home": desk.home})
    notifier = Notifier(
        store=desk.store, settings=settings, clock=desk.clock, random_bytes=os.urandom, metrics=desk.metrics
    )
    await notifier.run()
    assert await desk.told("a") == ""
    assert desk.metric("privyseal_notifications_waiting") == 0


async def test_when_too_much_waits_news_stay_news(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_WAITING", 1)
    desk.hook.status = 500
    await desk.add(late("a", owner="ann"))
    notifier = desk.notifier()
    await desk.fails(notifier)
    await desk.add(late("b", owner="ann"))
    assert "nothing more is told" in await desk.fails(notifier)
    assert await desk.told("b") == ""
    desk.hook.status = 200
    desk.clock.advance(HOUR)
    await desk.fails(notifier)
    await notifier.run()
    assert len(desk.hook.posts) == 2
    assert await desk.told("b")


async def test_a_message_in_the_home_s_own_words(desk: Desk) -> None:
    (desk.home / "templates").mkdir()
    (desk.home / "templates" / "news.j2").write_text("Look: {{ summary }}\n{{ groups[0].entries[0].do }}")
    await desk.add(late("a", owner="ann"))
    await desk.notifier().run()
    assert desk.hook.posts[0]["title"] == "Look: 1 renewal missed"
    (desk.home / "templates" / "news.j2").write_text("{{ secrets }}")
    with pytest.raises(ConfigurationError, match=r"news\.j2"):
        desk.notifier()
