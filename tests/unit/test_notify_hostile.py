"""What strangers write into names, and others into the folder of templates, does nothing in a message or to the service."""

import os
from pathlib import Path

import pytest

from fakes.lineages import lineage
from privyseal_ca.errors import ConfigurationError
from privyseal_ca.notify.compose import MOST_BODY, MOST_NAMED, Content, entry_of, fitting, group, plain, sample
from privyseal_ca.notify.templates import Templates

NOW = 1_795_255_200.0


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<!channel>", "< !channel>"),
        ("<@U123> <#C1> </a>", "< @U123> < #C1> < /a>"),
        ("<https://evil.test|renew here>", "< https://evil.test|renew here>"),
        ("[renew here](https://evil.test)", "[renew here] (https://evil.test)"),
        ("[renew here][1]", "[renew here] [1]"),
        ("x@Everyone @ALL @here", "x@ Everyone @ ALL @ here"),
        ("ops@all.example 3 < 4 a[1]", "ops@all.example 3 < 4 a[1]"),
        ("a\x1b[31m\x9b31m\u202eb\u2028c", "a [31m 31m b c"),
    ],
    ids=["channel", "slack", "slack-link", "markdown", "reference", "everybody", "harmless", "control"],
)
def test_names_are_no_markup(text: str, shown: str) -> None:
    assert plain(text) == shown
    row = lineage("w", text, owner=text, service=text)
    content = Content("missed", "https://ca.test", "now", {"unowned": 1}, group([(entry_of("unowned", row, NOW), row)]))
    _, body = Templates(Path("/nonexistent")).render(content)
    assert body.count(shown) == 3


def test_long_names_do_not_push_out_what_comes_after_them() -> None:
    names = ["n" * 250] * 3
    rows = [lineage(f"w{number}", *names, owner="o" * 200, service="s" * 200) for number in range(MOST_NAMED)]
    named = list(fitting((entry_of("unowned", row, NOW), row) for row in rows))
    assert 5 < len(named) < MOST_NAMED
    content = Content("digest", "https://ca.test", "now", {"unowned": 99}, group(named), 99 - len(named), given_up=7)
    _, body = Templates(Path("/nonexistent")).render(content)
    assert len(body) < MOST_BODY
    assert f"And {99 - len(named)} more" in body
    assert "7 given up" in body


def test_templates_are_those_that_were_tried(tmp_path: Path) -> None:
    path = tmp_path / "news.j2"
    path.write_text("before\nbody")
    templates = Templates(tmp_path)
    templates.check()
    path.write_text("{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}after")
    assert templates.render(sample("missed")).title == "before"
    path.unlink()
    assert templates.render(sample("missed")).title == "before"


@pytest.mark.parametrize("what", ["pipe", "folder", "writable", "binary"])
def test_what_is_no_file_of_the_service_s_own_is_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "news.j2"
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"\xff" if what == "binary" else b"title")
        path.chmod(0o664 if what == "writable" else 0o644)
    with pytest.raises(ConfigurationError, match=r"news\.j2"):
        Templates(tmp_path)
