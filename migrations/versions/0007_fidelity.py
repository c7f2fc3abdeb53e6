"""An attempt that resumes reports how exactly it does."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("leases", sa.Column("fidelity", sa.Text(), nullable=True))
    op.add_column(
        "leases", sa.Column("fidelity_reasons", JSONB(), nullable=False, server_default=sa.text("'[]'::jsonb"))
    )


def downgrade() -> None:
    op.drop_column("leases", "fidelity_reasons")
    op.drop_column("leases", "fidelity")
