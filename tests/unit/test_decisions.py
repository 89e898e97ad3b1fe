"""What of the settings is hashed: never a password."""

import pytest

from privyseal_acme.decisions import _without_password


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://ca:secret@db/ca", "postgresql://ca@db/ca"),
        ("postgresql://ca:se@cret@db/ca", "postgresql://ca@db/ca"),
        ("postgresql://db/ca?user=ca&password=secret&sslmode=require", "postgresql://@db/ca?user=ca&sslmode=require"),
        ("postgresql://db/ca?PASSWORD=secret", "postgresql://@db/ca"),
    ],
)
def test_passwords_are_left_out(url: str, expected: str) -> None:
    assert _without_password(url) == expected
    assert "secret" not in _without_password(url)
