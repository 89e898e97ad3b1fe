"""The page of ``privyseal report`` in a real browser: light and dark, by keyboard, on a phone, with names that mean harm."""

import asyncio
import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest
from click.testing import CliRunner
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver

from fakes.home import MakeSettings
from fakes.lineages import DAY, NOW, attempt, late, lineage, seen_now
from privyseal_acme.cli import cli
from privyseal_ca.ceremony.initialise import make_store
from privyseal_ca.store.backends import backend_for
from privyseal_ca.store.fleet import LineageRow, add_lineage
from privyseal_ca.store.scheduling import JobRow, report_jobs
from privyseal_ca.store.statement import Transaction

_ARGUMENTS: Final = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
#: Were any of it more than text, `window.harmed` would be set or the page would break.
SCRIPT: Final = "<script>window.harmed=1</script>"
BREAKS_OUT: Final = "\"'></summary><img src=https://elsewhere.invalid/x onerror=window.harmed=1>"
TURNED: Final = "safe\u202etest.evil"
TITLE: Final = f"Fleet </title>{SCRIPT}"


def workloads() -> Iterator[LineageRow]:
    """A fleet with everything that there can be, more in trouble than are shown at once."""
    problem = attempt(
        "validation", "connection", f"refused {SCRIPT}", challenge="http-01", identifier="dns:down.test",
        seen={"connections": [{"address": "10.0.0.9", "port": 80, "result": "refused"}]},
    )  # fmt: skip
    for number in range(40):
        owner = f"team-{number % 7}@corp.example"
        yield lineage(f"well-{number}", owner=owner, not_after=NOW + (1 + number) * DAY, profile=f"p{number % 3}")
    for number in range(6):
        yield late(f"silent-{number}", owner="data@corp.example", team="storage", not_after=NOW + number * DAY)
        yield late(
            f"failing-{number}", state="failing", attempt=problem, attempts=3, criticality="high", not_after=NOW - 60
        )
    yield late("revoked", state="revoked", revoked_at=NOW - 60)
    yield late("overdue", state="overdue", polled_at=NOW - 60, criticality="low")
    worst: dict[str, Any] = {"criticality": "critical", "not_after": NOW - DAY, "state": "failing", "attempt": problem}
    yield late("harm-1", SCRIPT, BREAKS_OUT, owner=BREAKS_OUT, team=SCRIPT, **worst)
    yield late("harm-2", TURNED, owner=TURNED, **worst)
    yield late(
        "long", *(f"{'very' * 12}-long-{number}.{'x' * 60}.test" for number in range(30)), owner="o" * 200, **worst
    )


@pytest.fixture(scope="module")
def environment(make_settings: MakeSettings) -> dict[str, str]:
    """Of a home whose database has that fleet."""
    settings = make_settings()

    def unit(transaction: Transaction) -> None:
        for row in workloads():
            add_lineage(transaction, seen_now(row))
        report_jobs(
            transaction, [JobRow("crl-full", "leader", 1000, failures_in_row=1, problem=f"It failed: {SCRIPT}")]
        )

    async def fill() -> None:
        store = make_store(backend_for(settings.database_url, durable=False, timeout=5), settings)
        await store.open()
        try:
            await store.write(unit)
        finally:
            await store.close()

    asyncio.run(fill())
    return {
        "PRIVYSEAL_HOME": str(settings.home),
        "PRIVYSEAL_DATABASE__URL": settings.database_url,
        "PRIVYSEAL_LEDGER__KEPT_CHECKPOINT": str(settings.ledger.kept_checkpoint),
    }


@pytest.fixture(scope="module")
def page(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page, as the command writes it."""
    file = tmp_path_factory.mktemp("report") / "report.html"
    file.write_text("an earlier report")
    done = CliRunner().invoke(cli, ["report", "--html", str(file), "--title", TITLE, "--json"], env=environment)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told == {
        "file": str(file),
        "well": False,
        "headline": "17 workloads have missed a renewal, 3 of them critical.",
        "workloads": 57,
        "troubled": 17,
        "bytes": file.stat().st_size,
    }
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["report.html"]
    return file


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    """A browser without a past."""
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for argument in (*_ARGUMENTS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    try:
        yield driver
    finally:
        driver.quit()


class Shown:
    """The page in the browser."""

    def __init__(self, driver: WebDriver, page: Path) -> None:
        self.driver = driver
        self.url = page.as_uri()

    def open(self, *, width: int = 1200, media: str = "", **features: str) -> None:
        """Load it anew for a window and a reader who prefers ``features``."""
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
        self._tell("Emulation.setDeviceMetricsOverride", **size)
        wanted = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self._tell("Emulation.setEmulatedMedia", media=media, features=wanted)
        self.driver.get(self.url)

    def run(self, script: str) -> Any:
        return self.driver.execute_script(script)  # type: ignore[no-untyped-call]

    def press(self, key: str) -> None:
        ActionChains(self.driver).send_keys(key).perform()

    def open_everything(self) -> None:
        self.run("document.querySelectorAll('details').forEach(each => { each.open = true })")

    def log(self, name: str) -> list[dict[str, Any]]:
        """What was written into one of the browser's logs since it was last read."""
        entries: list[dict[str, Any]] = self.driver.get_log(name)  # type: ignore[no-untyped-call]
        return entries

    def _tell(self, command: str, **parameters: Any) -> None:
        self.driver.execute_cdp_cmd(command, parameters)  # type: ignore[attr-defined]


@pytest.fixture
def shown(chromium: WebDriver, page: Path) -> Shown:
    return Shown(chromium, page)


def test_a_page_that_cannot_be_written(environment: dict[str, str], tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["report", "--html", str(tmp_path / "gone" / "report.html")], env=environment)
    assert done.exit_code == 1
    assert "cannot be written: No such file or directory" in done.stderr
    (tmp_path / "folder").mkdir()
    assert CliRunner().invoke(cli, ["report", "--html", str(tmp_path / "folder")], env=environment).exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_nothing_is_loaded_and_nothing_runs(shown: Shown) -> None:
    shown.log("performance")
    shown.log("browser")
    shown.open()
    shown.open_everything()
    messages = [json.loads(entry["message"])["message"] for entry in shown.log("performance")]
    # The browser may be busy yet with the page that it begins with.
    ours = [
        each["params"]["request"]["url"]
        for each in messages
        if each["method"] == "Network.requestWillBeSent" and each["params"]["documentURL"] == shown.url
    ]
    assert ours == [shown.url]
    # A style or script that the policy refuses is told of here.
    assert shown.log("browser") == []
    assert shown.run("return performance.getEntriesByType('resource').length") == 0
    assert shown.run("return document.styleSheets[0].cssRules.length") > 50
    assert shown.run("return document.scripts.length + document.images.length") == 0


def test_the_policy_would_stop_what_got_in(shown: Shown) -> None:
    """That nothing runs above shows the escaping; this shows the policy behind it."""
    shown.open()
    added = "each = document.createElement('{}'); each.textContent = '{}'; document.body.append(each);"
    shown.run(
        "let " + added.format("style", "h1 { color: rgb(1, 2, 3) }") + added.format("script", "window.harmed = 1")
    )
    assert shown.run("return getComputedStyle(document.querySelector('h1')).color") != "rgb(1, 2, 3)"
    assert shown.run("return window.harmed") is None
    assert len([entry for entry in shown.log("browser") if "Content Security Policy" in entry["message"]]) == 2


def test_names_are_text(shown: Shown) -> None:
    shown.open()
    shown.open_everything()
    assert shown.run("return window.harmed") is None
    assert shown.driver.title == f"{TITLE}: needs attention"
    assert shown.run("return document.querySelector('h1').innerText") == TITLE
    names = shown.run("return [...document.querySelectorAll('.workload h3 bdi')].map(each => each.innerText)")
    assert {SCRIPT, BREAKS_OUT} <= set(names)
    # What would turn the rest of a name around is shown as a mark, everywhere.
    assert "safe?test.evil" in names
    assert not re.search("[\u202a-\u202e\u2066-\u2069]", shown.run("return document.documentElement.outerHTML"))
    assert SCRIPT in shown.run("return document.querySelector('#authority .alarm').innerText")
    assert shown.run("return document.querySelectorAll('main > section').length") == 7


def test_the_worst_come_first_and_tell_what_to_do(shown: Shown) -> None:
    shown.open()
    shown.open_everything()
    found = shown.run(
        "return [...document.querySelectorAll('.workload')].map(each => [each.querySelector('.badges').innerText,"
        " [...each.querySelectorAll('dd')].map(text => text.innerText)])"
    )
    assert len(found) == 17
    assert [badges.split("\n")[1] for badges, _ in found] == ["critical"] * 3 + ["high"] * 6 + ["normal"] * 7 + ["low"]
    assert all(len(texts) == 3 and all(texts) for _, texts in found)
    assert "Nothing listens at 10.0.0.9 port 80" in found[0][1][2]


# Text against what is behind it (WCAG 2.2, 1.4.3): every visible text node, with the colours that the browser computed.
_CONTRASTS: Final = """
const parse = text => { const n = text.match(/[0-9.]+/g).map(Number); return n.length < 4 ? [...n.slice(0, 3), 1] : n };
const over = (top, under) => [0, 1, 2].map(i => top[i] * top[3] + under[i] * (1 - top[3])).concat(1);
const behind = node => {
  const layers = [];
  for (let each = node; each; each = each.parentElement) layers.unshift(parse(getComputedStyle(each).backgroundColor));
  return layers.reduce((under, layer) => over(layer, under), [255, 255, 255, 1]);
};
const light = colour => {
  const [r, g, b] = colour.map(each => each / 255).map(each => each <= .04045 ? each / 12.92 : ((each + .055) / 1.055) ** 2.4);
  return .2126 * r + .7152 * g + .0722 * b;
};
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
const found = [];
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.closest('.skip')) continue;
  const style = getComputedStyle(element), under = behind(element);
  const [a, b] = [light(over(parse(element.closest('svg') ? style.fill : style.color), under)), light(under)].sort((x, y) => y - x);
  found.push([(a + .05) / (b + .05), walker.currentNode.data.trim().slice(0, 40), element.className.baseVal || element.className]);
}
return found;
"""


@pytest.mark.parametrize("width", [1200, 360])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(shown: Shown, scheme: str, width: int) -> None:
    shown.open(width=width, prefers_color_scheme=scheme)
    shown.open_everything()
    found = shown.run(_CONTRASTS)
    assert len(found) > 300
    assert [each for each in found if each[0] < 4.5] == []
    # As it is when all is well.
    shown.run("document.querySelector('.verdict').classList.remove('bad')")
    assert [each for each in shown.run(_CONTRASTS) if each[0] < 4.5] == []
    background = shown.run("return getComputedStyle(document.body).backgroundColor")
    dark = sum(map(int, re.findall("[0-9]+", background))) < 200
    assert dark is (scheme == "dark")


@pytest.mark.parametrize("width", [320, 360, 700, 1200])
def test_nothing_is_wider_than_the_window(shown: Shown, width: int) -> None:
    shown.open(width=width)
    shown.open_everything()
    beyond = (
        f"return [...document.body.querySelectorAll('*')].filter(each => each.checkVisibility() && !each.closest('.stack thead')"
        f" && each.getBoundingClientRect().right > {width}).map(each => each.outerHTML.slice(0, 200))"
    )
    assert shown.run(beyond) == []
    assert shown.run("return document.documentElement.scrollWidth") <= width
    charts = shown.run("return [...document.querySelectorAll('svg')].filter(each => each.checkVisibility()).length")
    assert charts == 1
    # Text of the chart is not made smaller than others is.
    drawn = shown.run(
        "return Math.min(...[...document.querySelectorAll('svg text')].filter(each => each.checkVisibility())"
        ".map(each => each.getBoundingClientRect().height))"
    )
    assert drawn >= 12


def test_by_keyboard(shown: Shown) -> None:
    shown.open()
    focused = "const each = document.activeElement; const box = each.getBoundingClientRect(); "
    shown.press(Keys.TAB)
    assert shown.run(f"{focused} return [each.className, box.left >= 0 && box.width > 0]") == ["skip", True]
    shown.press(Keys.ENTER)
    assert shown.run("return document.activeElement.id") == "content"
    shown.run("window.reached = new Set()")
    links = 0
    for _ in range(100):
        shown.press(Keys.TAB)
        kind, outline, folded = shown.run(
            f"{focused} window.reached.add(each); return [each.tagName, getComputedStyle(each).outlineStyle,"
            " !!each.parentElement && each.parentElement.matches('.rest:not([open])')]"
        )
        if kind == "BODY":
            break
        assert outline == "solid", shown.run("return document.activeElement.outerHTML")
        links += kind == "A"
        if folded:
            shown.press(Keys.ENTER)
    assert kind == "BODY"
    left = "return [...document.querySelectorAll('summary')].filter(each => !window.reached.has(each)).map(each => each.innerText)"
    assert shown.run(left) == []
    # After the skip link the sections' links were behind; backwards they come.
    assert links == 0
    shown.run("document.querySelector('#content').focus()")
    for target in ("authority", "renewals", "states", "timeline", "survival", "workloads"):
        ActionChains(shown.driver).key_down(Keys.SHIFT).send_keys(Keys.TAB).key_up(Keys.SHIFT).perform()
        assert shown.run("return document.activeElement.hash") == f"#{target}"
        assert shown.run(f"return document.getElementById('{target}') !== null")


def test_structure(shown: Shown) -> None:
    """What those go by who hear the page."""
    shown.open()
    levels = shown.run("return [...document.querySelectorAll('h1, h2, h3')].map(each => Number(each.tagName[1]))")
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    for landmark in ("header", "nav[aria-label]", "main", "footer"):
        assert shown.run(f"return document.querySelectorAll('body > {landmark}, header > {landmark}').length") == 1, (
            landmark
        )
    assert shown.run("return document.documentElement.lang") == "en"
    tables = shown.run(
        "return [...document.querySelectorAll('table')].map(each => [each.caption && each.caption.textContent.trim() !== '',"
        " [...each.querySelectorAll('th')].every(head => head.scope)])"
    )
    assert len(tables) == 10
    assert all(all(each) for each in tables)
    ids = shown.run("return [...document.querySelectorAll('[id]')].map(each => each.id)")
    assert len(ids) == len(set(ids))
    told = shown.run("return [...document.querySelectorAll('svg')].map(each => each.getAttribute('aria-label'))")
    assert len(set(told)) == 1
    assert "has ended: 10, 10 of them missed;" in told[0]


def test_on_paper_and_without_motion(shown: Shown) -> None:
    shown.open(media="print", prefers_color_scheme="dark")
    assert shown.run("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    heights = shown.run(
        "return [...document.querySelectorAll('details dl, details table')].map(each => each.getBoundingClientRect().height)"
    )
    assert min(heights) > 10
    assert min(contrast for contrast, *_ in shown.run(_CONTRASTS)) >= 4.5
    scrolls = "return getComputedStyle(document.documentElement).scrollBehavior"
    shown.open(prefers_reduced_motion="no-preference")
    assert shown.run(scrolls) == "smooth"
    shown.open(prefers_reduced_motion="reduce")
    assert shown.run(scrolls) == "auto"
