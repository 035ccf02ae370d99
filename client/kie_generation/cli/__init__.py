"""The command line, `kie-generation`. It needs the packages of the extra `cli`."""

import os
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line and exit."""
    # gRPC reads this when it is imported. Its log lines would appear between those of the program.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        from kie_generation.cli import app  # noqa: PLC0415 - after the line above

        app.main()
    except ModuleNotFoundError as error:
        if error.name not in ("rich", "typer"):
            raise
        sys.exit(
            f"The command line needs the package {error.name!r}. Install it with\n"
            "  pip install 'kie-generation-client[cli]'"
        )
    except KeyboardInterrupt:  # outside of a command, which says how to continue
        sys.exit(130)
