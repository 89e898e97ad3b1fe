import stat
from pathlib import Path

import pytest

from privyseal_ca.errors import ConfigurationError
from privyseal_ca.hsm.softhsm import MODULE_PATHS, embed, find_module, use_embedded


def test_the_first_module_that_is_there(tmp_path: Path) -> None:
    here = tmp_path / "libsofthsm2.so"
    assert find_module([tmp_path / "none.so", here]) is None
    here.touch()
    assert find_module([tmp_path, tmp_path / "none.so", here]) == here
    assert all(path.is_absolute() for path in MODULE_PATHS)


def test_embed_makes_a_private_place_once(tmp_path: Path) -> None:
    home = tmp_path / "a home"
    conf = embed(home)
    assert conf == home / "softhsm2.conf"
    assert f"directories.tokendir = {home}/tokens\n" in conf.read_text()
    assert "objectstore.backend = file\n" in conf.read_text()
    assert stat.S_IMODE((home / "tokens").stat().st_mode) == 0o700
    assert stat.S_IMODE(conf.stat().st_mode) == 0o600
    assert {path.name for path in home.iterdir()} == {"softhsm2.conf", "tokens"}

    (home / "tokens").chmod(0o755)
    conf.write_text("objectstore.backend = db\n")
    embed(home)
    assert conf.read_text() == "objectstore.backend = db\n"
    assert stat.S_IMODE((home / "tokens").stat().st_mode) == 0o700


def test_embed_says_why_not(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot be made"):
        embed(tmp_path / "file" / "home")
    with pytest.raises(ConfigurationError, match="cannot keep tokens"):
        embed(tmp_path / "two\nlines")


def test_the_variable_points_at_the_home_unless_it_is_set(tmp_path: Path) -> None:
    environ: dict[str, str] = {}
    assert not use_embedded(tmp_path, environ)
    assert environ == {}
    conf = embed(tmp_path)
    assert use_embedded(tmp_path, environ)
    assert environ == {"SOFTHSM2_CONF": str(conf)}
    assert use_embedded(tmp_path, environ)
    other = {"SOFTHSM2_CONF": "/etc/softhsm2.conf"}
    assert not use_embedded(tmp_path, other)
    assert other == {"SOFTHSM2_CONF": "/etc/softhsm2.conf"}
