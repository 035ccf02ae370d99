"""PostgreSQL: its connections, its migrations, and its engine."""
