"""Alembic's entry: migrates over the connection it is handed by `router.tenancy.database.upgrade`."""

from alembic import context

from router.tenancy.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
