"""What is built and installed: the wheel, the two folders of import packages, and the lock files."""

import importlib.metadata
import re
import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"privyseal_ca": ROOT / "ca", "privyseal_acme": ROOT / "acme"}
LOCKS = ("requirements.lock", "requirements-dev.lock")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The project's wheel, built as a release would be."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder],
        cwd=ROOT, check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    (path,) = folder.iterdir()
    return zipfile.ZipFile(path)


def sources() -> set[str]:
    """Every file of both packages as it has to be in the wheel."""
    return {
        path.relative_to(folder).as_posix()
        for package, folder in PACKAGES.items()
        for path in (folder / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_holds_both_packages_whole_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == sources()


@pytest.mark.parametrize(
    "pattern",
    [
        r"privyseal_ca/py\.typed",
        r"privyseal_acme/py\.typed",
        r"privyseal_ca/issuance/profiles/mtls\.toml",
        r"privyseal_ca/store/migrations/env\.py",
        r"privyseal_ca/store/migrations/versions/0001\w*\.py",
        r"privyseal_ca/policy/known_keys\.dat",
    ],
)
def test_data_goes_along(wheel: zipfile.ZipFile, pattern: str) -> None:
    assert any(re.fullmatch(pattern, name) for name in wheel.namelist())


def test_the_command_and_the_licence(wheel: zipfile.ZipFile) -> None:
    information = {Path(name).name: name for name in wheel.namelist() if ".dist-info/" in name}
    assert b"privyseal = privyseal_acme.cli:main" in wheel.read(information["entry_points.txt"])
    metadata = message_from_bytes(wheel.read(information["METADATA"]))
    assert metadata["Name"] == "privyseal"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["License-File"] == "LICENSE"
    assert "LICENSE" in information


def test_the_wheel_runs_without_the_checkout(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """Unpacked elsewhere, with the checkout's own paths away."""
    wheel.extractall(tmp_path)
    program = (
        "import sys; sys.path = [path for path in sys.path if not path.endswith(('/ca', '/acme'))];"
        f"sys.path.insert(0, {str(tmp_path)!r}); import privyseal_ca;"
        "print(privyseal_ca.__file__); from privyseal_acme.cli import cli; cli(['--help'])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path))
    assert "serve" in done.stdout


def test_the_folders_are_no_packages() -> None:
    """``acme`` is certbot's import name; a package of ours would hide it."""
    for folder in PACKAGES.values():
        assert not (folder / "__init__.py").exists()
        assert [path.name for path in folder.iterdir() if path.name != "__pycache__"] == [
            next(package for package, where in PACKAGES.items() if where == folder)
        ]


def test_acme_is_certbots() -> None:
    """From the root of the checkout, where a folder of that name lies."""
    done = subprocess.run(
        [sys.executable, "-c", "import acme.client, privyseal_acme; print(acme.__file__)"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    installed = importlib.metadata.distribution("acme").locate_file("acme/__init__.py")
    assert Path(done.stdout.strip()) == Path(str(installed))


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_files_have_hashes_and_no_addresses(lock: str) -> None:
    text = (ROOT / lock).read_text(encoding="utf-8")
    assert "://" not in text
    assert not re.search(r"^\s*(-i|--index-url|--extra-index-url|--find-links|--trusted-host)\b", text, re.MULTILINE)
    requirements = [block for block in re.split(r"\n(?=\S)", text) if not block.startswith("#")]
    assert len(requirements) > 20
    for requirement in requirements:
        assert re.match(r"[\w.-]+(\[[\w,-]+\])?==\S+", requirement), requirement
        assert "--hash=sha256:" in requirement, requirement


def test_the_locks_agree_and_hold_every_dependency() -> None:
    pinned = [
        dict(
            re.findall(
                r"^([\w.-]+)(?:\[[\w,-]+\])?==([^\s;]+)", (ROOT / lock).read_text(encoding="utf-8"), re.MULTILINE
            )
        )
        for lock in LOCKS
    ]
    production, development = pinned
    assert production.items() <= development.items()
    declared = re.findall(
        r'^    "([\w-]+)(?:\[\w+\])?>=', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert "aiohttp" in declared
    assert set(declared) <= {name.lower() for name in development}
    assert not {"pytest", "certbot", "hypothesis"} & production.keys(), "tests' packages stay away from servers"
