"""`python -m client` in a checkout: the command line, not installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from kie_generation.cli import main

main()
