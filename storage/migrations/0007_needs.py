"""What a process must know to work on a task, if that is not the task's model."""


def up(migrator, db):
    db.execute_sql('ALTER TABLE tasks ADD COLUMN "needs" TEXT')


def down(migrator, db):
    db.execute_sql("ALTER TABLE tasks DROP COLUMN needs")
