"""`python -m tests.hostile.attacker MODULE:FUNCTION TARGET`: one attack, as a process.

It attacks when a line arrives on stdin, prints the outcome as a line of JSON, and keeps its
connections open until stdin ends, so that the server can be stopped during the attack.
"""

import asyncio
import importlib
import json
import os
import resource
import sys

import uvloop

from tests.hostile.target import Attack, Target

NICENESS = 10  # the attacker must not take the processors from the service or the other caller
ATTACK_SECONDS_MAX = 150.0
HOLD_SECONDS_MAX = 60.0


async def run(attack: Attack, target: Target) -> None:
    """Attack on request, report the outcome, and keep everything open until stdin ends."""
    loop = asyncio.get_running_loop()
    stdin = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)
    if not await stdin.readline():
        return
    try:
        async with asyncio.timeout(ATTACK_SECONDS_MAX):
            outcome = await attack(target)
    except Exception as error:  # noqa: BLE001 - the drill reports it
        outcome = {f"{type(error).__name__}: {error}": 1}
    print(json.dumps(outcome), flush=True)  # noqa: T201
    async with asyncio.timeout(HOLD_SECONDS_MAX):
        await stdin.read()


def main(name: str, target: str) -> None:
    """Run the named attack."""
    os.nice(NICENESS)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    module, _, function = name.partition(":")
    attack = getattr(importlib.import_module(module), function)
    uvloop.run(run(attack, Target.from_json(target)))


if __name__ == "__main__":
    main(*sys.argv[1:])
