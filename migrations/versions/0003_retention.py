"""Checkpoints are deleted by rule: which are pinned, which will be deleted and why, which copies are being removed."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("checkpoints", sa.Column("pinned", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.add_column("checkpoints", sa.Column("pin_reason", sa.Text(), server_default=sa.text("''"), nullable=False))
    op.add_column("checkpoints", sa.Column("remove_time", sa.DateTime(timezone=True), nullable=True))
    op.add_column("checkpoints", sa.Column("remove_reason", sa.Text(), server_default=sa.text("''"), nullable=False))
    op.add_column("checkpoint_copies", sa.Column("remove_time", sa.DateTime(timezone=True), nullable=True))
    # Not CONCURRENTLY: that waits for the replicas which wait to migrate. These tables are small, a moment is enough.
    op.create_index("checkpoints_kept", "checkpoints", ["run_id"], postgresql_where=sa.text("remove_time IS NULL"))
    op.create_index(
        "copies_to_remove", "checkpoint_copies", ["uri"], postgresql_where=sa.text("remove_time IS NOT NULL")
    )


def downgrade() -> None:
    op.drop_index("copies_to_remove", table_name="checkpoint_copies")
    op.drop_index("checkpoints_kept", table_name="checkpoints")
    op.drop_column("checkpoint_copies", "remove_time")
    for name in ("remove_reason", "remove_time", "pin_reason", "pinned"):
        op.drop_column("checkpoints", name)
