"""Bringing a database to the newest schema."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, create_engine, event
from sqlalchemy.engine import Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from privyseal_ca.errors import StoreUnavailableError

_MIGRATIONS = Path(__file__).with_name("migrations")


def migrate(url: str) -> None:
    """Create or upgrade the schema of the database at ``url``. Safe to run again.

    Raises:
        StoreUnavailableError: the database cannot be reached or changed, or is newer than this program.
    """
    engine = _engine(url)
    try:
        with engine.begin() as connection:
            upgrade(connection, "head")
    except SQLAlchemyError as error:
        raise StoreUnavailableError(
            f"The database's schema cannot be brought up to date: {str(error).splitlines()[0]}.",
            hint="Check that the database can be reached and written, then try again.",
        ) from error
    except CommandError as error:
        raise StoreUnavailableError(
            "The database's schema is not one that this program knows.",
            hint="A newer version of this program has used it: run that one.",
        ) from error
    finally:
        engine.dispose()


def upgrade(connection: Connection, revision: str) -> None:
    """Bring the schema to ``revision``, or ``head``, inside the transaction of ``connection``."""
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def known_revisions() -> frozenset[str]:
    """Every revision of the schema that this program knows."""
    return frozenset(script.revision for script in ScriptDirectory(str(_MIGRATIONS)).walk_revisions())


def schema_is_current(url: str) -> bool:
    """Whether the database at ``url`` has the newest schema.

    Raises:
        StoreUnavailableError: the database cannot be reached.
    """
    engine = _engine(url, begin="BEGIN")  # who only looks is in nobody's way
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    try:
        with engine.connect() as connection:
            current = MigrationContext.configure(connection).get_current_heads()
    except SQLAlchemyError as error:
        raise StoreUnavailableError(
            f"The database cannot be read: {str(error).splitlines()[0]}.", hint="Check database.url and the server."
        ) from error
    finally:
        engine.dispose()
    return set(current) == set(ScriptDirectory.from_config(config).get_heads())


def _engine(url: str, *, begin: str = "BEGIN IMMEDIATE") -> Engine:
    if url.startswith("postgresql://"):
        url = "postgresql+psycopg://" + url.removeprefix("postgresql://")
    engine = create_engine(url, poolclass=NullPool, hide_parameters=True)
    if engine.dialect.name == "sqlite":
        # The driver would commit before each change of the schema: a migration that is killed must leave nothing behind.
        event.listen(engine, "connect", lambda connection, _: setattr(connection, "isolation_level", None))
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
    return engine
