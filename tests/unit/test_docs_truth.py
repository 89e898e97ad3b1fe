"""What README and docs name exists: links, commands with their options, make targets, settings, files, tests, metrics."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest
from prometheus_client import Counter

from privyseal_acme.cli import cli
from privyseal_ca.config import Settings
from privyseal_ca.ledger.entries import Kind
from privyseal_ca.sections import PolicySettings
from privyseal_ca.telemetry.metrics import Metrics, WitnessMetrics

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
_COMMAND = re.compile(r"(?:^|bin/|[|;&(] ?|\$ |\w=\S+ )privyseal(?= |$)(.*)")
_MAKE = re.compile(r"(?:^|\$ |[;&] ?)make ([a-z][a-z -]*)")
_SETTING = re.compile(r"([a-z]+)\.([a-z_]+)(?: = .*)?")
_FILE = re.compile(
    r"(?:[\w.-]+/)*[\w.-]+\.(?:py|sh|toml|md|service)|(?:ca|acme|tests|docs|deploy|\.ci)/[\w./-]*|[a-z_]+/"
)

page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)


@cache
def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@cache
def prose_of(path: Path) -> str:
    """The page without its blocks."""
    return _FENCE.sub("", text_of(path))


def spans(path: Path) -> list[str]:
    """What stands in backticks."""
    return _SPAN.findall(prose_of(path))


def blocks(path: Path, *languages: str) -> list[str]:
    """The blocks in these languages."""
    return [content for language, content in _FENCE.findall(text_of(path)) if language in languages]


def code_lines(path: Path) -> Iterator[str]:
    """Lines that somebody could type: spans, and the lines of console blocks with continuations joined."""
    yield from spans(path)
    for block in blocks(path, "console", "bash", "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            if line.lstrip().startswith(("$ ", "# ")):
                yield line.strip()


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as forges make them."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", text_of(path)), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@page
def test_links(path: Path) -> None:
    for target in _LINK.findall(prose_of(path)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked), target


def find_command(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that ``words`` begin with, and what is left of them."""
    command: click.Command = cli
    rest = list(words)
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        found = command.get_command(click.Context(command), rest[0])
        assert found is not None, f"privyseal {' '.join(words)}"
        command, rest = found, rest[1:]
    return command, rest


@page
def test_commands_and_their_options(path: Path) -> None:
    for line in code_lines(path):
        for match in _COMMAND.finditer(line):
            words = match[1].split("|")[0].split()
            command, rest = find_command(words)
            known = {name for parameter in command.params for name in parameter.opts}
            for word in rest:
                option = word.split("=")[0]
                if option.startswith("--") and option != "--help":
                    assert any(
                        name == option or (option.endswith("-") and name.startswith(option)) for name in known
                    ), f"{line}: {option}"


def test_every_command_is_named_somewhere() -> None:
    everything = "\n".join(text_of(path) for path in PAGES)
    for name in cli.list_commands(click.Context(cli)):
        assert f"privyseal {name}" in everything, name


@page
def test_make_targets(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in code_lines(path):
        for match in _MAKE.finditer(line):
            assert set(match[1].split()) <= targets, line


def test_every_make_target_is_described() -> None:
    described = set(re.findall(r"`make ([a-z-]+)`", text_of(ROOT / "docs" / "development.md")))
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert targets - {"setup-test"} == described


def settings_keys() -> dict[str, set[str]]:
    """Every section of the settings with its keys."""
    sections = {name: getattr(field.annotation, "model_fields", None) for name, field in Settings.model_fields.items()}
    keys = {name: set(fields) for name, fields in sections.items() if fields}
    return keys | {"policy": set(PolicySettings.model_fields)}


@page
def test_settings(path: Path) -> None:
    sections = settings_keys()
    for span in spans(path):
        match = _SETTING.fullmatch(span)
        # Kinds of entries look the same.
        if match and match[1] in sections and match[2] not in {"py", "md", "toml"} and span not in set(Kind):
            assert match[2] in sections[match[1]], span
        for section, key in re.findall(r"PRIVYSEAL_([A-Z]+)__([A-Z_]+)", span):
            if section != "SECTION":
                assert key.lower() in sections[section.lower()], span


@cache
def files() -> frozenset[str]:
    """Every file of the checkout's folders, by its path, and by every end of that path."""
    found = set()
    for folder in ("ca", "acme", "tests", "docs", "deploy", ".ci"):
        for path in (ROOT / folder).rglob("*"):
            if "__pycache__" not in path.parts:
                parts = path.relative_to(ROOT).parts
                found |= {"/".join(parts[start:]) for start in range(len(parts))}
    return frozenset(found | {path.name for path in ROOT.iterdir()})


#: In homes, not in the checkout.
_ELSEWHERE = frozenset(
    {"privyseal.toml", "witness.toml", "short.toml", "profiles/short.toml", "tokens/", "profiles/", "secrets/"}
)


@page
def test_files(path: Path) -> None:
    for span in spans(path):
        if _FILE.fullmatch(span) and span not in _ELSEWHERE and not span.startswith("/"):
            assert span.rstrip("/") in files(), span


@page
def test_blocks_of_settings_are_settings(path: Path) -> None:
    for block in blocks(path, "toml"):
        for section, key in re.findall(r"^\[(\w+)[^\]]*\]\n(\w+) =", block, re.MULTILINE):
            assert key in settings_keys()[section], block


def test_metrics() -> None:
    described = {
        name: (kind, set(re.findall(r"`(\w+)`", labels)))
        for name, kind, labels in re.findall(
            r"^\| `(privyseal_\w+)` \| (\w+) \|([^|]*)\|", text_of(ROOT / "docs" / "metrics.md"), re.MULTILINE
        )
    }
    there = {}
    for attribute in (*vars(Metrics()).values(), *vars(WitnessMetrics()).values()):
        if hasattr(attribute, "describe"):
            (family,) = attribute.describe()
            name = f"{family.name}_total" if isinstance(attribute, Counter) else family.name
            there[name] = (family.type, set(attribute._labelnames))
    assert described == there


def test_metrics_that_are_named_exist() -> None:
    known = text_of(ROOT / "docs" / "metrics.md")
    for path in PAGES:
        for name in re.findall(r"privyseal_[a-z_]+", text_of(path)):
            assert name in {"privyseal_ca", "privyseal_acme"} or f"| `{name}` |" in known, name


def test_every_promise_has_its_place() -> None:
    architecture = text_of(ROOT / "docs" / "architecture.md")
    assert re.findall(r"^\| \*\*P(\d+)\*\*", architecture, re.MULTILINE) == [str(number) for number in range(1, 13)]


def test_every_page_is_reachable_from_the_readme() -> None:
    linked = {target.partition("#")[0] for target in _LINK.findall(text_of(ROOT / "README.md"))}
    assert {f"docs/{path.name}" for path in PAGES if path.name != "README.md"} <= linked
