"""Completions that the trainer shows: of fixed prompts, and rollouts with their rewards."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "samples",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("lease_id", sa.Uuid(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("completion", sa.Text(), nullable=False),
        sa.Column("rewards", JSONB(), server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("time", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["lease_id"], ["leases.id"], name="samples_lease_id_fkey", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="samples_run_id_fkey", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="samples_pkey"),
    )
    op.create_index("samples_of_run", "samples", ["run_id", "id"])


def downgrade() -> None:
    op.drop_table("samples")
