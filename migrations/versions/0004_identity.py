"""A database has its identity from the beginning, so that a copy of it, however early, is recognised as a copy."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """UPDATE deployment
           SET system_identifier = (SELECT system_identifier::text FROM pg_control_system()),
               database_oid = (SELECT oid::bigint FROM pg_database WHERE datname = current_database()),
               timeline = ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::bigint
           WHERE system_identifier IS NULL"""
    )


def downgrade() -> None:
    """What it knows it may keep."""
