"""`python -m service.ready`: succeed if the service is ready, as the health check of the image.

It reads ADMIN_ADDRESS as the service does, and succeeds if the admin port is off, as nothing can be
asked then. It imports as little as possible, because it runs every few seconds; http.client uses no
proxy, whatever the environment says.
"""

import os
import sys
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException

DEFAULT_ADDRESS = "127.0.0.1:9090"
TIMEOUT_SECONDS = 2.0


def main() -> str | None:
    """Return why the service is not ready; None if it is."""
    address = os.environ.get("ADMIN_ADDRESS", DEFAULT_ADDRESS)
    return _why_not_ready(address) if address else None


def _why_not_ready(address: str) -> str | None:
    # 0.0.0.0 and [::] need no translation: Linux connects to loopback for both.
    try:
        connection = HTTPConnection(address, timeout=TIMEOUT_SECONDS)
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        text = response.read(200).decode(errors="replace").strip()
    except (OSError, HTTPException) as error:
        return f"{address}: {error}"
    return None if response.status == HTTPStatus.OK else text


if __name__ == "__main__":
    sys.exit(main())
