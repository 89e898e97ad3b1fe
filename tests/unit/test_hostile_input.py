"""Small bounds against strangers: what is remembered of them, what one of their messages costs, what faults let slip."""

import asyncio
import json
import subprocess
import sys
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from pydantic import ValidationError

from fakes.acme_client import JwsKey, b64, unb64
from privyseal_acme.flow.limits import RateLimit, site_of
from privyseal_acme.protocol.keys import load_jwk, parse_jwk
from privyseal_acme.protocol.messages import AccountUpdate, Message, NewAccount, NewOrder
from privyseal_acme.protocol.problems import Problem
from privyseal_acme.readiness import _one_at_a_time
from privyseal_ca.config import Settings
from privyseal_ca.errors import StoreUnavailableError
from privyseal_ca.store.backends import backend_for
from privyseal_ca.web.status import Readiness

RSA = JwsKey("RS256", rsa.generate_private_key(65537, 2048)).jwk
MOST_CONTACTS, MOST_IDENTIFIERS = 100, 1000


# Keys


def test_keys_of_strangers_are_not_remembered() -> None:
    remembered = load_jwk.cache_info().currsize
    for _ in range(20):
        parse_jwk(JwsKey().jwk)
    assert load_jwk.cache_info().currsize == remembered


@pytest.mark.parametrize(
    "change",
    [
        {"n": b64(b"\0" + unb64(RSA["n"]))},
        {"e": b64(b"\0\1\0\1")},
        {"e": b64(b"\0")},
        {"e": ""},
        {"e": b64(bytes(200))},
        {"e": b64(b"\1" + bytes(6))},
        {"n": ""},
        {"n": b64(bytes(256))},
    ],
)
def test_an_rsa_key_has_one_form(change: dict[str, str]) -> None:
    """RFC 7518 section 2, Base64urlUInt: otherwise one key would have many thumbprints."""
    parse_jwk(RSA)
    with pytest.raises(Problem) as refused:
        parse_jwk({**RSA, **change})
    assert refused.value.type == "badPublicKey"


# Messages


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (NewOrder, {"identifiers": [{}] * 12_000}),
        (NewOrder, {"identifiers": [1] * 20_000}),
        (NewOrder, {"identifiers": [{"type": "dns", "value": "a.test"}] * (MOST_IDENTIFIERS + 1)}),
        (NewAccount, {"contact": [1] * 20_000}),
        (NewAccount, {"contact": ["mailto:a@b.test"] * (MOST_CONTACTS + 1)}),
        (AccountUpdate, {"contact": [None] * 10_000}),
    ],
)
def test_a_list_is_refused_at_its_first_fault(kind: type[Message], payload: dict[str, Any]) -> None:
    """Collecting them all took 35 ms for one request that anybody may make."""
    with pytest.raises(ValidationError) as refused:
        kind.model_validate_json(json.dumps(payload))
    assert refused.value.error_count() <= 2


def test_lists_may_be_as_long_as_the_settings_may_allow() -> None:
    settings = Settings.model_fields["acme"].annotation
    assert settings is not None
    limits = {name: settings.model_fields[name].metadata for name in ("max_identifiers", "max_contacts")}
    most = {name: next(each.le for each in metadata if hasattr(each, "le")) for name, metadata in limits.items()}
    assert most == {"max_identifiers": MOST_IDENTIFIERS, "max_contacts": MOST_CONTACTS}
    identifiers = [{"type": "dns", "value": "a.test"}] * MOST_IDENTIFIERS
    assert len(NewOrder.model_validate_json(json.dumps({"identifiers": identifiers})).identifiers) == MOST_IDENTIFIERS
    contact = ["mailto:a@b.test"] * MOST_CONTACTS
    assert len(NewAccount.model_validate_json(json.dumps({"contact": contact})).contact or ()) == MOST_CONTACTS


# Limits


class Standing:
    def now(self) -> float:
        return 1_000_000.0


@pytest.mark.parametrize(
    ("address", "site"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("", ""),
        ("unknown", "unknown"),
    ],
)
def test_what_an_address_counts_as(address: str, site: str) -> None:
    assert site_of(address) == site


def test_a_limit_remembers_a_bounded_number_of_keys() -> None:
    limit = RateLimit(events=1, period=3600, clock=Standing())
    for number in range(100_001):
        limit.count(str(number))
    assert limit.wait("0") == 0
    assert limit.wait("1") > 0
    assert limit.wait("100000") > 0


def test_however_many_ask_there_is_one_check_at_a_time() -> None:
    checks = 0

    async def test() -> None:
        go = asyncio.Event()

        async def check() -> Readiness:
            nonlocal checks
            checks += 1
            await go.wait()
            return Readiness({"number": str(checks)})

        shared = _one_at_a_time(check)
        asking = [asyncio.ensure_future(shared()) for _ in range(1000)]
        await asyncio.sleep(0)
        # One who goes away takes nothing from the others.
        asking.pop().cancel()
        go.set()
        assert {answer.parts["number"] for answer in await asyncio.gather(*asking)} == {"1"}
        # What is answered later was looked at later.
        assert (await shared()).parts["number"] == "2"

    asyncio.run(test())


# What is secret


@pytest.mark.parametrize("rest", ["@[host/db", "%zz@host/db", "@host/db?x=1"])
def test_a_bad_url_does_not_show_its_password(rest: str) -> None:
    url = f"postgresql://user:s3cret{rest}"
    with pytest.raises(StoreUnavailableError) as refused:
        backend_for(url, durable=True, timeout=2).connect(writing=False)
    shown = f"{refused.value!r} {refused.value.hint} {refused.value.__cause__!r}"
    assert "s3cret" not in shown
    assert refused.value.__suppress_context__


def test_settings_do_not_show_their_secrets() -> None:
    settings = Settings(database={"url": "postgresql://user:s3cret@host/db"}, hsm={"pin": "s3cret"})
    assert "s3cret" not in repr(settings)
    assert "s3cret" not in str(settings)


def test_the_process_dumps_no_memory_and_makes_private_files(tmp_path: Any) -> None:
    program = (
        "import os, resource\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))\n"
        "from privyseal_acme.serve import prepare_process\n"
        "prepare_process()\n"
        "open('made', 'w').close()\n"
        "soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "print(resource.getrlimit(resource.RLIMIT_CORE), soft == hard, oct(os.stat('made').st_mode & 0o777))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "(0, 0) True 0o600\n"
