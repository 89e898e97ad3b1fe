"""The rules of ``deploy/prometheus``: promtool's unit tests beside them, and what promtool cannot see."""

import re
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from prometheus_client import Counter, Histogram

from fakes.process import run_command
from fakes.prometheus import FOLDER, hurried
from privyseal_ca.telemetry.metrics import Metrics, WitnessMetrics

ROOT = FOLDER.parents[1]
RULES = ("recording.yml", "page.yml", "ticket.yml")
TESTS = sorted((FOLDER / "tests").glob("*.yml"))
#: What a name may be in an expression besides a metric: labels that Prometheus and its rules add themselves.
_TARGET = frozenset({"job", "instance"})
_COMPARED = frozenset({"exported_job"})
_SELECTOR = re.compile(r"\b(privyseal_[a-z_]+)(?:\s*\{([^}]*)\})?")
_MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"([^\"]*)\"")
_RECORDED = re.compile(r"\b[a-z_]+:privyseal_\w+:\w+")

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool")


@cache
def rules() -> list[tuple[str, dict[str, Any]]]:
    """Every rule, with the file that it stands in."""
    return [
        (name, rule)
        for name in RULES
        for group in yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))["groups"]
        for rule in group["rules"]
    ]


def alerts() -> dict[str, tuple[str, dict[str, Any]]]:
    return {rule["alert"]: (file, rule) for file, rule in rules() if "alert" in rule}


def promtool(*arguments: str | Path) -> str:
    """What promtool says; it has to be content."""
    return run_command("promtool", *arguments, timeout=240).stdout


def exported() -> dict[str, set[str]]:
    """The names of all series that the product has, with their labels."""
    found: dict[str, set[str]] = {}
    for attribute in (*vars(Metrics()).values(), *vars(WitnessMetrics()).values()):
        if not hasattr(attribute, "describe"):
            continue
        (family,) = attribute.describe()
        labels = set(attribute._labelnames)
        if isinstance(attribute, Counter):
            found[f"{family.name}_total"] = labels
        elif isinstance(attribute, Histogram):
            found |= {f"{family.name}_bucket": labels | {"le"}}
            found |= {f"{family.name}_{end}": labels for end in ("count", "sum")}
        else:
            found[family.name] = labels
    return found


@needs_promtool
@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_unit_tests(path: Path) -> None:
    assert "SUCCESS" in promtool("test", "rules", path)


@needs_promtool
def test_promtool_finds_nothing_wrong() -> None:
    promtool("check", "rules", "--lint=all", "--lint-fatal", *(FOLDER / name for name in RULES))
    # The password of the example is in a file that is not here.
    promtool("check", "config", "--syntax-only", FOLDER / "prometheus.yml")


@needs_promtool
def test_the_signs_of_the_outage_would_be_told_without_it(tmp_path: Path) -> None:
    """The unit test of the token outage shows something: with a token that can be used, its series fire one alert after the other."""
    suite = yaml.safe_load((FOLDER / "tests" / "outages.yml").read_text(encoding="utf-8"))
    suite["rule_files"] = [str(FOLDER / name) for name in RULES]
    (scenario,) = (test for test in suite["tests"] if test["name"].startswith("a token outage is told by one"))
    (token,) = (each for each in scenario["input_series"] if 'part="token"' in each["series"])
    token["values"] = "1+0x120"
    told = (
        *("PrivySealIssuanceFailing", "PrivySealRenewalsMissedCritical", "PrivySealRenewalSuccessFalling"),
        *("PrivySealStatusWrong", "PrivySealRevocationSlow", "PrivySealCheckpointsLate"),
        *("PrivySealIssuanceFailingSlowly", "PrivySealRenewalSuccessFallingSlowly", "PrivySealLatencyHigh"),
        *("PrivySealRenewalsMissed", "PrivySealRenewalsFailing", "PrivySealQueueFull", "PrivySealServerErrors"),
        *("PrivySealIntentsAbandoned", "PrivySealQuorumMissing"),
    )
    scenario["promql_expr_test"] = [
        {
            "expr": 'group by (alertname) (count_over_time(ALERTS{alertstate="firing"}[2h]))',
            "eval_time": "120m",
            "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in told],
        }
    ]
    suite["tests"] = [scenario]
    (tmp_path / "outages.yml").write_text(yaml.safe_dump(suite), encoding="utf-8")
    promtool("test", "rules", tmp_path / "outages.yml")


def test_unit_tests_load_everything_in_one_order() -> None:
    """Otherwise promtool takes the groups in any order, and what is recorded may be one evaluation old."""
    groups = [
        group["name"]
        for name in RULES
        for group in yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))["groups"]
    ]
    for path in TESTS:
        suite = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert suite["group_eval_order"] == groups, path
        assert suite["rule_files"] == [f"../{name}" for name in RULES], path


def test_every_alert_is_seen_to_fire_in_a_unit_test() -> None:
    fired = set()
    for path in TESTS:
        for test in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]:
            assert not any("NaN" in str(each["values"]) for each in test["input_series"])
            for check in test["promql_expr_test"]:
                for sample in check.get("exp_samples", ()):
                    fired |= set(re.findall(r'alertname="(\w+)"', sample["labels"]))
    assert fired == alerts().keys()


def test_every_alert_says_what_to_do_and_for_whom_it_is() -> None:
    for name, (file, alert) in alerts().items():
        assert re.fullmatch(r"PrivySeal[A-Z]\w+", name)
        assert alert["labels"] == {"severity": file.removesuffix(".yml")}, name
        annotations = alert["annotations"]
        assert annotations.keys() == {"summary", "description", "runbook_url"}, name
        assert annotations["runbook_url"] == f"docs/runbooks/{name}.md"
        assert annotations["description"].endswith("."), name
        assert not annotations["summary"].endswith("."), name


def test_annotations_use_labels_that_their_alert_has() -> None:
    for name, (_, alert) in alerts().items():
        kept = set(re.findall(r"\w+", " ".join(re.findall(r"\bby \(([^)]*)\)", alert["expr"])[:1])))
        used = set(re.findall(r"\$labels\.(\w+)", " ".join(alert["annotations"].values())))
        assert used <= kept, f"{name}: {used - kept}"


def selectors() -> Iterator[tuple[str, str, dict[str, str]]]:
    """Each metric that a rule reads, with what its labels are compared with."""
    for _, rule in rules():
        expression = _RECORDED.sub("", rule["expr"])
        for metric, matchers in _SELECTOR.findall(expression):
            yield rule.get("alert") or rule["record"], metric, dict(_MATCHER.findall(matchers))


def test_every_metric_exists_with_its_labels() -> None:
    there = exported()
    seen = set()
    for rule, metric, matchers in selectors():
        assert metric in there, f"{rule}: {metric}"
        assert matchers.keys() <= there[metric] | _TARGET | _COMPARED, f"{rule}: {metric} {matchers}"
        seen.add(metric)
    assert {"privyseal_ready", "privyseal_issuances_total", "privyseal_stage_seconds_bucket"} <= seen


def test_what_is_recorded_is_read_by_the_name_it_has() -> None:
    recorded = {rule["record"] for _, rule in rules() if "record" in rule}
    for _, rule in rules():
        assert set(_RECORDED.findall(rule["expr"])) <= recorded, rule


def test_what_explains_other_alerts_is_a_page() -> None:
    (cause,) = (rule for _, rule in rules() if rule.get("record") == "job:privyseal_cause:firing")
    (names,) = re.findall(r'alertname=~"([^"]+)"', cause["expr"])
    for name in names.split("|"):
        file, alert = alerts()[name]
        assert file == "page.yml"
        # Nothing that it explains may be told before it.
        explained = [other for _, other in alerts().values() if "job:privyseal_cause:firing" in other["expr"]]
        assert len(explained) > 10
        assert all(minutes(other["for"]) >= 3 * minutes(alert["for"]) for other in explained)


def minutes(duration: str) -> int:
    return int(duration[:-1]) * {"m": 1, "h": 60}[duration[-1]]


def test_a_workload_is_never_watched_by_the_time_that_is_left() -> None:
    for rule, metric, _ in selectors():
        assert metric != "privyseal_certificates_expiring", rule


def test_the_example_of_alertmanager_names_alerts() -> None:
    text = (FOLDER / "alertmanager.yml").read_text(encoding="utf-8")
    assert set(re.findall(r'alertname="(\w+)"', text)) <= alerts().keys()
    assert {route["receiver"] for route in yaml.safe_load(text)["route"]["routes"]} == {"pager"}


def test_the_page_lists_every_alert_with_its_runbook() -> None:
    page = (ROOT / "docs" / "alerts.md").read_text(encoding="utf-8")
    for severity in ("page", "ticket"):
        listed = re.findall(rf"^\| `(PrivySeal\w+)` \| {severity} \|", page, re.MULTILINE)
        assert listed == [name for name, (file, _) in alerts().items() if file == f"{severity}.yml"]


def test_a_hurry_shortens_durations_and_nothing_else() -> None:
    rule = """
      - record: job:x:rate5m
        interval: 1m
        expr: |
          max_over_time(rate(x[5m])[6h:30s]) > 90 * 86400 and y offset 1h
        for: 15m
    """
    assert hurried(rule, 60) == (
        """
      - record: job:x:rate5m
        interval: 1000ms
        expr: |
          max_over_time(rate(x[5000ms])[360000ms:500ms]) > 90 * 86400 and y offset 60000ms
        for: 15000ms
    """
    )
    assert hurried("[1s]", 5000) == "[1ms]"
    for name in RULES:
        text = (FOLDER / name).read_text(encoding="utf-8")
        assert hurried(text, 1).count("\n") == text.count("\n")
        assert not re.search(r"(?:\[|:|for: |offset )\d+(?:s|m(?!s)|h|d)\b", hurried(text, 7))
