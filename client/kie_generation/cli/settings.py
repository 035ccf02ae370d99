"""The global options: their declarations, and what they say together."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from kie_generation import __version__
from kie_generation.cli.commands import Invocation
from kie_generation.cli.help import PROGRAM
from kie_generation.cli.output import Output
from kie_generation.tls import Tls


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"{PROGRAM} {__version__}")  # noqa: T201
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option(
        "--version", is_eager=True, callback=_print_version, help="Print the version and exit."
    ),
]
Address = Annotated[
    str,
    typer.Option(
        envvar="GENERATION_ADDRESS",
        metavar="HOST:PORT",
        help="The service. Proxy variables (https_proxy) apply, except for loopback.",
    ),
]
Token = Annotated[
    str | None,
    typer.Option(
        envvar="GENERATION_TOKEN",
        help="The caller's token. Set the variable instead: others can see a command line.",
    ),
]
UseTls = Annotated[
    bool,
    typer.Option("--tls", envvar="GENERATION_TLS", help="Use TLS; the next three imply it."),
]
RootCa = Annotated[
    Path | None,
    typer.Option(
        envvar="GENERATION_CA",
        metavar="PEM",
        help="The authority that signed the server's certificate.",
    ),
]
ClientCert = Annotated[
    Path | None,
    typer.Option(envvar="GENERATION_CERT", metavar="PEM", help="The client's certificate."),
]
ClientKey = Annotated[
    Path | None, typer.Option(envvar="GENERATION_KEY", metavar="PEM", help="Its private key.")
]
Json = Annotated[
    bool,
    typer.Option("--json", help="One JSON object per line, also for errors. Works anywhere."),
]
Timeout = Annotated[
    float, typer.Option(min=0.1, help="Seconds for a call and its retries; uploads have 600.")
]
GiveUpAfter = Annotated[
    float, typer.Option(min=0, help="Seconds for which a stream tries to reconnect.")
]
AllowPrivateAddresses = Annotated[
    bool,
    typer.Option(
        "--allow-private-addresses",
        help="Also follow redirects of results to private addresses and http URLs.",
    ),
]


@dataclass(frozen=True)
class Settings:
    """The values of the global options, and the invocation that hints repeat."""

    address: str
    token: str | None = field(repr=False)
    tls: Tls | None
    timeout_seconds: float
    give_up_after_seconds: float | None
    allow_private_addresses: bool
    output: Output
    invocation: Invocation


def tls_of(ca: Path | None, cert: Path | None, key: Path | None, *, wanted: bool) -> Tls | None:
    """Return the TLS settings that the options describe; None for plaintext.

    Raises:
        typer.BadParameter: Only one of --cert and --key is given.
    """
    if (cert is None) != (key is None):
        raise typer.BadParameter("--cert and --key must be used together")
    return Tls(ca, cert, key) if wanted or any((ca, cert)) else None
