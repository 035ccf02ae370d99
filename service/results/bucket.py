"""An object store as a storage, through obstore: S3, Google Cloud Storage or Azure Blob Storage."""

import asyncio
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, S3Store

from providers.proxies import Proxies
from providers.urls import split_http_url
from service.results.content import Content
from service.results.errors import MissingError, StoreError, store_words
from service.results.places import READ_BYTES, Place

if TYPE_CHECKING:
    from obstore.store import ClientConfig

STORES: dict[str, Any] = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}
# A copy holds about three parts in memory. S3 takes parts of at least 5 MiB, and 10,000 of them.
PART_BYTES = 5 << 20
PARTS_IN_FLIGHT = 2
DELETES_IN_FLIGHT = 16
# The variables that name another endpoint than the usual one, which comes last.
ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "https://s3.amazonaws.com"),
    "gs": ("https://storage.googleapis.com",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT", "https://blob.core.windows.net"),
}
# The codes for a bucket, or a container, that is missing as a whole.
NO_BUCKET = re.compile("NoSuchBucket|ContainerNotFound")
# Where there is no proxy. Without these options obstore would read the proxy variables itself.
NO_PROXY = {"proxy_url": "http://127.0.0.1:9", "proxy_excludes": "*,0.0.0.0/0,::/0"}
# Never reached through a proxy: loopback, and where machines get their credentials.
DIRECT = "localhost,127.0.0.0/8,::1,169.254.0.0/16,fd00:ec2::254"
RETRIES: Any = {"max_retries": 3, "retry_timeout": timedelta(seconds=30)}


class Bucket:
    """A bucket, or a container, with a prefix. Its credentials come from the environment.

    Attributes:
        place: Where it is.
        store: It as obstore knows it.
    """

    def __init__(self, place: Place) -> None:
        """Open it; nothing is sent.

        Raises:
            StoreError: The environment does not say how.
        """
        self.place = place
        with _store_errors():
            self.store = STORES[place.scheme](
                place.bucket,
                prefix=place.path or None,
                client_options=client_options(place.scheme, os.environ),
                retry_config=RETRIES,
            )

    async def put(self, key: str, pieces: AsyncIterator[bytes], content: Content) -> None:
        """Upload in parts; the object appears when the upload is completed."""
        attributes: dict[str, str] = {"Content-Type": content.mime_type}
        if content.is_attachment:
            attributes["Content-Disposition"] = "attachment"
        with _store_errors():
            await obstore.put_async(
                self.store,
                key,
                pieces,
                attributes=attributes,
                use_multipart=True,
                chunk_size=PART_BYTES,
                max_concurrency=PARTS_IN_FLIGHT,
            )

    async def read(self, key: str, start: int, size: int) -> AsyncGenerator[bytes, None]:
        """Yield the content by ranges."""
        while start < size:
            end = min(size, start + READ_BYTES)
            with _store_errors():
                found = await obstore.get_range_async(self.store, key, start=start, end=end)
            piece = found.to_bytes()
            del found  # a second copy of the same bytes
            start = end
            yield piece

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete one by one: not every store has a request for many."""
        turns = asyncio.Semaphore(DELETES_IN_FLIGHT)

        async def delete(key: str) -> None:
            async with turns:
                try:
                    with _store_errors():
                        await obstore.delete_async(self.store, key)
                except MissingError:
                    pass

        await asyncio.gather(*map(delete, keys))

    async def sign(self, key: str, seconds: int) -> str | None:
        """Return a link, which is made here without a request, or with one for its credentials."""
        with _store_errors():
            return await obstore.sign_async(self.store, "GET", key, timedelta(seconds=seconds))

    async def tidy(self) -> None:
        """Do nothing: a life-cycle rule of the bucket removes the parts of interrupted uploads."""


def client_options(scheme: str, environment: Mapping[str, str]) -> "ClientConfig":
    """Return how to connect. Proxies follow the same rules as for all other requests.

    Raises:
        StoreError: The environment names no usable endpoint.
    """
    endpoint = _endpoint(scheme, environment)
    options: ClientConfig = {
        "connect_timeout": timedelta(seconds=10),
        "timeout": timedelta(seconds=60),
        "user_agent": "kie-generation-service",
        **_proxy(endpoint, environment),  # type: ignore[typeddict-item] # a plain dictionary
    }
    if urlsplit(endpoint).scheme == "http":
        options["allow_http"] = True
    if certificates := environment.get("SSL_CERT_FILE"):
        options["root_certificate"] = Path(certificates).read_bytes()
    return options


def _endpoint(scheme: str, environment: Mapping[str, str]) -> str:
    """Return where requests go.

    Raises:
        StoreError: A variable contains no URL; obstore would panic at the first request.
    """
    *variables, usual = ENDPOINTS[scheme]
    given = {name: environment[name] for name in variables if name in environment}
    for name, value in given.items():
        if split_http_url(value) is None:
            raise StoreError(f"{name} must be an http or https URL, or not be set")
    return next(iter(given.values()), usual)


def _proxy(endpoint: str, environment: Mapping[str, str]) -> Mapping[str, str]:
    proxy = Proxies(environment).for_url(endpoint)
    if proxy is None:
        return NO_PROXY
    direct = environment.get("no_proxy", environment.get("NO_PROXY", ""))
    return {"proxy_url": proxy, "proxy_excludes": f"{DIRECT},{direct}".rstrip(",")}


@contextmanager
def _store_errors() -> Iterator[None]:
    """Turn errors of obstore into StoreError; those of a source that it reads are passed on."""
    try:
        yield
    except FileNotFoundError as error:
        words = store_words(error)
        raise (StoreError if NO_BUCKET.search(words) else MissingError)(words) from None
    except (BaseError, OSError) as error:
        raise StoreError(store_words(error)) from None
