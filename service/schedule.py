"""When to ask for a task again."""

import random

# (up to this age in seconds, times the interval); recorded images took 12-112 s, videos 56-313 s
# (kie-api.md 7).
FACTORS = ((30.0, 1.0), (120.0, 3.0))
USUAL_FACTOR = 5.0  # later, while most tasks of the model are still under way
LONGEST_FACTOR = 8.0
JITTER = 0.1


def poll_delay(
    interval_seconds: float, age_seconds: float, usual_seconds: float, setbacks: int
) -> float:
    """Return the seconds until the next poll: the interval at least, more with age and setbacks.

    Args:
        interval_seconds: The shortest time between two polls of one task.
        age_seconds: Since the provider accepted the task.
        usual_seconds: How long most tasks of its model take at the most.
        setbacks: How many times in a row the provider could not be asked.
    """
    factor = min(_age_factor(age_seconds, usual_seconds) * 2.0 ** min(setbacks, 8), LONGEST_FACTOR)
    return interval_seconds * factor * random.uniform(1, 1 + JITTER)


def _age_factor(age_seconds: float, usual_seconds: float) -> float:
    for up_to, factor in FACTORS:
        if age_seconds < up_to:
            return factor
    return USUAL_FACTOR if age_seconds < usual_seconds else LONGEST_FACTOR
