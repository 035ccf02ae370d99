"""How long tasks have been held survives a restart."""

from peewee import DoubleField, Model, TextField


class HoldRow(Model):
    name = TextField(primary_key=True)
    since = DoubleField()
    refused_time = DoubleField()

    class Meta:
        table_name = "holds"
        legacy_table_names = False


def up(migrator, db):
    with db.bind_ctx([HoldRow]):
        db.create_tables([HoldRow])


def down(migrator, db):
    with db.bind_ctx([HoldRow]):
        db.drop_tables([HoldRow])
