"""What of the settings is hashed: never a password."""

import pytest

from privyseal_acme.decisions import _from_environment, _without_password


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://ca:secret@db/ca", "postgresql://ca@db/ca"),
        ("postgresql://ca:se@cret@db/ca", "postgresql://ca@db/ca"),
        ("postgresql://db/ca?user=ca&password=secret&sslmode=require", "postgresql://@db/ca?user=ca&sslmode=require"),
        ("postgresql://db/ca?PASSWORD=secret", "postgresql://@db/ca"),
        ("postgresql://db/ca?sslpassword=secret&user=ca", "postgresql://@db/ca?user=ca"),
        ("postgresql://db/ca?p%61ssword=secret", "postgresql://@db/ca"),
    ],
)
def test_passwords_are_left_out(url: str, expected: str) -> None:
    assert _without_password(url) == expected
    assert "secret" not in _without_password(url)


def test_what_the_environment_sets() -> None:
    environ = {
        "PRIVYSEAL_ACME__MAX_BODY": "1",
        "privyseal_server__http": "a:1",
        "PRIVYSEAL_LIMITS": '{"new_orders": 1}',
        "PRIVYSEAL_POLICY__NARROW__PROFILES": "server",
        # These set nothing.
        "PRIVYSEAL_KEYS__TYPES": "",
        "PRIVYSEAL_HOME": "/home",
        "PRIVYSEAL_UNKNOWN": "x",
        "PATH": "/bin",
    }
    assert _from_environment(environ) == ["acme.max_body", "limits", "policy.narrow.profiles", "server.http"]
