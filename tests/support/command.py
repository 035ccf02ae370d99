"""Commands of the client, as processes."""

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from typing import Any

from tests.support.paths import ROOT

NOWHERE = "127.0.0.1:1"
DEAD_PROXY = dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy"), "http://127.0.0.1:9")


@dataclass(frozen=True)
class Ran:
    """What a finished command left behind."""

    code: int | None
    out: str
    err: str

    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]

    def error(self) -> dict[str, Any]:
        error = json.loads(self.err.splitlines()[-1])["error"]
        assert isinstance(error, dict)
        return error


async def start(
    address: str, *arguments: str, stdout: int = asyncio.subprocess.PIPE, **env: str
) -> asyncio.subprocess.Process:
    inherited = {name: value for name, value in os.environ.items() if "GENERATION_" not in name}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "client",
        *arguments,
        cwd=ROOT,
        env={**inherited, "GENERATION_ADDRESS": address, "GRPC_VERBOSITY": "NONE", **env},
        stdin=asyncio.subprocess.PIPE,
        stdout=stdout,
        stderr=asyncio.subprocess.PIPE,
    )


async def finish(process: asyncio.subprocess.Process, stdin: bytes = b"") -> Ran:
    out, err = await asyncio.wait_for(process.communicate(stdin), 30)
    assert b"Traceback" not in err
    return Ran(process.returncode, (out or b"").decode(), err.decode())


async def command(address: str, *arguments: str, stdin: bytes = b"", **how: Any) -> Ran:
    return await finish(await start(address, *arguments, **how), stdin)
