"""What surrounds the ceremony: the home, its settings, the PINs, the database and the way to the tokens."""

from collections.abc import Callable, MutableMapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from privyseal_ca.ceremony.ceremony import Ceremony, NewToken, Outcome, Progress, already_initialised
from privyseal_ca.ceremony.files import ensure_pin, prepare_home
from privyseal_ca.ceremony.plan import Plan
from privyseal_ca.ceremony.settings_file import FirstSettings, write_settings
from privyseal_ca.ceremony.transcript import CEREMONY_FACT, FINISHED, Transcript
from privyseal_ca.clock import Clock
from privyseal_ca.config import Settings, load_settings
from privyseal_ca.errors import ConfigurationError
from privyseal_ca.hsm.pin import Pin, read_pin
from privyseal_ca.hsm.pkcs11 import Hsm
from privyseal_ca.hsm.softhsm import TOKENS_DIRECTORY, embed, use_embedded
from privyseal_ca.hsm.uri import KeyUri
from privyseal_ca.store.backends import Backend, backend_for
from privyseal_ca.store.engine import Store
from privyseal_ca.store.issuers import find_fact
from privyseal_ca.store.migrate import migrate
from privyseal_ca.store.statement import Transaction

ROOT_PIN = "root-pin"
ISSUING_PIN = "pin"
_CREDENTIALS_VARIABLE = "CREDENTIALS_DIRECTORY"

MakeHsm = Callable[[Callable[[KeyUri], Pin], Settings], Hsm]
MakeStore = Callable[[Backend, Settings], Store]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the ceremony is given by whoever runs it."""

    environ: MutableMapping[str, str]
    clock: Clock
    random_bytes: Callable[[int], bytes]
    actor: str
    correlation: str
    progress: Progress

    def transcript(self, store: Store) -> Transcript:
        """Where the ceremony's steps are recorded."""
        return Transcript(store, clock=self.clock, actor=self.actor, correlation=self.correlation)


def make_hsm(pins: Callable[[KeyUri], Pin], settings: Settings) -> Hsm:
    """The tokens as the settings reach them."""
    return Hsm(
        pins=pins,
        queue=settings.hsm.queue,
        timeout=settings.hsm.timeout,
        retry_after=settings.hsm.retry_after,
        replicas=settings.hsm.replicas,
    )


def make_store(backend: Backend, settings: Settings) -> Store:
    """The database as the settings reach it."""
    return Store(backend, queue=settings.database.queue)


def pin_reader(
    settings: Settings, environ: MutableMapping[str, str], *, root_token: str, root_pin_file: Path | None
) -> Callable[[KeyUri], Pin]:
    """Gives the user PIN of each token. The root's is in a file of its own, which the service never reads."""
    credentials = environ.get(_CREDENTIALS_VARIABLE)

    def pins(uri: KeyUri) -> Pin:
        if root_pin_file is not None and uri.token == root_token and uri.pin_file is None:
            uri = replace(uri, pin_source=str(root_pin_file))
        return read_pin(
            uri,
            pin=settings.hsm.pin,
            pin_file=settings.hsm.pin_file,
            credentials=Path(credentials) if credentials else None,
            home=settings.home,
        )

    return pins


async def initialise(
    home: Path,
    plan: Plan,
    first: FirstSettings,
    *,
    embedded: bool,
    root_pin_file: Path | None,
    surroundings: Surroundings,
    make_hsm: MakeHsm = make_hsm,
    make_store: MakeStore = make_store,
) -> Outcome:
    """Make the authority that ``plan`` describes in ``home``, or finish what an earlier run has begun.

    Raises:
        ConfigurationError: the home is in use, finished, foreign or not usable.
        SignerError: a token failed. The same call continues.
        StoreError: the database failed. The same call continues.
    """
    settings = load_settings(home)
    backend = backend_for(settings.database_url, durable=True, timeout=settings.database.timeout)
    state = ceremony_state(settings, backend)
    if state == FINISHED:
        raise already_initialised(home)
    prepare_home(home)
    if state is None and embedded and any((home / TOKENS_DIRECTORY).glob("*")):
        raise ConfigurationError(
            f"{home} has tokens that no ceremony in this database made.", hint="Choose another home with --home."
        )
    write_settings(home, first)
    settings = load_settings(home)

    backend.connect(writing=True).close()
    with closing(backend.lock_service()):
        migrate(settings.database_url)
        if embedded:
            _embed(home, surroundings.environ)
            root_pin_file = None if plan.offline_root else ensure_pin(home, ROOT_PIN)
        pins = pin_reader(settings, surroundings.environ, root_token=plan.root_token, root_pin_file=root_pin_file)
        new_tokens = _new_tokens(home, plan, settings, pins) if embedded else ()
        store, hsm = make_store(backend, settings), make_hsm(pins, settings)
        await store.open()
        try:
            return await Ceremony(
                home=home,
                plan=plan,
                base_url=settings.server.http_url,
                new_tokens=new_tokens,
                hsm=hsm,
                transcript=surroundings.transcript(store),
                random_bytes=surroundings.random_bytes,
                progress=surroundings.progress,
            ).run()
        finally:
            await hsm.close()
            await store.close()


def ceremony_state(settings: Settings, backend: Backend) -> str | None:
    """How far the ceremony is that the database knows of: None, ``started`` or ``finished``. Changes nothing.

    Raises:
        StoreUnavailableError: the database cannot be reached.
    """
    url = settings.database_url
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
        return None
    with closing(backend.connect(writing=False)) as connection:
        try:
            return find_fact(Transaction(connection.cursor(), backend.dialect), CEREMONY_FACT)
        except backend.errors:
            return None  # without the table, there is no schema yet


def _embed(home: Path, environ: MutableMapping[str, str]) -> None:
    embed(home)
    if not use_embedded(home, environ):
        raise ConfigurationError(
            "SOFTHSM2_CONF points SoftHSM elsewhere than to this home.",
            hint="Unset it, or name existing tokens with --pkcs11-module, --root-token and --issuing-token.",
        )


def _new_tokens(home: Path, plan: Plan, settings: Settings, pins: Callable[[KeyUri], Pin]) -> Sequence[NewToken]:
    if not settings.hsm.pin and settings.hsm.pin_file is None:
        ensure_pin(home, ISSUING_PIN)
    labels = {ISSUING_PIN: plan.issuing_token}
    if not plan.offline_root:
        labels = {ROOT_PIN: plan.root_token, **labels}
    return [
        NewToken(
            label,
            so_pin=pins(KeyUri(token=label, pin_source=str(ensure_pin(home, f"{name}-so")))),
            user_pin=pins(KeyUri(token=label)),
        )
        for name, label in labels.items()
    ]
