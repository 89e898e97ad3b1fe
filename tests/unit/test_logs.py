"""Logs in a process of its own, as the service sets them up. Promise P10."""

import json
import subprocess
import sys

import pytest

PROGRAM = """
import sys
import structlog
from privyseal_ca.sections import LogSettings
from privyseal_ca.telemetry.logs import configure_logs

configure_logs(LogSettings(format=sys.argv[1]))

def login(pin):
    raise ValueError("the token said no")

try:
    login("".join(["pin", "4711", "pin"]))
except ValueError:
    structlog.get_logger("test").exception("unexpected error", correlation="c1")
"""


def logged(form: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, form], capture_output=True, text=True, timeout=60, check=True
    )  # fmt: skip
    return done.stderr


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_traceback_has_no_local_variables(form: str) -> None:
    text = logged(form)
    assert "the token said no" in text
    assert "login" in text
    assert "pin4711pin" not in text


def test_an_exception_is_one_object_on_one_line() -> None:
    (line,) = logged("json").splitlines()
    event = json.loads(line)
    assert event["event"] == "unexpected error"
    assert event["correlation"] == "c1"
    assert event["exception"][0]["exc_type"] == "ValueError"
