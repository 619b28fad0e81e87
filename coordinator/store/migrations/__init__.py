"""The registry's schema, revision by revision (alembic). Shipped in the package; coordinator/store/schema.py runs it, never a person."""
