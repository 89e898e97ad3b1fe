"""Certificates by their end, so that those that end soon are counted without looking at all of them."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add it."""
    op.create_index("ix_certificate_expiry", "certificate", ["not_after"])


def downgrade() -> None:
    """Remove it."""
    op.drop_index("ix_certificate_expiry", table_name="certificate")
