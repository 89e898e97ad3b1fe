"""What the sweep of ended orders and authorizations finds them by."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add it. Orders that are there are looked at once by the first sweeps, which is sooner done than to change every row."""
    op.add_column("acme_order", sa.Column("retained_from", sa.BigInteger(), server_default="0", nullable=False))
    op.create_index("ix_acme_order_retained", "acme_order", ["retained_from"])
    op.create_index("ix_acme_authorization_expires", "acme_authorization", ["expires"])


def downgrade() -> None:
    """Remove it."""
    op.drop_index("ix_acme_authorization_expires", "acme_authorization")
    op.drop_index("ix_acme_order_retained", "acme_order")
    op.drop_column("acme_order", "retained_from")
