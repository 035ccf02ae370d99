"""The parts of the simulator; providers/kie/simulator.py is its entry and names them all."""
