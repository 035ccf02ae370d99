"""A simulator of Kie.ai, for development, demonstrations and tests.

    python -m providers.kie.simulator --port 8099

One port serves the API host, the upload host and the media hosts, so a Kie client needs nothing
but its two base URLs changed. It answers in the shapes seen in recorded traffic, enforces Kie's
limits, and injects faults on request: see docs/simulator.md.

    module        what it holds
    simulator     starting, stopping, the Python API
    __main__      the command line; options: its options
    settings      everything that can be set
    facts         the published facts of all models
    models        names, families, prices, durations
    orders        what an order is, and those of Veo and Midjourney; rules: the rules of fields
    jobs          orders of the jobs API; inputs: the check of an input by published facts
    tasks         the course of a task; book: the tasks that are kept
    records       records and callbacks as seen from outside
    faults        what may go wrong, where and how often
    exact         messages of any shape, byte for byte
    callbacks     sending callbacks
    account       the account: tasks, counters
    ledger        its money
    limits        the limits on requests; windows: how requests are counted
    wire          envelopes, bounded bodies, spoiled answers
    api           handlers of the API host
    catalogue     handlers of the catalogue API; schemas: the documents it sends
    results       handlers of the media host
    uploads       handlers of the upload host
    files         the uploaded files
    addresses     ports that earlier links name
    control       handlers under /simulator/
    media, sound  sample results; lettering: the words on images
"""

from providers.kie.simulator.faults import FaultRule, parse_fault
from providers.kie.simulator.settings import SimulatorSettings
from providers.kie.simulator.simulator import Simulator

__all__ = ["FaultRule", "Simulator", "SimulatorSettings", "parse_fault"]
