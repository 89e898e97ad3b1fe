"""The dashboards of ``deploy/grafana``: each is whole, and each of its queries finds something in a real Prometheus.

That scrapes a service which has done some of everything, and a witness. The rules go two hundred times faster than they say.
"""

import json
import math
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml  # type: ignore[import-untyped]
from prometheus_client import Counter, Histogram

from fakes.backups import Vault
from fakes.busy import Work
from fakes.dns import LOOPBACK, free_port
from fakes.exporting import Ledger
from fakes.http01 import Http01
from fakes.otlp import otlp_receiver
from fakes.process import PRIVYSEAL, run_command
from fakes.prometheus import FOLDER as RULES
from fakes.prometheus import Prometheus, installed
from fakes.service import RunningService, StartService
from fakes.witnesses import WitnessProcess
from privyseal_ca.ledger.checkpoints import VKEY_FACT
from privyseal_ca.store.issuers import find_fact
from privyseal_ca.telemetry.metrics import Metrics, WitnessMetrics

ROOT = RULES.parents[1]
FOLDER = ROOT / "deploy" / "grafana"
FILES = sorted((FOLDER / "dashboards").glob("*.json"))
#: What comes with Grafana.
PANELS = frozenset({"row", "timeseries", "stat", "table", "bargauge", "heatmap", "state-timeline"})
#: What Prometheus makes itself, and with which labels.
OWN = {
    "up": {"job", "instance"},
    "scrape_duration_seconds": {"job", "instance"},
    "scrape_samples_scraped": {"job", "instance"},
    "ALERTS": {"job", "alertstate"},
    "ALERTS_FOR_STATE": {"job"},
}
HURRY = 200
MISSED = "PrivySealRenewalsMissedCritical"
#: What Grafana would fill in.
BUILT_IN = {"__rate_interval": "20s", "__interval": "1s", "__range": "60s"}
_METRIC = re.compile(r"\b((?:\w+:)?(?:privyseal_\w+|up|scrape_\w+|ALERTS\w*)(?::\w+)?)\s*\{([^}]*)\}")
_MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"")
_GROUPED = re.compile(r"\b(?:by|on|ignoring) \(([^)]*)\)")
_VARIABLE = re.compile(r"\$\{?(\w+)")
_MANY = 600

needs_prometheus = pytest.mark.skipif(not installed(), reason="needs prometheus")
dashboards = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


@cache
def read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def panels_of(path: Path) -> list[dict[str, Any]]:
    """The panels without the rows."""
    return [panel for panel in read(path)["panels"] if panel["type"] != "row"]


def variables_of(path: Path) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in read(path)["templating"]["list"]}


class Query(NamedTuple):
    """One query of one panel."""

    path: Path
    panel: str
    id: str
    expression: str
    instant: bool


def queries() -> list[Query]:
    return [
        Query(path, panel["title"], f"{path.stem}-{panel['id']}{each['refId']}", each["expr"], each["instant"])
        for path in FILES
        for panel in panels_of(path)
        for each in panel["targets"]
    ]


def links_of(path: Path) -> list[str]:
    """The pages that the dashboard leads to."""
    links = [each["url"] for each in read(path)["links"]]
    links += [each["url"] for panel in panels_of(path) for each in panel.get("links", ())]
    return [each for each in links if each]


@cache
def exported() -> dict[str, set[str]]:
    """Every series that there can be, with its labels but those of targets."""
    found = dict(OWN)
    for attribute in (*vars(Metrics()).values(), *vars(WitnessMetrics()).values()):
        if hasattr(attribute, "describe"):
            (family,) = attribute.describe()
            labels = {f"exported_{label}" if label == "job" else label for label in attribute._labelnames}
            labels |= {"job", "instance"}
            if isinstance(attribute, Counter):
                found[f"{family.name}_total"] = labels
            elif isinstance(attribute, Histogram):
                found |= {f"{family.name}_{end}": labels for end in ("count", "sum")}
                found[f"{family.name}_bucket"] = labels | {"le"}
            else:
                found[family.name] = labels
    for group in yaml.safe_load((RULES / "recording.yml").read_text(encoding="utf-8"))["groups"]:
        for rule in group["rules"]:
            if "record" in rule:
                # By what a rule puts together stands in front of its name.
                found[rule["record"]] = set(rule["record"].partition(":")[0].split("_"))
    return found


def alerts() -> set[str]:
    groups = [
        group
        for name in ("page.yml", "ticket.yml")
        for group in yaml.safe_load((RULES / name).read_text(encoding="utf-8"))["groups"]
    ]
    return {rule["alert"] for group in groups for rule in group["rules"]}


# What the files say


def test_there_are_three() -> None:
    assert [path.stem for path in FILES] == ["debug", "on-call", "owner"]
    assert [read(path)["uid"] for path in FILES] == [f"privyseal-{path.stem}" for path in FILES]


@dashboards
def test_written_in_one_form(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == json.dumps(read(path), indent=2, ensure_ascii=False) + "\n"


@dashboards
def test_grafana_takes_it_as_it_is(path: Path) -> None:
    document = read(path)
    assert document["id"] is None
    assert 37 <= document["schemaVersion"] <= 39
    assert "privyseal" in document["tags"]
    assert not {"__inputs", "__requires"} & document.keys()
    assert variables_of(path)["datasource"]["query"] == "prometheus"
    ids = [panel["id"] for panel in document["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in document["panels"]:
        assert panel["type"] in PANELS, panel["title"]
        if panel["type"] == "row":
            continue
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"].get("unit") or panel["type"] in {"table", "heatmap", "state-timeline"}
        names = [each["refId"] for each in panel["targets"]]
        assert len(set(names)) == len(names) > 0
        for each in (panel, *panel["targets"]):
            assert each["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert all(each["instant"] != each["range"] for each in panel["targets"])
        if panel["type"] == "table":
            assert all(each["instant"] and each["format"] == "table" for each in panel["targets"])


@dashboards
def test_panels_lie_side_by_side(path: Path) -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in read(path)["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        for cell in ((x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])):
            assert taken.setdefault(cell, panel["title"]) == panel["title"]
    height = max(y for _, y in taken) + 1
    assert len(taken) == 24 * height, "there is a gap"
    assert height <= 45, "more than a page"
    rows = [panel["gridPos"]["y"] for panel in read(path)["panels"] if panel["type"] == "row"]
    assert rows[0] == 0
    assert all(above < below for above, below in pairwise(rows))


@dashboards
def test_every_variable_is_there_and_used(path: Path) -> None:
    text = json.dumps({**read(path), "templating": None})
    of_grafana = {*BUILT_IN, "__value"}
    for variable in variables_of(path).values():
        text += json.dumps(variable.get("query"))
    assert set(_VARIABLE.findall(text)) - of_grafana == variables_of(path).keys()


@dashboards
def test_pages_that_it_leads_to_exist(path: Path) -> None:
    for link in links_of(path):
        assert link.startswith("${docs}/"), link
        file, _, anchor = link.removeprefix("${docs}/").partition("#")
        page = ROOT / "docs" / file
        assert page.is_file(), link
        headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert not anchor or anchor in {each.lower().replace(" ", "-") for each in headings}, link


def test_every_alert_is_found_from_a_panel() -> None:
    linked = {re.sub(r".*/runbooks/(\w+)\.md", r"\1", link) for path in FILES for link in links_of(path)}
    assert alerts() <= linked
    # The table of alerts leads to the runbook of each by its name.
    assert all((ROOT / "docs" / "runbooks" / f"{name}.md").is_file() for name in alerts())
    assert "${docs}/runbooks/${__value.raw}.md" in (FOLDER / "dashboards" / "on-call.json").read_text(encoding="utf-8")


def test_metrics_and_labels_exist() -> None:
    for query in queries():
        named = _METRIC.findall(query.expression)
        assert len(named) == len(re.findall(r"privyseal_|\b(?:up|scrape_\w+|ALERTS\w*)\b", query.expression)) > 0, query
        there: set[str] = set()
        for metric, matchers in named:
            assert metric in exported(), f"{query.id}: {metric}"
            labels = set(_MATCHER.findall(matchers))
            assert labels <= exported()[metric], f"{query.id}: {metric}"
            there |= exported()[metric]
            # Another authority, or another's series of the same name, is not to be seen.
            assert "job" in labels, query
        for grouped in _GROUPED.findall(query.expression):
            assert set(grouped.split(", ")) <= there, query


def test_every_metric_is_to_be_seen() -> None:
    expressions = "\n".join(query.expression for query in queries())
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exported() if name.startswith("privyseal_")}
    hidden = {name for name in families if not re.search(rf"\b{name}(_bucket|_count)?\b", expressions)}
    # Of a CRL's number only that it rises is of interest, and of a witness's logs how many its operator named.
    assert hidden == {"privyseal_crl_number", "privyseal_witness_logs"}


def test_the_example_of_provisioning() -> None:
    (source,) = yaml.safe_load((FOLDER / "provisioning" / "datasources" / "privyseal.yml").read_text())["datasources"]
    assert source["type"] == variables_of(FILES[0])["datasource"]["query"]
    scraped = yaml.safe_load((RULES / "prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scraped
    (provider,) = yaml.safe_load((FOLDER / "provisioning" / "dashboards" / "privyseal.yml").read_text())["providers"]
    assert provider["type"] == "file"
    page = (ROOT / "docs" / "dashboards.md").read_text(encoding="utf-8")
    assert provider["options"]["path"] in page


@dashboards
def test_described(path: Path) -> None:
    page = (ROOT / "docs" / "dashboards.md").read_text(encoding="utf-8")
    (section,) = re.findall(
        rf"^## {read(path)['title'].partition(': ')[2].capitalize()}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL
    )
    described = re.findall(r"^\| \*\*(.+?)\*\* \|", section, re.MULTILINE)
    assert described == [panel["title"] for panel in read(path)["panels"] if panel["type"] == "row"]


# What they show


@contextmanager
def serving_everything(
    start: StartService, folder: Path, http: str, witness: WitnessProcess
) -> Iterator[RunningService]:
    """A service with all that is optional, whose ledger ``witness`` watches."""
    (folder / "kept").mkdir()
    with otlp_receiver() as collector:
        service = start(
            server={"http": http, "http_url": f"http://{http}"},
            status={"interval": 0.5, "delta_crls": True},
            ledger={"witnesses": [witness.setting], "quorum": 1},
            telemetry={"otlp_endpoint": collector.url, "sample_ratio": 1},
            fleet={
                "rules": [{"name": "shop", "dns": ["shop.test"], "owner": "shop@internal", "criticality": "critical"}]
            },
            backup={"folder": str(folder / "kept"), "recipients": [Vault(folder).recipient]},
        )
        witness.command("add", str(service.read(lambda tx: find_fact(tx, VKEY_FACT))))
        witness.start()
        export = ("ledger", "export", "--format", "jsonl", "--to", folder / "out.jsonl", "--name", "siem")
        run_command(PRIVYSEAL, *export, env=Ledger(service.settings, folder).environment)
        yield service
        service.stop()


@pytest.fixture(scope="module")
def prometheus(
    tmp_path_factory: pytest.TempPathFactory,
    service_factory: Callable[[], AbstractContextManager[StartService]],
    http01: Http01,
) -> Iterator[Prometheus]:
    """Service and witness, scraped before and after things happen."""
    folder = tmp_path_factory.mktemp("everything")
    witness = WitnessProcess(folder / "witness", "witness.test/w1")
    http = f"{LOOPBACK}:{free_port()}"
    with ExitStack() as stack:
        stack.callback(witness.close)
        # It takes five seconds until Prometheus scrapes at all, in which there is something else to do.
        targets = {"privyseal": [http], "privyseal-witness": [f"{LOOPBACK}:{witness.port}"]}
        running = Prometheus(folder / "prometheus", targets, hurry=HURRY)
        stack.callback(running.stop)
        start = stack.enter_context(service_factory())
        work = Work(stack.enter_context(serving_everything(start, folder, http, witness)), http01)
        stack.callback(work.close)
        work.do()
        work.do()
        running.wait_until_scraped()
        running.wait_until("the witness answers", lambda: running.query("privyseal_witness_answers_total > 0"))
        # What counts from here on is seen to rise.
        work.do()
        work.miss()
        work.do()
        work.jobs("completeness", "export-figures", "expiring", "backup")
        running.wait_until("a missed renewal is told", lambda: MISSED in running.firing())
        done = time.time()
        running.wait_until("all was scraped", lambda: running.value("min(timestamp(up))") > done)
        running.wait_until(
            "renewals are judged", lambda: running.query("job:privyseal_renewals_missed:ratio_rate3d > 0")
        )
        yield running


def filled(query: Query) -> str:
    """The expression with what Grafana puts in the place of its variables."""
    variables = variables_of(query.path)

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name in BUILT_IN:
            return BUILT_IN[name]
        variable = variables[name]
        return str(variable["allValue"] if variable["includeAll"] else variable["current"]["value"])

    return _VARIABLE.sub(value, query.expression)


@needs_prometheus
@pytest.mark.parametrize("query", queries(), ids=lambda query: query.id)
def test_every_query_finds_something(query: Query, prometheus: Prometheus) -> None:
    expression = filled(query)
    if query.instant:
        values = [sample.value for sample in prometheus.query(expression)]
    else:
        series = prometheus.query_range(expression, seconds=60)
        values = [float(value) for each in series for _, value in each["values"]]
    assert any(map(math.isfinite, values)), f"{query.panel}: {expression}: {values[:10]}"


@needs_prometheus
@dashboards
def test_variables_have_values(path: Path, prometheus: Prometheus) -> None:
    found = 0
    for name, variable in variables_of(path).items():
        if variable["type"] == "query":
            asked = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
            assert asked, name
            selector = asked[1].replace("$job", "privyseal.*")
            values = {sample.labels.get(asked[2]) for sample in prometheus.query(f"count by ({asked[2]}) ({selector})")}
            assert values - {None}, name
            if not variable["includeAll"]:
                assert variable["current"]["value"] in values
            found += 1
    assert found


@needs_prometheus
def test_the_rules_are_content(prometheus: Prometheus) -> None:
    assert prometheus.unhealthy() == []
    assert MISSED in prometheus.fired(time.time() - _MANY)
