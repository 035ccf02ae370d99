"""What is measured of the streams of all changes."""

from collections.abc import Callable

from service.resume_token import CAUSES
from service.series import MetricFactory


class FeedMetrics:
    """The metrics of WatchTasks."""

    def __init__(self, make: MetricFactory) -> None:
        self._streams = make.gauge("generation_change_streams_open", "Open streams of WatchTasks")
        self._lag = make.gauge(
            "generation_change_lag_seconds", "The age of the oldest change that was not sent yet"
        )
        self._pages = make.counters(
            "generation_change_pages_read",
            "Pages of changes that were read, for all streams or for one that catches up",
            "streams",
        )
        self._expired = make.counters(
            "generation_resume_tokens_expired",
            "Streams that have to start without a token, by cause",
            "cause",
        )
        for streams in ("all", "one"):
            self._pages[(streams,)].inc(0)
        for cause in CAUSES:
            self._expired[(cause,)].inc(0)

    def observe(self, streams: Callable[[], float], lag_seconds: Callable[[], float]) -> None:
        """Show the number of streams and their lag whenever the metrics are read."""
        self._streams.set_function(streams)
        self._lag.set_function(lag_seconds)

    def page_read(self, streams: str) -> None:
        """Count a page that was read for `all` streams, or for `one`."""
        self._pages[(streams,)].inc()

    def token_expired(self, cause: str) -> None:
        """Count a stream that has to start over, by a key of CAUSES."""
        self._expired[(cause,)].inc()
