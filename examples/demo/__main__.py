"""`python -m examples.demo`."""

import os
import sys

# gRPC reads this when it is imported. Its log lines would appear between those of the program.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

try:
    from examples.demo.show import main

    sys.exit(main())
except KeyboardInterrupt:  # also during the imports
    print("Interrupted.")  # noqa: T201
    sys.exit(130)
