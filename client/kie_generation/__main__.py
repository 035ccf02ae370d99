"""`python -m client`."""

import os
import sys

# gRPC reads this when it is imported, and would log between our lines.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

try:
    from client.cli import main

    main()
except KeyboardInterrupt:  # outside of a command, which says how to go on
    sys.exit(130)
