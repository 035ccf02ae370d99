"""The hostile driver: attacks on a real server process while another caller works.

    module                  what it holds
    drill                   an attack from start to end, and what must be true during it
    processes               the service, the simulator and the attacker as processes
    bob                     the caller who works, and what he observes
    contention              the load of other processes on the machine
    attacker                the attacker's process: `python -m tests.hostile.attacker`
    target                  what an attacker knows of the service, and its gRPC calls
    frames                  HTTP/2 that a well-behaved client never sends
    attacks.*               the attacks; each is bounded in count and time

Each test runs in a short form with `make test`, and with larger counts in `make torture`. To attack
another version of the service, name the folder of its checkout:

    HOSTILE_SERVICE_ROOT=../old .venv/bin/python -m pytest -n 0 -s tests/hostile
"""
