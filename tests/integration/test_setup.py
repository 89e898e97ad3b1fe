"""``deploy/setup.sh`` on machines that lack something, played by commands that stand in for the machine's."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: What the script needs of every machine.
TOOLS = ("bash", "basename", "cat", "chmod", "cmp", "cp", "dirname", "env", "mkdir", "touch")


@dataclass(frozen=True)
class Machine:
    """A checkout with a finished environment, and a folder with all the commands that there are."""

    checkout: Path
    commands: Path

    def has(self, name: str, script: str) -> None:
        """Put a command there."""
        path = self.commands / name
        path.write_text(f"#!{shutil.which('sh')}\n{script}\n", encoding="utf-8")
        path.chmod(0o755)

    def lacks(self, name: str) -> None:
        """Take a command away."""
        (self.commands / name).unlink()

    def setup(self, mode: str = "run", **environment: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [self.commands / "bash", self.checkout / "deploy" / "setup.sh", mode],
            env={"PATH": str(self.commands), **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    @property
    def calls(self) -> str:
        """What was asked of apt-get."""
        log = self.checkout / "calls"
        return log.read_text(encoding="utf-8") if log.exists() else ""


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine that has everything; its user is root."""
    checkout, commands = tmp_path / "a checkout", tmp_path / "bin"
    (checkout / "deploy").mkdir(parents=True)
    commands.mkdir()
    shutil.copy(ROOT / "deploy" / "setup.sh", checkout / "deploy")
    for lock in ("requirements.lock", "requirements-dev.lock"):
        shutil.copy(ROOT / lock, checkout)
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found, tool
        (commands / tool).symlink_to(found)
    one = Machine(checkout, commands)
    one.has("id", "echo 0")
    one.has("openssl", "exit 0")
    one.has("curl", "exit 0")
    one.has("python3", f'exec "{sys.executable}" "$@"')
    one.has("apt-get", f'echo "$@" >>"{checkout}/calls"')
    # A finished environment, which only says what it is asked for: nothing is installed into a real one.
    environment = checkout / ".venv" / "bin"
    environment.mkdir(parents=True)
    site = checkout / ".venv" / "site"
    site.mkdir()
    for name, script in (("python", f'echo "{site}"'), ("pip", f'echo "pip $@" >>"{checkout}/calls"')):
        (environment / name).write_text(f"#!{shutil.which('sh')}\n{script}\n", encoding="utf-8")
        (environment / name).chmod(0o755)
    return one


def test_a_machine_that_has_everything(machine: Machine) -> None:
    done = machine.setup()
    assert done.returncode == 0, done.stderr
    assert machine.calls.splitlines() == [
        "pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock"
    ]
    paths = (machine.checkout / ".venv" / "site" / "privyseal.pth").read_text(encoding="utf-8").splitlines()
    assert paths == [str(machine.checkout / "ca"), str(machine.checkout / "acme")]
    assert os.access(machine.checkout / ".venv" / "bin" / "privyseal", os.X_OK)


def test_what_is_there_is_left_alone(machine: Machine) -> None:
    machine.setup()
    assert machine.setup().returncode == 0
    assert len(machine.calls.splitlines()) == 1


def test_the_demo_takes_the_lock_with_certbot_and_no_system_packages(machine: Machine) -> None:
    assert machine.setup("demo").returncode == 0
    assert machine.calls.splitlines()[-1].endswith("-r requirements-dev.lock")
    assert "apt-get" not in machine.calls


def test_root_installs_what_is_missing(machine: Machine) -> None:
    machine.lacks("openssl")
    done = machine.setup()
    assert done.returncode == 0, done.stderr
    update, install, *_ = machine.calls.splitlines()
    assert update == "update -qq"
    assert install == "install -y -qq --no-install-recommends openssl"
    assert "installing openssl" in done.stderr


def test_lists_out_of_reach_stop_nobody(machine: Machine) -> None:
    machine.lacks("openssl")
    machine.has("apt-get", f'echo "$@" >>"{machine.checkout}/calls"; [ "$1" != update ]')
    done = machine.setup()
    assert done.returncode == 0, done.stderr
    assert "apt-get update failed" in done.stderr


def test_packages_that_cannot_be_installed(machine: Machine) -> None:
    machine.lacks("openssl")
    machine.has("apt-get", '[ "$1" = update ]')
    done = machine.setup()
    assert done.returncode == 1
    assert "could not install: openssl" in done.stderr
    assert not machine.calls, "nothing goes on"


def test_a_user_without_sudo_is_told_what_to_ask_for(machine: Machine) -> None:
    machine.lacks("openssl")
    machine.lacks("curl")
    machine.has("id", "echo 1000")
    done = machine.setup()
    assert done.returncode == 1
    assert "missing: openssl curl." in done.stderr
    assert "apt-get install openssl curl" in done.stderr
    assert not machine.calls


def test_sudo_that_would_ask_with_nobody_there(machine: Machine) -> None:
    machine.lacks("openssl")
    machine.has("id", "echo 1000")
    machine.has("sudo", 'if [ "$1" = -n ]; then exit 1; fi; echo "a password is asked for" >&2; exit 1')
    done = machine.setup()
    assert done.returncode == 1
    assert "cannot use sudo" in done.stderr
    assert "a password is asked for" not in done.stderr


def test_sudo_installs(machine: Machine) -> None:
    machine.lacks("openssl")
    machine.has("id", "echo 1000")
    machine.has("sudo", 'if [ "$1" = -n ]; then shift; fi; [ "$1" = true ] || exec "$@"')
    done = machine.setup()
    assert done.returncode == 0, done.stderr
    assert "install -y -qq --no-install-recommends openssl" in machine.calls


def test_another_distribution(machine: Machine) -> None:
    machine.lacks("openssl")
    machine.lacks("apt-get")
    done = machine.setup()
    assert done.returncode == 1
    assert "no apt-get" in done.stderr
    assert "openssl" in done.stderr


def test_an_old_python(machine: Machine) -> None:
    machine.has("python3", 'if [ "$1" = --version ]; then echo Python 3.9.2; else exit 1; fi')
    done = machine.setup()
    assert done.returncode == 1
    assert "Python 3.11 to 3.13 is needed, and python3 is Python 3.9.2" in done.stderr
    assert "PYTHON=" in done.stderr
    assert not machine.calls


def test_an_old_python_beside_a_better_one(machine: Machine) -> None:
    machine.has("python3", "exit 1")
    machine.has("python3.12", f'exec "{sys.executable}" "$@"')
    assert machine.setup().returncode == 0


def test_a_python_that_was_named(machine: Machine) -> None:
    machine.has("mypython", "exit 1")
    done = machine.setup(PYTHON="mypython")
    assert done.returncode == 1
    assert "mypython" in done.stderr


def test_a_failed_installation_is_tried_again(machine: Machine) -> None:
    pip = machine.checkout / ".venv" / "bin" / "pip"
    works = pip.read_text(encoding="utf-8")
    pip.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    assert machine.setup().returncode != 0
    pip.write_text(works, encoding="utf-8")
    assert machine.setup().returncode == 0
    assert machine.calls
