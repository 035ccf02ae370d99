"""Certificates that openssl makes, and the ways in which their files are replaced."""

import shutil
import subprocess
from collections.abc import Callable, Sequence
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

    def sign(
        self,
        name: str,
        alternatives: str = "IP:127.0.0.1,IP:::1,DNS:localhost",
        new_key: Sequence[str] = NEW_KEY,
    ) -> None:
        """Make a key and a certificate, by default for this machine's loopback."""
        request, extensions = self.folder / f"{name}.csr", self.folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName={alternatives}\n")
        files = ("-keyout", self.key(name), "-out", request)
        openssl("req", "-new", *new_key, "-subj", f"/CN={name}", *files)
        by = ("-CA", self.cert("ca"), "-CAkey", self.key("ca"), "-CAcreateserial", "-days", "2")
        openssl(
            "x509", "-req", "-in", request, *by, "-extfile", extensions, "-out", self.cert(name)
        )

    def expire(self, name: str) -> None:
        """Replace a certificate by one that has expired, with the same key."""
        made = {"database": "index.txt", "new_certs_dir": ".", "serial": "expired.srl"}
        config = self.folder / "ca.cnf"
        policy = "default_md=sha256\npolicy=any\n[any]\ncommonName=supplied\n"
        places = "".join(f"{option}={self.folder / place}\n" for option, place in made.items())
        config.write_text(f"[ca]\ndefault_ca=these\n[these]\n{places}{policy}")
        (self.folder / "index.txt").touch()
        request = self.folder / f"{name}.csr"
        openssl("req", "-new", "-key", self.key(name), "-subj", f"/CN={name}", "-out", request)
        dates = ("-startdate", "20200101000000Z", "-enddate", "20200102000000Z")
        by = ("-cert", self.cert("ca"), "-keyfile", self.key("ca"), "-rand_serial")
        files = ("-in", request, "-out", self.cert(name))
        openssl("ca", "-batch", "-config", config, "-notext", *by, *dates, *files)

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


# --- replaced files ---

Replace = Callable[[Path, dict[str, Path]], None]


def mounted_files(authority: Authority, name: str) -> dict[str, Path]:
    """Return the files of a secret as cert-manager makes it, by their names in the folder."""
    return {
        "tls.crt": authority.cert(name),
        "tls.key": authority.key(name),
        "ca.crt": authority.cert("ca"),
    }


def write_in_place(folder: Path, files: dict[str, Path]) -> None:
    for name, file in files.items():
        (folder / name).write_bytes(file.read_bytes())


def rename(folder: Path, files: dict[str, Path]) -> None:
    for name, file in files.items():
        new = folder / f"{name}.new"
        shutil.copyfile(file, new)
        new.replace(folder / name)


def swap_links(folder: Path, files: dict[str, Path]) -> None:
    """Replace all files at once, as Kubernetes does: they are links through a link to a folder."""
    version = folder / f"..{len(list(folder.iterdir()))}"
    version.mkdir()
    for name, file in files.items():
        shutil.copyfile(file, version / name)
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(Path("..data", name))
    (folder / "..new").symlink_to(version.name)
    (folder / "..new").rename(folder / "..data")
