"""Workloads and what is told of them; who they belong to, at accounts and at the keys that bind those."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_IS_VALID = sa.text("serial IS NOT NULL")
_RETIRED = sa.text("retired_at > 0")
_LIVES = sa.text("retired_at = 0")


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), nullable=False)


def _moment(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=False)


def upgrade() -> None:
    """Add them. What was issued before is followed from the beginning by the first runs of `fleet-follow`."""
    op.create_table(
        "lineage",
        _text("id"),
        *map(_text, ("requester", "names", "profile")),
        sa.Column("names_hash", sa.LargeBinary(), nullable=False),
        *map(_text, ("serial", "issuer_id")),
        *map(_moment, ("not_before", "not_after", "certificates", "created", "renewed_at")),
        sa.Column("usual", sa.Integer(), nullable=False),
        *map(_text, ("owner", "team", "service", "environment", "criticality", "labels", "sources")),
        sa.Column("renews", sa.Integer(), nullable=False),
        *map(_moment, ("polled_at", "window_start", "window_end", "deadline")),
        *map(_moment, ("attempts", "failing_since", "attempted_at")),
        *map(_text, ("attempt", "state")),
        *map(_moment, ("state_since", "missed_at", "revoked_at", "retired_at")),
        *map(_text, ("retired_by", "retired_reason")),
        _moment("next_look"),
        _text("told"),
        sa.PrimaryKeyConstraint("id"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_lineage_names", "lineage", ["names_hash"])
    op.create_index("ix_lineage_serial", "lineage", ["serial"])
    op.create_index("ix_lineage_look", "lineage", ["next_look"])
    op.create_index("ix_lineage_requester", "lineage", ["requester"])
    op.create_index("ix_lineage_missed", "lineage", ["missed_at"])
    op.create_index("ix_lineage_retired", "lineage", ["criticality"], sqlite_where=_RETIRED, postgresql_where=_RETIRED)
    op.create_index("ix_lineage_live", "lineage", ["id"], sqlite_where=_LIVES, postgresql_where=_LIVES)
    op.create_table(
        "lineage_certificate",
        _text("serial"),
        _text("lineage_id"),
        _moment("not_before"),
        sa.PrimaryKeyConstraint("serial"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_lineage_certificate_lineage", "lineage_certificate", ["lineage_id", "not_before"])
    op.create_table(
        "notification",
        *map(_text, ("id", "route", "recipient", "kind", "title", "body")),
        sa.Column("workloads", sa.Integer(), nullable=False),
        _moment("created"),
        _text("state"),
        sa.Column("attempts", sa.Integer(), nullable=False),
        *map(_moment, ("next_attempt", "finished")),
        _text("problem"),
        sa.PrimaryKeyConstraint("id"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_notification_state", "notification", ["state", "next_attempt"])
    op.add_column("acme_account", sa.Column("attributes", sa.Text(), nullable=True))
    op.add_column("eab_key", sa.Column("attributes", sa.Text(), nullable=True))
    op.create_index(
        "ix_acme_order_serial", "acme_order", ["serial"], sqlite_where=_IS_VALID, postgresql_where=_IS_VALID
    )


def downgrade() -> None:
    """Remove them."""
    op.drop_index("ix_acme_order_serial", "acme_order")
    op.drop_column("eab_key", "attributes")
    op.drop_column("acme_account", "attributes")
    for name in ("notification", "lineage_certificate", "lineage"):
        op.drop_table(name)
