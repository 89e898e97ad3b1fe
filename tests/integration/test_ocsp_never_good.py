"""P7: whatever happens in whatever order, no answer is `good` for a serial that its issuer did not issue, or has revoked."""

import asyncio
import secrets
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.home import MakeSettings, copy_database
from fakes.ocsp_desk import OcspDesk, ocsp_desk
from fakes.service import FakeClock
from privyseal_acme.cli import cli
from privyseal_ca.config import Settings
from privyseal_ca.revocation.published import OcspAnswer, OcspQuery, OcspStatus
from privyseal_ca.store.certificates import CertificateRow

ISSUER = st.integers(0, 1)
WHICH = st.integers(0, 7)
ASK = st.tuples(
    st.just("ask"), ISSUER, WHICH, st.sampled_from(("sha1", "sha256")), st.booleans(), st.sampled_from((0, 0, 0, 1, -1))
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("issue"), ISSUER),
        st.tuples(st.just("revoke"), WHICH),
        ASK,
        ASK,
        st.tuples(st.just("crowd"), ISSUER, WHICH),
        st.tuples(st.just("prepare")),
        st.tuples(st.just("follow")),
        st.tuples(st.just("pass"), st.sampled_from((1, 90, 50_000, 90_000))),
        st.tuples(st.just("restart")),
    ),
    min_size=5,
    max_size=25,
)


@pytest.fixture(scope="module")
def two_issuers(make_settings: MakeSettings) -> Settings:
    """A database with a second issuer; never served from itself."""
    made = make_settings()
    environment = {"PRIVYSEAL_HOME": str(made.home), "PRIVYSEAL_DATABASE__URL": made.database_url}
    result = CliRunner().invoke(cli, ["issuer", "create", f"second-{secrets.token_hex(4)}"], env=environment)
    assert result.exit_code == 0, result.output
    return made


class Walk:
    """The steps, and what must hold after each."""

    def __init__(self, desk: OcspDesk) -> None:
        self.desk = desk
        self.issued: list[CertificateRow] = []
        self.revoked: set[str] = set()
        #: What a cache before it would hold, as the web room does.
        self.cache: dict[OcspQuery, OcspAnswer] = {}
        self.attach(desk)

    def attach(self, desk: OcspDesk) -> None:
        self.desk = desk
        desk.ocsp.on_change(self.forget)

    def forget(self, serials: Any) -> None:
        gone = set(serials)
        self.cache = {query: answer for query, answer in self.cache.items() if answer.serial not in gone}

    def issuer(self, number: int) -> Any:
        return list(self.desk.authority.issuers)[number]

    async def issue(self, number: int) -> None:
        self.issued.append(await self.desk.issue(issuer=self.issuer(number)))

    async def revoke(self, which: int) -> None:
        if self.issued and (row := self.issued[which % len(self.issued)]).serial not in self.revoked:
            await self.desk.revoke(row)
            self.revoked.add(row.serial)

    async def ask(self, number: int, which: int, hash_name: str, nonce: bool, off: int) -> None:
        serial = int(self.issued[which % len(self.issued)].serial, 16) + off if self.issued else which + 1
        query = self.desk.query(
            serial,
            hash_name=hash_name,
            nonce=secrets.token_bytes(32) if nonce else None,
            issuer_id=self.issuer(number).id,
        )
        for source in (self.desk.ocsp, self.desk.status_only()):
            answer = await source.answer(query)
            self.check(query, self.issuer(number).id, answer)
            if isinstance(answer, OcspAnswer) and answer.keep:
                self.cache[query] = answer

    def check(self, query: OcspQuery, issuer_id: str, answer: OcspAnswer | OcspStatus) -> None:
        if isinstance(answer, OcspStatus):
            return
        said = self.desk.verified(answer, query).certificate_status.name
        mine = [row for row in self.issued if int(row.serial, 16) == query.serial and row.issuer_id == issuer_id]
        expected = "UNKNOWN" if not mine else "REVOKED" if mine[0].serial in self.revoked else "GOOD"
        assert said == expected

    async def crowd(self, number: int, which: int) -> None:
        """Many ask while it is revoked; whoever asks afterwards hears of it."""
        asking = [self.desk.ask(row.serial, issuer_id=self.issuer(number).id) for row in self.issued for _ in range(3)]
        await asyncio.gather(*asking, self.revoke(which))
        for row in self.issued:
            await self.ask(number, self.issued.index(row), "sha1", nonce=False, off=0)

    async def prepare(self) -> None:
        while await self.desk.ready.prepare_due():
            pass

    async def follow(self) -> None:
        """What a cache still holds after it heard of the changes is true."""
        await self.desk.ocsp.follow()
        assert not {answer.serial for answer in self.cache.values() if self.says_good(answer)} & self.revoked

    def says_good(self, answer: OcspAnswer) -> bool:
        query = next(each for each, kept in self.cache.items() if kept == answer)
        return self.desk.clock.now() < answer.next_update and (
            self.desk.verified(answer, query).certificate_status.name == "GOOD"
        )

    async def advance(self, seconds: int) -> None:
        self.desk.clock.advance(seconds)
        await self.desk.responders.renew_due()


async def walk(made: Settings, steps: list[tuple[Any, ...]]) -> None:
    clock = FakeClock()
    walker: Walk | None = None
    left = list(steps)
    while left:
        async with ocsp_desk(made, clock=clock) as desk:
            if walker is None:
                walker = Walk(desk)
            else:
                walker.cache.clear()
                walker.attach(desk)
            while left:
                name, *arguments = left.pop(0)
                if name == "restart":
                    break
                await getattr(walker, "advance" if name == "pass" else name)(*arguments)
            await walker.follow()


@given(steps=STEPS)
@settings(max_examples=20, deadline=None)
def test_no_answer_is_good_that_must_not_be(
    two_issuers: Settings, tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[Any, ...]]
) -> None:
    database = tmp_path_factory.mktemp("walk") / "walk.db"
    copy_database(Path(two_issuers.database_url.removeprefix("sqlite:///")), database)
    url = two_issuers.database.model_copy(update={"url": f"sqlite:///{database}"})
    asyncio.run(walk(two_issuers.model_copy(update={"database": url}), steps))
