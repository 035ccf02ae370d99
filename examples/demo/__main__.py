"""`python -m client.demo`."""

import os
import sys

# gRPC reads this when it is imported, and would log between our lines.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

try:
    from client.demo.show import main

    sys.exit(main())
except KeyboardInterrupt:  # also while the imports above run
    print("Interrupted.")  # noqa: T201
    sys.exit(130)
