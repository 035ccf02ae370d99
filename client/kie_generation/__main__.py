"""`python -m kie_generation`: the command line."""

from kie_generation.cli import main

main()
