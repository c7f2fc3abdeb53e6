"""A run may wait until another has succeeded."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("waits_for", sa.Text(), nullable=True))
    op.create_foreign_key("runs_waits_for_fkey", "runs", "runs", ["waits_for"], ["id"])
    op.create_index("runs_that_wait", "runs", ["waits_for"], postgresql_where=sa.text("waits_for IS NOT NULL"))


def downgrade() -> None:
    op.drop_index("runs_that_wait", "runs")
    op.drop_column("runs", "waits_for")
