"""Runbooks: every alert has one and the reverse, and whatever somebody is told to type at 03:00 works.

Blocks of a runbook say in their first line how they are tested, as docs/runbooks/README.md explains:

``console``                its commands end with 0; a ``grep`` that finds nothing (1) is an answer as well
``console changes``        as the first, after all others, because they change the authority
``console skip=REASON``    not run, for one of a few reasons
``promql``                 queries that give data about a healthy service
``promql quiet``           queries that are right, and may give nothing where nothing is wrong
"""

import json
import re
import shlex
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir, closing, contextmanager
from functools import cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
import pytest
import yaml
from click.testing import CliRunner

from fakes.acme_client import AcmeClient
from fakes.dns import LOOPBACK, Knot
from fakes.http01 import Http01
from fakes.process import PRIVYSEAL, ServerProcess, run_command, served
from fakes.prometheus import FOLDER, Prometheus
from privyseal_acme.cli import cli
from privyseal_ca.config import Settings
from privyseal_ca.telemetry.metrics import Metrics, WitnessMetrics

ROOT: Final = Path(__file__).parents[2]
RUNBOOKS: Final = ROOT / "docs" / "runbooks"
INDEX: Final = RUNBOOKS / "README.md"
PAGES: Final = sorted(path for path in RUNBOOKS.glob("*.md") if path != INDEX)
#: What no test can do here, and why.
SKIPS: Final = {
    "machine": "it stops or starts services of the machine, or needs root",
    "elsewhere": "it is done on another machine",
    "restore": "it puts another database in the place of this one",
}
#: More of them would make the tests slow, and whoever is on call has no use for them.
MOST_COMMANDS: Final = 60
_SECTIONS: Final = ["What it means", "How to check", "What to do", "How to know it worked"]
_FENCE = re.compile(r"^ *```(\w+)([^\n]*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_PLACEHOLDER = re.compile(r"\b[A-Z]{4,}\b")
_WITNESS_HOME = "/var/lib/privyseal-witness"
_SETTING = re.compile(r"([a-z]+)\.([a-z_]+)")
_SECONDS: Final = 60.0
_PATIENCE: Final = 15.0
_WITH_TOKENS: Final = ("privyseal doctor", "privyseal crl root", "privyseal issuer create")

page = pytest.mark.parametrize("path", [*PAGES, INDEX], ids=lambda path: path.stem)
runbook = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)


class Block(NamedTuple):
    """A block of a page: its language, what stands behind that, and its text."""

    language: str
    marks: tuple[str, ...]
    text: str

    @property
    def skipped(self) -> str:
        return next((mark.removeprefix("skip=") for mark in self.marks if mark.startswith("skip=")), "")

    @property
    def changes(self) -> bool:
        return "changes" in self.marks

    def lines(self, *prompts: str) -> list[str]:
        """What is typed behind one of ``prompts``, with continued lines put together."""
        joined = self.text.replace("\\\n", " ").splitlines()
        return [line.strip()[2:].strip() for line in joined if line.strip().startswith(prompts)]

    def queries(self) -> list[str]:
        """The queries of the block: an empty line is between two of them."""
        return [query.strip() for query in re.split(r"\n\s*\n", self.text) if query.strip()]


@cache
def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@cache
def blocks(path: Path, language: str) -> list[Block]:
    found = [Block(kind, tuple(marks.split()), text) for kind, marks, text in _FENCE.findall(text_of(path))]
    return [block for block in found if block.language == language]


def prose(path: Path) -> str:
    return _FENCE.sub("", text_of(path))


def alerts() -> dict[str, dict[str, Any]]:
    """The alert rules by their names."""
    return {
        rule["alert"]: rule
        for file in sorted(FOLDER.glob("*.yml"))
        for group in (yaml.safe_load(text_of(file)) or {}).get("groups") or ()
        for rule in group["rules"]
        if "alert" in rule
    }


# Pages and alerts


def test_every_alert_has_a_runbook_and_the_reverse() -> None:
    assert set(alerts()) == {path.stem for path in PAGES}


def test_every_alert_links_to_its_runbook() -> None:
    for name, rule in alerts().items():
        url = rule["annotations"]["runbook_url"]
        assert url.endswith(f"docs/runbooks/{name}.md"), url
        assert (RUNBOOKS / f"{name}.md").is_file()


def test_the_index_has_every_runbook_under_its_severity() -> None:
    listed: dict[str, str] = {}
    for part in re.split(r"^## ", text_of(INDEX), flags=re.MULTILINE)[1:]:
        heading = part.partition("\n")[0].lower()
        for target in re.findall(r"^\| \[\w+\]\((\w+)\.md\)", part, re.MULTILINE):
            listed[target] = heading.split()[0]
    assert listed == {name: rule["labels"]["severity"] for name, rule in alerts().items()}


@runbook
def test_the_four_parts(path: Path) -> None:
    headings = re.findall(r"^(#+) (.+)$", prose(path), re.MULTILINE)
    assert headings[0] == ("#", path.stem)
    assert [heading for level, heading in headings[1:] if level == "##"] == _SECTIONS
    assert blocks(path, "console") or blocks(path, "promql"), "nothing to type"


@page
def test_links(path: Path) -> None:
    for target in _LINK.findall(prose(path)):
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        assert linked.is_file(), target
        headings = re.findall(r"^#+ (.+)$", prose(linked), re.MULTILINE)
        if anchor:
            assert anchor in {re.sub(r"[^\w -]", "", each.lower()).strip().replace(" ", "-") for each in headings}


@page
def test_settings_exist(path: Path) -> None:
    fields = Settings.model_fields
    for span in _SPAN.findall(prose(path)):
        match = _SETTING.fullmatch(span)
        if match and match[1] in fields:
            section = getattr(fields[match[1]].annotation, "model_fields", {})
            assert match[2] in section, span


@cache
def sources() -> str:
    return "\n".join(text_of(path) for room in ("ca", "acme") for path in sorted((ROOT / room).rglob("*.py")))


@page
def test_messages_that_are_looked_for_are_logged(path: Path) -> None:
    for block in blocks(path, "console"):
        for line in block.lines("$ "):
            if line.startswith("grep ") and line.endswith("service.log"):
                wanted = re.fullmatch(r"grep -F '([^']+)' service\.log", line)
                assert wanted, line
                assert wanted[1] in sources(), wanted[1]


def test_what_is_skipped_is_skipped_for_a_reason() -> None:
    skipped = [
        (path.stem, block.skipped, line)
        for path in [*PAGES, INDEX]
        for block in blocks(path, "console")
        if block.skipped
        for line in block.lines("$ ", "# ")
    ]
    print(*("{}: {} ({})".format(*each) for each in skipped), sep="\n")
    assert {reason for _, reason, _ in skipped} <= SKIPS.keys()
    # What this program does by itself can be tried.
    allowed = {"restore", "elsewhere"}
    assert not [each for each in skipped if each[2].startswith("privyseal ") and each[1] not in allowed]


@page
def test_marks_are_known(path: Path) -> None:
    for _, marks, _ in _FENCE.findall(text_of(path)):
        assert all(re.fullmatch(r"changes|quiet|skip=\w+", mark) for mark in marks.split()), marks
    for block in blocks(path, "console"):
        # Root's commands are for the machine.
        assert block.skipped or not block.lines("# "), block.text


@page
def test_commands_that_are_skipped_or_in_a_sentence_exist(path: Path) -> None:
    lines = [line for block in blocks(path, "console") if block.skipped for line in block.lines("$ ", "# ")]
    for line in [*lines, *_SPAN.findall(prose(path))]:
        words = line.split()
        if words[0] == "privyseal":
            known = {option for parameter in find_command(words[1:]).params for option in parameter.opts}
            assert {word for word in words if word.startswith("--")} <= known, line


def find_command(words: list[str]) -> click.Command:
    """The command that ``words`` begin with."""
    command: click.Command = cli
    for word in words:
        if not isinstance(command, click.Group) or word.startswith("-"):
            break
        found = command.get_command(click.Context(command), word)
        assert found is not None, f"privyseal {' '.join(words)}"
        command = found
    return command


# Commands


class Result(NamedTuple):
    """How a command ended."""

    code: int
    output: str

    def is_well(self, command: str) -> bool:
        """Whether that is what a runbook promises. A ``grep`` that finds nothing is an answer."""
        return self.code == 0 or (command.startswith("grep ") and self.code == 1)


def commands() -> list[tuple[Block, list[str]]]:
    """The blocks that are run, with those commands that no block before had; what changes something last."""
    known: set[str] = set()
    found = []
    everything = [block for path in [*PAGES, INDEX] for block in blocks(path, "console") if not block.skipped]
    for block in sorted(everything, key=lambda block: block.changes):
        fresh = [line for line in dict.fromkeys(block.lines("$ ")) if line not in known]
        known.update(fresh)
        if fresh:
            found.append((block, fresh))
    return found


def test_there_are_not_too_many_commands() -> None:
    distinct = [line for _, fresh in commands() for line in fresh if "privyseal " in line]
    assert len(distinct) <= MOST_COMMANDS, len(distinct)


class Scene:
    """A service with a workload, and what stands for the placeholders of runbooks."""

    def __init__(self, server: ServerProcess, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.words: dict[str, str] = {}
        self.witness = folder / "witness"
        (folder / "service.log").symlink_to(server.home.with_name(f"{server.home.name}.err"))

    def prepare(self, http01: Http01) -> None:
        """Have what commands are about: a certificate of an account, a witness."""
        with closing(AcmeClient(self.server.directory, self.server.roots, http01=http01)) as client:
            client.register()
            issued = client.issue("runbooks.test")
            assert client.account is not None
            self.words["ACCOUNT"] = client.account.rpartition("/")[2]
        self.words |= {
            "SERIAL": f"{issued.certificate.serial_number:032x}",
            "ISSUER": "issuing-1",
            "LINEAGE": self.workload("runbooks.test"),
            "HOST": "runbooks.test",
            "ROUTE": "operators",
        }
        vkey = self.folder / "ledger.vkey"
        vkey.write_text(self.server.command("ledger", "vkey").stdout, encoding="utf-8")
        self.server.command("witness", "init", "--home", self.witness, "--name", "witness.test/w1")
        self.server.command("witness", "add", "--home", self.witness, f"@{vkey}")

    def workload(self, name: str) -> str:
        """The id of the workload whose certificate has just been issued for ``name``."""
        assert self.invoke("privyseal job run fleet-follow").code == 0
        self.invoke("privyseal job run fleet-figures")
        (found,) = json.loads(self.invoke(f"privyseal fleet list --name {name} --json").output)
        return str(found["id"])

    def filled(self, text: str) -> str:
        """``text`` with this service's own in the place of placeholders."""
        text = _PLACEHOLDER.sub(lambda match: self.words.get(match[0], match[0]), text)
        return text.replace(_WITNESS_HOME, str(self.witness))

    @property
    def environment(self) -> dict[str, str]:
        """What README.md has people set."""
        environment = self.server.environment
        return environment | {
            "PATH": f"{PRIVYSEAL.parent}:{environment['PATH']}",
            "HTTP": self.server.http_url,
            "HTTPS": f"{LOOPBACK}:{self.server.https_port}",
        }

    def run(self, command: str) -> Result:
        """``command`` in a shell, as it is typed."""
        shell = ("bash", "-o", "pipefail", "-c", self.filled(command))
        try:
            done = run_command(*shell, env=self.environment, cwd=self.folder, expect=None, timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            return Result(-1, f"no end after {_SECONDS:.0f} s")
        return Result(done.returncode, done.stdout + done.stderr)

    def invoke(self, command: str) -> Result:
        """The same in this process, which spares the second that the start of each takes."""
        with chdir(self.folder):
            done = CliRunner().invoke(cli, shlex.split(self.filled(command))[1:], env=self.environment)
        return Result(done.exit_code, f"{done.output}{done.exception or ''}")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, dns_server: Knot, http01: Http01) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("runbooks")
    with receiving() as receiver:
        settings = {
            "VALIDATION__RESOLVERS": f'["{dns_server.address}"]',
            "VALIDATION__HTTP_PORT": str(http01.port),
            "SCHEDULER__LEASE": "3",
            **settings_of(folder, receiver),
        }
        with served(folder / "home", settings, named=True) as server:
            scene = Scene(server, folder)
            scene.prepare(http01)
            yield scene


def settings_of(folder: Path, receiver: str) -> dict[str, str]:
    """What runbooks are about and a service does without: backups by schedule, a route for notifications."""
    kept, urls = folder / "backups", folder / "urls"
    kept.mkdir()
    identity = run_command(PRIVYSEAL, "backup", "identity", folder / "identity.txt")
    urls.touch(mode=0o600)
    urls.write_text(f"{receiver}\n", encoding="utf-8")
    return {
        "BACKUP__FOLDER": str(kept),
        "BACKUP__RECIPIENTS": f'["{identity.stdout.strip()}"]',
        "NOTIFICATIONS__ROUTES": json.dumps([{"name": "operators", "url_file": str(urls)}]),
    }


class Receiver(BaseHTTPRequestHandler):
    """Takes notifications as JSON."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(HTTPStatus.NO_CONTENT)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the name is the base class's)
        """Nothing to the test's output."""


@contextmanager
def receiving() -> Iterator[str]:
    """An Apprise URL that takes everything."""
    with ThreadingHTTPServer((LOOPBACK, 0), Receiver) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"json://{LOOPBACK}:{server.server_port}/"
        server.shutdown()


def is_plain(line: str) -> bool:
    """Whether the program does it alone: without a shell, and without tokens, of which a process has one home's at a time."""
    return line.startswith("privyseal ") and not line.startswith(_WITH_TOKENS) and not set(line) & set("|;&<>$")


@pytest.fixture(scope="module")
def results(scene: Scene, answers: Mapping[str, str]) -> dict[str, Result]:
    """Every command once, after the queries; those that change something at the end, one after the other."""
    looking = [line for block, lines in commands() for line in lines if not block.changes]
    typed = [line for line in looking if not is_plain(line)]
    with ThreadPoolExecutor(2) as pool:
        shells = pool.map(scene.run, typed)
        found = {line: scene.invoke(line) for line in looking if is_plain(line)}
        found |= dict(zip(typed, shells, strict=True))
    for block, lines in commands():
        if block.changes:
            found |= {line: scene.invoke(line) if is_plain(line) else scene.run(line) for line in lines}
    return found


@page
def test_commands(path: Path, results: Mapping[str, Result]) -> None:
    wrong = [
        f"$ {line}\n{results[line].code}\n{results[line].output}"
        for block in blocks(path, "console")
        if not block.skipped
        for line in block.lines("$ ")
        if not results[line].is_well(line)
    ]
    assert not wrong, "\n".join(wrong)


# Queries


@cache
def metric_names() -> frozenset[str]:
    """Every name that a server or a witness exposes."""
    names = set()
    for metrics in (Metrics(), WitnessMetrics()):
        for attribute in vars(metrics).values():
            if hasattr(attribute, "describe"):
                (family,) = attribute.describe()
                ends = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}.get(family.type, ("",))
                names |= {f"{family.name}{end}" for end in ends}
    return frozenset(names)


@page
def test_metrics_exist(path: Path) -> None:
    named = set(re.findall(r"\bprivyseal_(?!acme\b|ca\b)\w+", text_of(path)))
    assert named <= metric_names()


@pytest.fixture(scope="module")
def answers(scene: Scene) -> dict[str, str]:
    """What is wrong with each query; an empty text where nothing is. Some figures come only with the first round of a job."""
    everything = {
        query: "quiet" in block.marks
        for path in [*PAGES, INDEX]
        for block in blocks(path, "promql")
        for query in block.queries()
    }
    target = scene.server.http_url.removeprefix("http://")
    running = Prometheus(scene.folder / "prometheus", {"privyseal": [target]}, rules=())
    try:
        running.wait_until_scraped()
        deadline = time.monotonic() + _PATIENCE
        found = {query: wrong_with(running, scene.filled(query), quiet=quiet) for query, quiet in everything.items()}
        while any(found.values()) and time.monotonic() < deadline:
            time.sleep(0.25)
            again = [query for query, wrong in found.items() if wrong]
            found |= {query: wrong_with(running, scene.filled(query), quiet=everything[query]) for query in again}
    finally:
        running.stop()
    return found


def wrong_with(running: Prometheus, query: str, *, quiet: bool) -> str:
    try:
        return "" if running.query(query) or quiet else "no data"
    except AssertionError as refused:
        return str(refused)


@page
def test_queries(path: Path, answers: Mapping[str, str]) -> None:
    asked = [query for block in blocks(path, "promql") for query in block.queries()]
    assert not {query: answers[query] for query in asked if answers[query]}
