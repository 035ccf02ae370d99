"""TLS of the gRPC server, with certificates that are read again when their files change.

gRPC asks for the certificates before each handshake, on its own thread, so a client gets new
ones as soon as they are there. The event loop logs and shows what has changed.
"""

import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import grpc
import structlog

from service.certificates import (
    CertificateError,
    Certificates,
    format_time,
    read_authorities,
    read_pair,
)
from service.files import stamp_of
from service.listen import StartError
from service.metrics import Metrics
from service.settings import Settings

log = structlog.get_logger()


class WatchedCertificates:
    """Certificates in files. If the newest content cannot be used, the last good one is kept.

    Attributes:
        current: The certificates.
    """

    def __init__(
        self, name: str, paths: Iterable[Path], read: Callable[[float], Certificates]
    ) -> None:
        """Read the files.

        Args:
            name: What the log and the metrics call them.
            paths: The files.
            read: Reads and checks them, given the current time.

        Raises:
            CertificateError: They cannot be used.
            OSError: A file cannot be read.
        """
        self._name = name
        self._paths = tuple(paths)
        self._read = read
        self._stamps = self._read_stamps()
        self._problem = self._reported_problem = ""
        self.current = self._reported = read(time.time())

    def refresh(self, *, retry: bool) -> None:
        """Read the files if they have changed.

        Args:
            retry: Also if they have not, but could not be used.
        """
        try:
            stamps = self._read_stamps()
            if stamps == self._stamps and not (retry and self._problem):
                return
            self._stamps = stamps
            certificates = self._read(time.time())
            is_whole = stamps == self._read_stamps()
        except (OSError, CertificateError) as error:
            self._problem = getattr(error, "strerror", None) or str(error)
            return
        self._problem = "" if is_whole else "is being written"
        if is_whole:
            self.current = certificates

    def report(self, metrics: Metrics) -> None:
        """Log and show what has changed since the last report."""
        if self.current is not self._reported:
            self._reported = self.current
            expiry = format_time(self.current.expiry_time)
            log.info("certificates reloaded", file=self._name, expires=expiry)
        if self._problem and self._problem != self._reported_problem:
            log.warning(
                "the old certificates are still used, as their files are invalid",
                file=self._name,
                problem=self._problem,
            )
        self._reported_problem = self._problem
        metrics.show_config_problems(self._name, int(bool(self._problem)))

    def _read_stamps(self) -> list[object]:
        return [stamp_of(path) for path in self._paths]


class ServerTls:
    """The certificate of the server and, if clients need certificates, those of their authorities.

    Two threads refresh them: one of gRPC, and the event loop.
    """

    def __init__(
        self, pair: WatchedCertificates, authorities: WatchedCertificates | None, metrics: Metrics
    ) -> None:
        self._watched = [pair, authorities] if authorities else [pair]
        self._metrics = metrics
        self._lock = threading.Lock()
        self._served = self._current()
        metrics.show_tls_expiry(self._seconds_left)
        self._report()

    def credentials(self) -> grpc.ServerCredentials:
        """Return credentials that follow the files."""
        return grpc.dynamic_ssl_server_credentials(
            _configuration(*self._served),
            self._changed,  # type: ignore[arg-type] # grpc documents None, but not in its type
            len(self._watched) > 1,
        )

    async def run_once(self) -> None:
        """Report changes, and look again at files that could not be used."""
        with self._lock:
            for watched in self._watched:
                watched.refresh(retry=True)
            self._report()

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Return the certificates for the next handshakes; None if they are the same as before."""
        with self._lock:
            for watched in self._watched:
                watched.refresh(retry=False)
            if (current := self._current()) == self._served:
                return None
            self._served = current
            return _configuration(*current)

    def _current(self) -> list[Certificates]:
        return [watched.current for watched in self._watched]

    def _report(self) -> None:
        for watched in self._watched:
            watched.report(self._metrics)

    def _seconds_left(self) -> float:
        return min(each.expiry_time for each in self._current()) - time.time()


def _configuration(
    pair: Certificates, authorities: Certificates | None = None
) -> grpc.ServerCertificateConfiguration:
    cert, key = pair.contents
    roots = authorities.contents[0] if authorities else None
    return grpc.ssl_server_certificate_configuration([(key, cert)], roots)


def server_tls(settings: Settings, metrics: Metrics) -> ServerTls | None:
    """Return the TLS of the server; None without certificates.

    Raises:
        StartError: The files have changed since the settings were checked, and cannot be used.
    """
    cert, key, ca = settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file
    if cert is None or key is None:
        return None
    try:
        pair = WatchedCertificates("tls_cert", (cert, key), partial(read_pair, cert, key))
        authorities = ca and WatchedCertificates(
            "tls_client_ca", (ca,), partial(read_authorities, ca)
        )
        return ServerTls(pair, authorities or None, metrics)
    except (OSError, CertificateError) as error:
        raise StartError(f"TLS_CERT_FILE, TLS_KEY_FILE, TLS_CLIENT_CA_FILE: {error}") from error
