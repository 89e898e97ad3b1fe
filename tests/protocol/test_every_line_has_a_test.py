"""The list of what the protocol demands, and that every line of it has a test named after it."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

#: STANDARDS A, lines 1 to 30.
LINES = tuple(range(1, 31))
#: What the server implements beyond RFC 8555, by the beginning of the tests' names.
EXTENSIONS = (
    "ari",  # RFC 9773
    "profiles",  # draft-ietf-acme-profiles
    "rfc8737",  # tls-alpn-01
    "rfc8738",  # addresses
    "dns_account",  # draft-ietf-acme-dns-account-label
    "caa",  # RFC 8659 and RFC 8657
)


@cache
def names_of_tests() -> list[str]:
    """The names of all tests in this folder."""
    found = []
    for path in Path(__file__).parent.glob("test_*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found += [
            node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        ]
    return found


@pytest.mark.parametrize("line", LINES)
def test_line(line: int) -> None:
    assert [name for name in names_of_tests() if name.startswith(f"test_a{line:02}_")]


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_extension(extension: str) -> None:
    assert [name for name in names_of_tests() if name.startswith(f"test_{extension}_")]


def test_no_line_is_unknown() -> None:
    numbers = {int(match[1]) for name in names_of_tests() if (match := re.match(r"test_a(\d+)_", name))}
    assert numbers == set(LINES)
