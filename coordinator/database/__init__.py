"""The coordinator's Postgres: connections, the schema, migrations, and an embedded server."""
