"""Certificates that openssl makes."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

import grpc

NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=30)


@dataclass(frozen=True)
class Authority:
    """A certificate authority in a folder, and what it has signed."""

    folder: Path

    @classmethod
    def make(cls, folder: Path, *names: str) -> "Authority":
        """Make an authority that has signed a certificate for each name."""
        folder.mkdir()
        made = cls(folder)
        files = ("-keyout", made.key("ca"), "-out", made.cert("ca"))
        openssl("req", "-x509", *NEW_KEY, "-subj", "/CN=the tests", "-days", "2", *files)
        for name in names:
            made.sign(name)
        return made

    def sign(self, name: str) -> None:
        """Make a key and a certificate for this machine's loopback."""
        request, extensions = self.folder / f"{name}.csr", self.folder / f"{name}.ext"
        extensions.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
        files = ("-keyout", self.key(name), "-out", request)
        openssl("req", "-new", *NEW_KEY, "-subj", f"/CN={name}", *files)
        by = ("-CA", self.cert("ca"), "-CAkey", self.key("ca"), "-CAcreateserial", "-days", "2")
        openssl(
            "x509", "-req", "-in", request, *by, "-extfile", extensions, "-out", self.cert(name)
        )

    def cert(self, name: str) -> Path:
        return self.folder / f"{name}.pem"

    def key(self, name: str) -> Path:
        return self.folder / f"{name}.key"

    def credentials(self, client: "tuple[Authority, str] | None") -> grpc.ChannelCredentials:
        """Return what a client needs that trusts this authority."""
        root = self.cert("ca").read_bytes()
        if client is None:
            return grpc.ssl_channel_credentials(root)
        signer, name = client
        key, cert = signer.key(name).read_bytes(), signer.cert(name).read_bytes()
        return grpc.ssl_channel_credentials(root, key, cert)
