"""Secrets that all replicas share: for now those of the callback URLs."""

from peewee import BlobField, Model, TextField


class SecretRow(Model):
    name = TextField(primary_key=True)
    value = BlobField()

    class Meta:
        table_name = "secrets"
        legacy_table_names = False


def up(migrator, db):
    with db.bind_ctx([SecretRow]):
        db.create_tables([SecretRow])


def down(migrator, db):
    with db.bind_ctx([SecretRow]):
        db.drop_tables([SecretRow])
