"""CRLs, OCSP responses and responders, jobs that revoke; and what certificates and revocations say of them."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add them."""
    op.create_table(
        "crl",
        sa.Column("issuer_id", sa.Text(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("this_update", sa.BigInteger(), nullable=False),
        sa.Column("next_update", sa.BigInteger(), nullable=False),
        sa.Column("entries", sa.BigInteger(), nullable=False),
        sa.Column("through", sa.BigInteger(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        sa.Column("delta_size", sa.BigInteger(), nullable=False),
        sa.Column("delta_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("base_number", sa.BigInteger(), nullable=False),
        sa.Column("base_through", sa.BigInteger(), nullable=False),
        sa.Column("next_base_number", sa.BigInteger(), nullable=False),
        sa.Column("next_base_through", sa.BigInteger(), nullable=False),
        sa.Column("next_base_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("issuer_id", "scope"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "crl_part",
        sa.Column("issuer_id", sa.Text(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("delta", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("der", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("issuer_id", "scope", "number", "delta", "position"),
    )
    op.create_table(
        "ocsp_responder",
        sa.Column("issuer_id", sa.Text(), nullable=False),
        sa.Column("key_uri", sa.Text(), nullable=False),
        sa.Column("der", sa.LargeBinary(), nullable=True),
        sa.Column("not_after", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("issuer_id"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "ocsp_response",
        sa.Column("serial", sa.Text(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("issuer_id", sa.Text(), nullable=False),
        sa.Column("revoked", sa.Integer(), nullable=False),
        sa.Column("this_update", sa.BigInteger(), nullable=False),
        sa.Column("next_update", sa.BigInteger(), nullable=False),
        sa.Column("refresh_at", sa.BigInteger(), nullable=False),
        sa.Column("der", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("serial", "hash"),
        sqlite_with_rowid=False,
    )
    with op.batch_alter_table("ocsp_response", schema=None) as batch_op:
        batch_op.create_index("ix_ocsp_response_refresh", ["refresh_at"], unique=False)

    op.create_table(
        "revocation_job",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("correlation", sa.Text(), nullable=False),
        sa.Column("reason", sa.Integer(), nullable=False),
        sa.Column("selection", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("position", sa.Text(), nullable=False),
        sa.Column("total", sa.BigInteger(), nullable=False),
        sa.Column("revoked", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sqlite_with_rowid=False,
    )
    with op.batch_alter_table("certificate", schema=None) as batch_op:
        batch_op.add_column(sa.Column("crl_shard", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("ocsp", sa.Integer(), server_default="0", nullable=False))
        batch_op.create_index("ix_certificate_ledger", ["ledger_index"], unique=False)
        batch_op.create_index("ix_certificate_spki", ["spki_sha256"], unique=False)

    with op.batch_alter_table("intent", schema=None) as batch_op:
        batch_op.add_column(sa.Column("crl_shard", sa.Integer(), nullable=True))

    with op.batch_alter_table("revocation", schema=None) as batch_op:
        batch_op.add_column(sa.Column("crl_shard", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("ledger_index", sa.BigInteger(), server_default="0", nullable=False))
        batch_op.create_index("ix_revocation_expiry", ["issuer_id", "not_after", "serial"], unique=False)
        batch_op.create_index("ix_revocation_ledger", ["ledger_index"], unique=False)
        batch_op.create_index("ix_revocation_shard", ["issuer_id", "crl_shard", "not_after", "serial"], unique=False)


def downgrade() -> None:
    """Remove them."""
    with op.batch_alter_table("revocation", schema=None) as batch_op:
        batch_op.drop_index("ix_revocation_shard")
        batch_op.drop_index("ix_revocation_ledger")
        batch_op.drop_index("ix_revocation_expiry")
        batch_op.drop_column("ledger_index")
        batch_op.drop_column("crl_shard")
    with op.batch_alter_table("intent", schema=None) as batch_op:
        batch_op.drop_column("crl_shard")
    with op.batch_alter_table("certificate", schema=None) as batch_op:
        batch_op.drop_index("ix_certificate_spki")
        batch_op.drop_index("ix_certificate_ledger")
        batch_op.drop_column("ocsp")
        batch_op.drop_column("crl_shard")
    op.drop_table("revocation_job")
    op.drop_table("ocsp_response")
    op.drop_table("ocsp_responder")
    op.drop_table("crl_part")
    op.drop_table("crl")
