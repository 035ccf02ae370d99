"""The provider's models, and the parameters of tasks with the defaults that it requires."""

from peewee import DoubleField, IntegerField, Model, TextField


class ModelRow(Model):
    id = TextField(primary_key=True)
    title = TextField()
    provider = TextField()
    task_types = TextField()
    price_text = TextField()
    path = TextField()
    input_schema = TextField(null=True)
    listed = IntegerField()
    retired_time = DoubleField(null=True)
    refresh_time = DoubleField(null=True)
    schema_time = DoubleField(null=True)
    change_time = DoubleField()

    class Meta:
        table_name = "models"
        legacy_table_names = False


def up(migrator, db):
    with db.bind_ctx([ModelRow]):
        db.create_tables([ModelRow])
    blob = "BYTEA" if db.for_update else "BLOB"
    db.execute_sql(f'ALTER TABLE "tasks" ADD COLUMN "filled_params" {blob}')


def down(migrator, db):
    migrator.migrate(migrator.drop_column("tasks", "filled_params"))
    with db.bind_ctx([ModelRow]):
        db.drop_tables([ModelRow])
