"""The page of ``privyseal report``: what it says of a fleet, what it escapes, and how large it becomes."""

import hashlib
import json
import re
from base64 import b64encode
from collections.abc import Iterable
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import pytest

from fakes.lineages import DAY, NOW, attempt, late, lineage
from privyseal_ca.fleet.survey import Survey
from privyseal_ca.report.content import MOST_NAMED, Authority, Issuer, Report, ago, make_report, urgency
from privyseal_ca.report.page import render_report
from privyseal_ca.store.fleet import LineageRow
from privyseal_ca.store.fleet_survey import SurveyRow

WELL = Authority(
    issuers=(Issuer("issuing-1", "active", "2029-01-01 00:00 UTC (in 700 days)", "5 minutes old"),),
    ledger=1234,
    checkpoint="1,234 entries",
    failing_jobs=(),
)
_VOID = {"meta", "br", "img", "input", "link", "hr", "rect", "line"}


def report_of(*rows: LineageRow, authority: Authority = WELL, title: str = "The fleet") -> Report:
    survey = Survey(NOW)
    survey.add(SurveyRow(*(getattr(row, name) for name in SurveyRow._fields)) for row in rows)
    troubled = (row for row in rows if row.state in {"failing", "silent", "overdue", "revoked"})
    return make_report(
        survey.figures(), sorted(troubled, key=urgency), authority, title=title, issuers={"ab" * 20: "issuing-1"}
    )


class _Reader(HTMLParser):
    """Elements that are closed as they were opened, and the text of the page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.seen: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(page)
        self.close()
        assert self.opened == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in _VOID:
            self.opened.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self.opened.pop() == tag


@pytest.mark.parametrize(
    ("rows", "headline", "matters"),
    [
        ([], "There are no workloads yet, and no job of the authority fails.", []),
        ([lineage()], "All is well: 1 workload renews in time.", []),
        ([lineage("a"), lineage("b", state="due", owner="")], "All is well: 2 workloads renew in time.", []),
        (
            [late("a"), late("b", state="overdue", criticality="critical"), lineage("c")],
            "2 workloads have missed a renewal, 1 of them critical.",
            ["1 workload has not been heard of since it was due.", "1 workload asks when to renew, and does not renew."],
        ),
        (
            [late("a", not_after=NOW - 1)],
            "1 workload has missed a renewal.",
            ["1 workload has not been heard of since it was due.", "1 missed one has no valid certificate any more: it ended."],
        ),
        ([lineage(state="failing")], "1 workload asks for a certificate and does not get one.", []),
        ([lineage(state="revoked", revoked_at=NOW - 5)], "1 workload has only a revoked certificate.", []),
        ([lineage(state="retired", retired_at=NOW - 5)], "There are no workloads yet, and no job of the authority fails.", []),
    ],
    ids=["none", "one", "two", "missed", "ended", "failing", "revoked", "retired"],
)  # fmt: skip
def test_the_headline(rows: list[LineageRow], headline: str, matters: list[str]) -> None:
    report = report_of(*rows)
    assert (report.headline, list(report.matters)) == (headline, matters)
    well = headline.startswith(("All is well", "There are no"))
    assert report.well is well
    assert f"<title>The fleet: {'all is well' if well else 'needs attention'}</title>" in render_report(report)


def test_the_authority_is_a_matter_as_well() -> None:
    failing = replace(WELL, failing_jobs=(("crl-full", "The token\u202e is away."),))
    assert report_of(lineage(), authority=failing).headline == "1 job of the authority failed."
    assert "The job crl-full failed: The token? is away." in render_report(report_of(authority=failing))
    over = replace(WELL, issuers=tuple(Issuer(f"issuing-{number}", "active", "", "old", True) for number in range(7)))
    report = report_of(lineage(), authority=over)
    names = ", ".join(f"issuing-{number}" for number in range(5))
    assert report.headline == f"The CRL of {names} and others has ended."
    assert not report.well


def test_what_is_said_of_a_workload() -> None:
    seen = {"connections": [{"address": "10.0.0.9", "port": 80, "result": "refused"}]}
    problem = attempt("validation", "connection", "No.", challenge="http-01", identifier="dns:a.test", seen=seen)
    (failing,) = report_of(late("a", "a.test", "b.test", state="failing", attempt=problem, owner="jo")).workloads
    assert (failing.names, failing.more, failing.owner, failing.missed) == (("a.test", "b.test"), 0, "jo", "2 days ago")
    assert (failing.ends, failing.down) == ("certificate ends in 5 days", False)
    assert "10.0.0.9 port 80: refused" in failing.advice.seen
    (ended,) = report_of(late("a", *(f"{number}.test" for number in range(11)), not_after=NOW - DAY)).workloads
    assert (len(ended.names), ended.more) == (8, 3)
    assert (ended.ends, ended.down) == ("certificate ended 1 day ago", True)
    (revoked,) = report_of(late(state="revoked", revoked_at=NOW - 3600)).workloads
    assert (revoked.ends, revoked.down) == ("certificate revoked 1 hour ago", True)
    (never,) = report_of(lineage(state="failing", serial="", not_before=0, not_after=0)).workloads
    assert (never.ends, never.down, never.missed) == ("no certificate", True, "")


def test_the_worst_come_first() -> None:
    rows = [
        late("low", criticality="low"),
        late("later", criticality="critical", not_after=NOW + 2 * DAY),
        late("sooner", criticality="critical", not_after=NOW + DAY),
        lineage("not-missed", criticality="critical", state="failing", not_after=NOW + 60),
        late("high", criticality="high"),
    ]
    names = [workload.names[0] for workload in report_of(*rows).workloads]
    assert names == [f"{name}.corp.test" for name in ("sooner", "later", "not-missed", "high", "low")]


def test_those_that_are_not_named_are_counted() -> None:
    report = report_of(*(late(f"w{number}") for number in range(MOST_NAMED + 7)))
    assert (len(report.workloads), report.unnamed) == (MOST_NAMED, 7)
    page = render_report(report)
    assert page.count('<details class="workload"') == MOST_NAMED
    assert "And 7 that are not on this page." in page
    assert "that are not on this page" not in render_report(report_of(late()))


def test_groups_clocks_and_shares() -> None:
    rows = [lineage(f"w{number}", owner="jo", renewed_at=NOW - 60) for number in range(19_999)]
    report = report_of(*rows, late("late", owner="", missed_at=NOW - 60))
    # What was missed is never rounded away.
    assert [each.share for each in report.renewals] == ["99.99 %", "99.99 %"]
    assert {clocks.name: [clock.group for clock in clocks.clocks] for clocks in report.clocks} == {
        "Issuer": ["issuing-1"], "Profile": ["mtls"], "Owner": ["nobody", "jo"], "Criticality": ["normal"],
    }  # fmt: skip
    assert report.overall is not None
    assert report.overall.moments[0] == ("5 days", "2026-11-26 10:00 UTC")
    by_name = {bar.name: bar for bar in report.timeline}
    assert by_name["within 30 days"].height == 1
    # One among thousands is still seen.
    assert (by_name["within 7 days"].workloads, by_name["within 7 days"].missed) == (1, 1)
    assert by_name["within 7 days"].height == by_name["within 7 days"].missed_height == 0.012
    assert by_name["later than that"].height == 0
    assert report.timeline_text == (
        "Workloads by when their certificate ends. within 7 days: 1, 1 of them missed; within 30 days: 19,999."
    )


@pytest.mark.parametrize(
    "rows", [[], [lineage()], [late("a", state="failing", attempt=attempt("order", "malformed")), lineage("b", owner="jo")]],
    ids=["none", "well", "failing"],
)  # fmt: skip
def test_the_page_is_whole_and_loads_nothing(rows: Iterable[LineageRow]) -> None:
    page = render_report(report_of(*rows))
    assert page.startswith("<!doctype html>\n")
    read = _Reader(page)
    assert not {"script", "img", "link", "iframe", "object", "form"} & set(read.seen)
    for tag, name, value in read.attributes:
        assert not name.startswith("on")
        assert name not in {"src", "style", "srcset", "action"}, (tag, name)
        assert name != "href" or value.startswith("#")
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert not re.search(r"@import|url\((?!#)", page)
    (style,) = re.findall("<style>(.*?)</style>", page, re.DOTALL)
    digest = b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = next(
        value for tag, name, value in read.attributes if (tag, name) == ("meta", "content") and "default" in value
    )
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def test_what_strangers_write_is_text() -> None:
    harm = "</style></title>\"'><script>alert(1)</script><!--"
    row = late("w1", harm, owner=harm, team=harm, profile=harm, state="failing", attempt=attempt("order", harm, harm))
    issuer = Issuer(harm, "active", "")
    page = render_report(
        report_of(row, authority=replace(WELL, issuers=(issuer,), failing_jobs=((harm, harm),)), title=harm)
    )
    read = _Reader(page)
    assert "script" not in read.seen
    assert page.count("<!--") == 0
    assert unescape(page).count(harm) > 8


def test_it_stays_below_a_megabyte() -> None:
    """Whatever is in it: every text as long as it may be, of characters that take most room as HTML."""
    quotes = '"' * 200
    names = json.dumps([f"dns:{number}{quotes}" for number in range(100)])
    seen = {"requests": [{"url": quotes, "status": 404, "excerpt": quotes}] * 3}
    rows = [
        late(f"w{number}", owner=f"{number % 50}{quotes}", team=quotes, profile=f"{number % 50}{quotes}", state="failing",
             attempt=attempt("validation", f"{number}{quotes}", quotes * 3, challenge=quotes, identifier=f"dns:{quotes}",
                             seen=seen))._replace(names=names)
        for number in range(400)
    ]  # fmt: skip
    authority = replace(
        WELL,
        issuers=tuple(Issuer(quotes, "active", "", "old", True) for _ in range(500)),
        failing_jobs=tuple((quotes, quotes * 10) for _ in range(200)),
    )
    report = report_of(*rows, authority=authority, title=quotes)
    assert len(render_report(report).encode()) < 1_000_000
    assert len(report.workloads) + report.unnamed == 400
    assert len(report.workloads) > 30


def test_moments_are_told_with_their_distance() -> None:
    assert ago(NOW - 3600, NOW) == "2026-11-21 09:00 UTC (1 hour ago)"
    assert ago(NOW + 3 * DAY, NOW) == "2026-11-24 10:00 UTC (in 3 days)"
