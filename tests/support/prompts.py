"""Prompts that the simulator obeys."""

STUCK_PROMPT = "a cat [sim:stuck]"
STUCK = {"imagen4": {"prompt": STUCK_PROMPT}}  # the parameters of a task that never ends
