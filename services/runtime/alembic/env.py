"""Alembic's entry point, one for all services: runs on the connection that `services.runtime.migrations` opened."""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    version_table_schema=context.config.attributes["schema"],
)
with context.begin_transaction():
    context.run_migrations()
