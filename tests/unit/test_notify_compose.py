"""What is news, by which routes it goes, and what messages say: pure parts."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fakes.lineages import DAY, NOW, attempt, late, lineage
from privyseal_ca.errors import ConfigurationError
from privyseal_ca.notification_sections import NotificationSettings, RouteSettings
from privyseal_ca.notify.compose import (
    MOST_BODY,
    MOST_TITLE,
    Content,
    entry_of,
    group,
    names_of,
    plain,
    sample,
)
from privyseal_ca.notify.deliver import reason
from privyseal_ca.notify.news import address_of, fits, look, recipient_of, routes_for, takes, urgency
from privyseal_ca.notify.system import failing_jobs, system_news
from privyseal_ca.notify.targets import Target, addressed, read_targets
from privyseal_ca.notify.templates import Templates
from privyseal_ca.store.fleet import LineageRow
from privyseal_ca.store.notifications import Noted
from privyseal_ca.store.scheduling import JobRow

HOUR = 3600


def noted(row: LineageRow) -> Noted:
    return Noted(*(getattr(row, name) for name in Noted._fields))


def route(name: str = "ops", **conditions: Any) -> RouteSettings:
    return RouteSettings(name=name, url_file=Path("urls"), **conditions)


def news(row: LineageRow, *kinds: str, now: float = NOW) -> tuple[tuple[str, ...], str] | None:
    """What is told, where somebody wants ``kinds`` (nothing said: everything), and what is remembered."""
    change = look(noted(row), now, patience=HOUR, wanted=lambda kind, _: not kinds or kind in kinds)
    return None if change is None else (change.kinds, change.told)


MISSED = f"missed:{NOW - 2 * DAY}"
FAILING = f"failing:{NOW - DAY}"
_failing: dict[str, Any] = {"state": "failing", "failing_since": NOW - DAY, "attempts": 3, "owner": "ann"}


@pytest.mark.parametrize(
    ("row", "told"),
    [
        pytest.param(lineage(owner="ann"), None, id="well"),
        pytest.param(late(owner="ann"), (("missed",), MISSED), id="missed"),
        pytest.param(late(owner="ann", told=MISSED), None, id="missed-and-told"),
        pytest.param(late(owner="ann", told="missed:7"), (("missed",), MISSED), id="missed-another-time"),
        pytest.param(late(), (("missed", "unowned"), f"{MISSED} unowned"), id="missed-and-nobody-s"),
        pytest.param(late(told=f"{MISSED} unowned"), None, id="both-told"),
        pytest.param(late(owner="ann", told=f"{MISSED} unowned"), ((), MISSED), id="owner-found"),
        pytest.param(lineage(**_failing), (("failing",), FAILING), id="failing"),
        pytest.param(lineage(**_failing, told=FAILING), None, id="failing-and-told"),
        pytest.param(lineage(**{**_failing, "failing_since": NOW - HOUR + 1}), None, id="failing-not-for-long"),
        pytest.param(late(**_failing, told=FAILING), (("missed",), MISSED), id="failing-then-missed"),
        pytest.param(lineage(owner="ann", told=MISSED), (("recovered",), ""), id="recovered"),
        pytest.param(lineage(owner="ann", state="due", told=FAILING), (("recovered",), ""), id="recovered-and-due"),
        pytest.param(
            lineage(owner="ann", state="failing", failing_since=NOW - 9, told=FAILING),
            None,
            id="fails-anew-not-for-long",
        ),
        pytest.param(lineage(owner="ann", state="revoked", told=FAILING), None, id="revoked-is-not-recovered"),
        pytest.param(lineage(owner="ann", state="retired", retired_at=1, told=MISSED), ((), ""), id="retired"),
        pytest.param(lineage(), (("unowned",), "unowned"), id="nobody-s"),
        pytest.param(lineage(serial=""), None, id="nobody-s-and-never-had-one"),
    ],
)
def test_what_is_news(row: LineageRow, told: Any) -> None:
    assert news(row) == told


def test_what_nobody_wants_to_be_told_stays_news() -> None:
    assert news(late(), "unowned") == (("unowned",), "unowned")
    assert news(late(told="unowned"), "unowned") is None
    assert news(late(told="unowned")) == (("missed",), f"{MISSED} unowned")


_words = st.sampled_from(["current", "due", "failing", "silent", "revoked", "retired"])


@given(
    states=st.lists(st.tuples(_words, st.integers(0, 3), st.booleans()), min_size=1, max_size=12),
)
def test_nothing_is_told_twice_and_what_was_told_ends_once(states: list[tuple[str, int, bool]]) -> None:
    told, open_ = "", ""
    for state, age, owned in states:
        columns: dict[str, Any] = {"state": state, "owner": "ann" if owned else "", "told": told}
        if state == "silent":
            columns["missed_at"] = NOW - age * DAY
        if state == "failing":
            columns["failing_since"] = NOW - age * HOUR
        if state == "retired":
            columns["retired_at"] = NOW
        row = lineage(**columns)
        found = news(row)
        kinds, told = found or ((), told)
        if "missed" in kinds or "failing" in kinds:
            now_open = f"{state}{age}"
            assert now_open != open_
            open_ = now_open
        if "recovered" in kinds:
            assert open_
        if "recovered" in kinds or state == "retired":
            open_ = ""
        assert news(row._replace(told=told)) is None


def test_routes_take_what_they_ask_for() -> None:
    row = noted(late(owner="ann@corp.example", team="web", environment="production", criticality="high"))
    assert fits(route(), row)
    assert fits(route(owners=("ann@corp.example",), teams=("web", "db"), environments=("production",)), row)
    others: list[dict[str, Any]] = [
        {"owners": ("bob",)},
        {"teams": ("db",)},
        {"environments": ("test",)},
        {"criticality": ("low",)},
    ]
    for conditions in others:
        assert not fits(route(**conditions), row)
    routes = [route("all"), route("low", criticality=("low",)), route("mail", to_owner=True, kinds=("missed",))]
    assert [found.name for found in routes_for(routes, "missed", row)] == ["all", "mail"]
    assert [found.name for found in routes_for(routes, "recovered", row)] == ["all"]
    assert [found.name for found in routes_for(routes, "missed", row._replace(owner="ann"))] == ["all"]
    assert recipient_of(routes[2], row) == "ann@corp.example"
    assert recipient_of(routes[0], row) == ""


def test_news_of_the_service_go_to_operators() -> None:
    assert takes(route(), "system")
    assert takes(route(criticality=("critical",)), "system")
    assert not takes(route(teams=("web",)), "system")
    assert takes(route(teams=("web",), kinds=("system",)), "system")
    assert not takes(route(kinds=("missed",)), "system")
    assert not takes(route(to_owner=True), "system")


@pytest.mark.parametrize(
    ("owner", "address"),
    [
        ("ann.b+c@corp.example", "ann.b+c@corp.example"),
        ("ann", ""),
        ("ann@host", ""),
        ("ann@corp.example, bob@corp.example", ""),
        ("ann@corp.example?cc=bob@corp.example", ""),
        ("ann@corp.example\r\nBcc: bob@corp.example", ""),
        ("Ann <ann@corp.example>", ""),
        ("a" * 65 + "@corp.example", ""),
    ],
    ids=["plain", "word", "no-domain", "two", "query", "head", "with-name", "long"],
)
def test_only_plain_addresses_are_written_to(owner: str, address: str) -> None:
    assert address_of(owner) == address


def test_the_most_critical_come_first_then_the_worst_then_what_lasts_longest() -> None:
    rows = [
        ("unowned", lineage("e", criticality="critical")),
        ("missed", late("b", criticality="critical", missed_at=NOW - 5)),
        ("missed", late("a", criticality="critical", missed_at=NOW - 9)),
        ("missed", late("f", criticality="high")),
        ("failing", lineage("c", criticality="critical", failing_since=NOW - 99)),
        ("recovered", lineage("g", criticality="low")),
    ]
    assert [row.id for _, row in sorted(rows, key=lambda each: urgency(each[0], noted(each[1])))] == list("abcefg")


def test_a_message_has_reason_and_next_step_by_owner_and_team(tmp_path: Path) -> None:
    failing = lineage(
        "web",
        "web.corp.example",
        "www.corp.example",
        **{**_failing, "team": "shop", "criticality": "critical"},
        attempt=attempt("validation", "connection", "Connection refused", challenge="http-01", identifier="dns:web"),
    )
    rows = [
        ("failing", failing),
        ("missed", late("db", owner="bob")),
        ("missed", late("api", owner="ann", team="shop")),
    ]
    entries = [(entry_of(kind, row, NOW), row) for kind, row in rows]
    content = Content("missed", "https://ca.corp.example", "now", {"missed": 2, "failing": 1}, group(entries), rest=4)
    title, body = Templates(tmp_path).render(content)
    assert title == "Privy Seal: 2 renewals missed, 1 workload failing"
    assert [(each.owner, [entry.id for entry in each.entries]) for each in content.groups] == [
        ("ann", ["web", "api"]),
        ("bob", ["db"]),
    ]
    assert "Owner: ann (shop)" in body
    assert body.index("web.corp.example, www.corp.example - failing (critical") < body.index("api.corp.test")
    for entry, _ in entries:
        assert f"Why: {entry.what}" in body
        assert f"Next: {entry.do}" in body
    assert entries[0][0].seen in body
    assert "And 4 more" in body


def test_a_workload_without_an_owner_is_told_how_to_get_one() -> None:
    entry = entry_of("unowned", lineage("w7"), NOW)
    assert "Nobody is known to own it" in entry.what
    assert "privyseal fleet show w7" in entry.do


@given(st.text(max_size=300))
def test_texts_of_strangers_stay_in_their_line(text: str) -> None:
    line = plain(f"@everyone <!channel> {text}")
    assert len(line.splitlines()) == 1
    assert line.isprintable()
    assert "@everyone" not in line
    assert "<!" not in line


def test_names_are_bounded() -> None:
    assert names_of('["dns:a.test","ip:10.0.0.1"]') == "a.test, 10.0.0.1"
    assert names_of('["dns:a","dns:b","dns:c","dns:d","dns:e"]') == "a, b, c and 2 more"
    assert names_of("[]") == "(no name)"


# Templates


def test_the_built_in_texts_can_be_used(tmp_path: Path) -> None:
    assert Templates(tmp_path / "none").check() == ()


def test_own_texts_replace_the_built_in_ones(tmp_path: Path) -> None:
    (tmp_path / "news.j2").write_text("{{ total }} things\n{% for group in groups %}{{ group.owner }};{% endfor %}")
    templates = Templates(tmp_path)
    assert templates.check() == ("news.j2",)
    assert templates.render(sample("missed")) == ("4 things", "ann@corp.example;;")
    assert templates.render(sample("digest")).title.startswith("Privy Seal, daily")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("news.j2", "{{ nothing_of_the_kind }}"),
        ("news.j2", "{% if"),
        ("digest.j2", "{% for job in jobs %}{{ job.secret }}{% endfor %}"),
        ("system.j2", "{{ ''.__class__.__mro__[1].__subclasses__() }}"),
        ("system.j2", "{{ jobs.append(1) }}"),
        ("other.j2", "text"),
        ("news.j2", "x" * 100_001),
    ],
    ids=["undefined", "syntax", "attribute", "escape", "change", "unknown", "long"],
)
def test_texts_that_cannot_be_used_are_refused_before_they_are_needed(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        Templates(tmp_path).check()
    assert name in caught.value.message


def test_a_text_that_fails_later_does_not_keep_news_from_being_told(tmp_path: Path) -> None:
    (tmp_path / "news.j2").write_text("{% if rest > 100 %}{{ nothing }}{% endif %}Own\nbody")
    templates = Templates(tmp_path)
    templates.check()
    content = Content("missed", "a", "now", {"missed": 200}, rest=200)
    title, body = templates.render(content)
    assert title == "Privy Seal: 200 renewals missed"
    assert "template news.j2 of this home could not be used: UndefinedError" in body


def test_texts_are_bounded(tmp_path: Path) -> None:
    (tmp_path / "test.j2").write_text("{{ 'x' * 1000 }}\n{{ 'y' * 100000 }}")
    title, body = Templates(tmp_path).render(sample("test"))
    assert len(title) == MOST_TITLE
    assert len(body) == MOST_BODY


# The service itself


def job(name: str = "backup", **columns: Any) -> JobRow:
    usual: dict[str, Any] = {"last_succeeded": NOW - 10 * HOUR, "failures_in_row": 5, "problem": "The disk\nis full."}
    return JobRow(name, "leader", HOUR * 1000, **{**usual, **columns})


def test_work_that_fails_for_long_is_told_once_and_its_end_once() -> None:
    fails = job()
    first = system_news([fails, job("well", failures_in_row=0, problem="")], "", NOW, patience=HOUR)
    assert [(found.name, found.problem) for found in first.failing] == [("backup", "The disk is full.")]
    assert not system_news([fails], first.told, NOW + HOUR, patience=HOUR)
    # It went well once, unseen, and fails again.
    again = system_news([fails._replace(last_succeeded=NOW - 3 * HOUR)], first.told, NOW, patience=HOUR)
    assert [found.name for found in again.failing] == ["backup"]
    well = fails._replace(failures_in_row=0, problem="", last_succeeded=NOW)
    ended = system_news([well], again.told, NOW, patience=HOUR)
    assert ended.recovered == ("backup",)
    assert not system_news([well], ended.told, NOW, patience=HOUR)


def test_work_is_given_time() -> None:
    assert not failing_jobs([job(last_succeeded=NOW - 2 * HOUR)], NOW, patience=HOUR)
    assert failing_jobs([job(last_succeeded=NOW - 2 * HOUR - 1)], NOW, patience=HOUR)
    assert not failing_jobs([job(last_succeeded=0)], NOW, patience=HOUR)
    assert failing_jobs([job(last_succeeded=0, failures_in_row=8)], NOW, patience=HOUR)


# Files of URLs


def written(tmp_path: Path, text: str, mode: int = 0o600) -> RouteSettings:
    path = tmp_path / "urls"
    path.write_text(text)
    path.chmod(mode)
    return route()


def test_urls_are_read_without_comments(tmp_path: Path) -> None:
    found = read_targets(tmp_path, written(tmp_path, "# ops\n\njson://hook.test/SECRET\n  mailto://x.test \n"))
    assert [(target.line, target.url) for target in found] == [(3, "json://hook.test/SECRET"), (4, "mailto://x.test")]
    assert "SECRET" not in repr(found)


@pytest.mark.parametrize(
    ("text", "mode", "problem"),
    [
        ("json://SECRET.test", 0o644, "can be used by others"),
        ("", 0o600, "holds 0 URLs"),
        ("json://SECRET.test\n" * 17, 0o600, "holds 17 URLs"),
        ("x" * 65_537, 0o600, "more than 65536 bytes"),
        ("json://SECRET.test?to={owner}", 0o600, "Line 1 .* has {owner} in it"),
    ],
    ids=["mode", "empty", "many", "long", "owner"],
)
def test_bad_files_are_refused_without_what_they_hold(tmp_path: Path, text: str, mode: int, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem) as caught:
        read_targets(tmp_path, written(tmp_path, text, mode))
    assert "SECRET" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="urls with the URLs of the route ops cannot be read"):
        read_targets(tmp_path, route())


def test_an_owner_is_written_into_the_url_and_stays_there() -> None:
    (target,) = addressed([Target(1, "mailto://h.test?to={owner}")], "a+b@corp.example")
    assert target.url == "mailto://h.test?to=a%2Bb@corp.example"


# Settings and reasons


@pytest.mark.parametrize(
    "settings",
    [
        {"digest_at": "24:30"},
        {"digest_at": "7"},
        {"time_zone": "Mars/Base"},
        {"routes": [{"name": "a", "url_file": "u"}, {"name": "a", "url_file": "u"}]},
        {"routes": [{"name": "a", "url_file": "u", "kinds": ["rumours"]}]},
        {"routes": [{"name": "a b", "url_file": "u"}]},
    ],
    ids=["hour", "digit", "zone", "twice", "kind", "name"],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        NotificationSettings(**settings)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("Failed to send JSON POST notification: Unauthorized, error=401.", "it answered with the HTTP status 401"),
        ("url: /SECRET (Caused by NewConnectionError('[Errno 111] Connection refused'))", "the connection was refused"),
        ("Socket Exception: (535, b'5.7.8 SECRET')", "the mail server answered 535"),
        (
            "SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] SECRET'",
            "certificate cannot be verified",
        ),
        ("Read timed out. (read timeout=4.0) SECRET", "did not answer in time"),
        ("Failed to resolve 'SECRET.test' ([Errno -2] Name or service not known)", "name of its host is not found"),
        ("SECRET", "the message was not taken"),
    ],
    ids=["status", "refused", "smtp", "certificate", "slow", "name", "anything"],
)
def test_reasons_are_told_in_our_words(said: str, told: str) -> None:
    assert told in reason([said])
    assert "SECRET" not in reason([said])
