"""Debian's Prometheus with the configuration and the rules of ``deploy/prometheus``, in a hurry when a test asks for that.

The jobs are those of the example, with the targets of the test. ``hurry`` divides every duration of the rules, so that what
takes minutes takes seconds; numbers of seconds that a rule compares metrics with stay as they are.
"""

import json
import math
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml  # type: ignore[import-untyped]

from fakes.dns import LOOPBACK, free_port

FOLDER = Path(__file__).parents[2] / "deploy" / "prometheus"
PATIENCE = 20.0
_POLL_SECONDS = 0.05
_UNITS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_DURATION = re.compile(r"(\d+)(ms|[smhdw])")
#: Where durations stand: a member of a rule or group, a range or subquery, an offset.
_PLACES = re.compile(
    r"(?P<before>^\s*(?:- )?(?:for|interval):\s*|\[|\boffset\s+)(?P<durations>\w+(?::\w*)?)(?P<after>\]|\b)",
    re.MULTILINE,
)


def installed() -> bool:
    """Whether the machine has Prometheus and its promtool."""
    return shutil.which("prometheus") is not None and shutil.which("promtool") is not None


def hurried(text: str, hurry: float) -> str:
    """Rules with every duration divided by ``hurry``, down to the millisecond."""

    def shorter(match: re.Match[str]) -> str:
        milliseconds = int(match[1]) * _UNITS[match[2]] / hurry
        return f"{max(1, round(milliseconds))}ms"

    def place(match: re.Match[str]) -> str:
        return match["before"] + _DURATION.sub(shorter, match["durations"]) + match["after"]

    return _PLACES.sub(place, text)


class Sample(NamedTuple):
    """One series of an answer, with its newest value."""

    labels: dict[str, str]
    value: float


class Alert(NamedTuple):
    """An alert that is pending or firing."""

    name: str
    state: str
    labels: dict[str, str]
    annotations: dict[str, str]


class Prometheus:
    """A running Prometheus. ``targets`` says for each job of the example which addresses are scraped; other jobs are left out."""

    def __init__(
        self,
        folder: Path,
        targets: Mapping[str, Sequence[str]],
        *,
        hurry: float = 1.0,
        scrape_interval: str = "250ms",
        rules: Sequence[Path] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._targets = {job: tuple(addresses) for job, addresses in targets.items()}
        configuration = self._configuration(hurry, scrape_interval, rules)
        file = folder / "prometheus.yml"
        file.write_text(yaml.safe_dump(configuration, sort_keys=False), encoding="utf-8")
        port = free_port()
        self.url = f"http://{LOOPBACK}:{port}"
        program = shutil.which("prometheus")
        assert program is not None, "needs Debian's package prometheus"
        with (folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    program,
                    f"--config.file={file}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address={LOOPBACK}:{port}",
                    "--storage.tsdb.retention.time=1h",
                    "--query.max-concurrency=4",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _configuration(self, hurry: float, scrape_interval: str, rules: Sequence[Path] | None) -> dict[str, Any]:
        example: dict[str, Any] = yaml.safe_load((FOLDER / "prometheus.yml").read_text(encoding="utf-8"))
        files = [FOLDER / name for name in example["rule_files"]] if rules is None else rules
        example["rule_files"] = []
        for source in files:
            copy = self._folder / source.name
            copy.write_text(hurried(source.read_text(encoding="utf-8"), hurry), encoding="utf-8")
            example["rule_files"].append(str(copy))
        example["global"] = {"scrape_interval": scrape_interval, "evaluation_interval": scrape_interval}
        del example["alerting"]
        jobs = {job["job_name"]: job for job in example["scrape_configs"]}
        assert self._targets.keys() <= jobs.keys(), "the example has no such job"
        example["scrape_configs"] = [
            {
                **{
                    name: value
                    for name, value in jobs[job].items()
                    if name not in {"scheme", "basic_auth", "tls_config"}
                },
                "static_configs": [{"targets": list(addresses)}],
            }
            for job, addresses in self._targets.items()
        ]
        return example

    @property
    def log(self) -> str:
        """What it wrote since it was started."""
        return (self._folder / "prometheus.log").read_text(encoding="utf-8", errors="replace")

    def ask(self, path: str, **parameters: str) -> Any:
        """The ``data`` of an answer of the HTTP API, such as ``ask("query", query="up")``."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=PATIENCE) as answer:  # noqa: S310 (plain, loopback)
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters or path}: {error.read().decode(errors='replace')}") from error

    def query(self, expression: str) -> list[Sample]:
        """The series of an instant query. A scalar is one without labels. A wrong expression is an AssertionError."""
        data = self.ask("query", query=expression)
        if data["resultType"] == "scalar":
            return [Sample({}, float(data["result"][1]))]
        return [Sample(each["metric"], float(each["value"][1])) for each in data["result"]]

    def value(self, expression: str) -> float:
        """The value of the only series of an instant query; NaN when there is none."""
        samples = self.query(expression)
        assert len(samples) <= 1, samples
        return samples[0].value if samples else math.nan

    def query_range(self, expression: str, *, seconds: float = 60, step: str = "1s") -> list[dict[str, Any]]:
        """The series of a range query over the last ``seconds``, as the API has them."""
        now = time.time()
        data = self.ask("query_range", query=expression, start=str(now - seconds), end=str(now), step=step)
        series: list[dict[str, Any]] = data["result"]
        return series

    def alerts(self, *states: str) -> list[Alert]:
        """The alerts that are pending or firing, or only those in ``states``."""
        return [
            Alert(each["labels"]["alertname"], each["state"], each["labels"], each["annotations"])
            for each in self.ask("alerts")["alerts"]
            if not states or each["state"] in states
        ]

    def firing(self) -> set[str]:
        """The names of the alerts that fire."""
        return {alert.name for alert in self.alerts("firing")}

    def fired(self, since: float) -> set[str]:
        """The names of all alerts that have fired since ``since`` (seconds since the epoch)."""
        milliseconds = max(1, round((time.time() - since) * 1000))
        samples = self.query(f'max_over_time(ALERTS{{alertstate="firing"}}[{milliseconds}ms])')
        return {sample.labels["alertname"] for sample in samples}

    def groups(self) -> list[dict[str, Any]]:
        """The groups of rules that are loaded, with the health of each rule."""
        found: list[dict[str, Any]] = self.ask("rules")["groups"]
        return found

    def wait_until(self, what: str, true: Callable[[], Any], patience: float = PATIENCE) -> Any:
        """Poll until ``true()`` gives something that is true, and give that."""
        deadline = time.monotonic() + patience
        while not (found := true()):
            assert self._process.poll() is None, f"prometheus ended\n{self.log}"
            assert time.monotonic() < deadline, f"still not so: {what}\n{self.alerts()}"
            time.sleep(_POLL_SECONDS)
        return found

    def wait_until_scraped(self, times: int = 2) -> None:
        """Wait until every target has answered so often (rates need two samples), and every rule was evaluated."""
        deadline = time.monotonic() + PATIENCE
        while not self._scraped(times):
            assert self._process.poll() is None, f"prometheus ended\n{self.log}"
            assert time.monotonic() < deadline, f"not scraped\n{self.log}"
            time.sleep(_POLL_SECONDS)

    def _scraped(self, times: int) -> bool:
        try:
            # Until its storage is open it answers 503, and before that not at all.
            urllib.request.urlopen(f"{self.url}/-/ready", timeout=PATIENCE).close()  # noqa: S310 (plain, loopback)
        except OSError:
            return False
        up = self.query("sum_over_time(up[1h])")
        evaluated = [rule["health"] for group in self.groups() for rule in group["rules"]]
        there = {sample.labels["instance"] for sample in up if sample.value >= times}
        wanted = {address for addresses in self._targets.values() for address in addresses}
        return there >= wanted and "unknown" not in evaluated

    def unhealthy(self) -> Collection[str]:
        """Rules whose last evaluation was refused, with why."""
        return [
            f"{rule['name']}: {rule.get('lastError', '')}"
            for group in self.groups()
            for rule in group["rules"]
            if rule["health"] == "err"
        ]

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def prometheus(
    folder: Path, targets: Mapping[str, Sequence[str]], *, hurry: float = 1.0, scrape_interval: str = "250ms"
) -> Iterator[Prometheus]:
    """A Prometheus that has scraped every target, for as long as the block takes."""
    running = Prometheus(folder, targets, hurry=hurry, scrape_interval=scrape_interval)
    try:
        running.wait_until_scraped()
        yield running
    finally:
        running.stop()
