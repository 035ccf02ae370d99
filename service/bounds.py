"""Limits that no setting changes, as one value that the composition root passes on."""

from dataclasses import dataclass, field

from providers.kie.http import Timeouts
from service.agenda import AgendaTimes
from service.catalogue_refresh import RefreshTimes
from service.copy_verdicts import CopyBounds
from service.feed import FeedTimes
from service.files import RECHECK_SECONDS
from service.follow import FollowTimes
from service.http import HttpLimits
from service.jobs import JobTimes
from service.leases import LeaseTimes
from service.limits import LimitBounds
from service.purge import PurgeBounds
from service.results.source import SourceTimes
from service.schedule import Overdue
from service.timeouts import TimeoutBounds
from service.uploads import UploadPace
from service.verdicts import VerdictBounds
from service.vitals import VitalTimes
from storage.engine import DatabaseTimeouts


@dataclass(frozen=True, slots=True)
class Grace:
    """How long the steps of a shutdown may take; paid requests get the rest of SHUTDOWN_SECONDS.

    Attributes:
        calls_seconds: For calls in progress, and for polls.
        cancelled_calls_seconds: For the calls that are then cancelled.
        closing_seconds: For closing the database, which is kept free at the end.
        database_seconds: For closing a database that is slow; then it is abandoned.
        traces_seconds: For sending the last traces, if traces are exported; then they are lost.
    """

    calls_seconds: float = 3.0
    cancelled_calls_seconds: float = 1.0
    closing_seconds: float = 0.3
    database_seconds: float = 0.8
    traces_seconds: float = 0.3


@dataclass(frozen=True, slots=True)
class PollerBounds:
    """The limits of the poller, each in the module that keeps to it."""

    agenda: AgendaTimes = field(default_factory=AgendaTimes)
    leases: LeaseTimes = field(default_factory=LeaseTimes)
    limits: LimitBounds = field(default_factory=LimitBounds)
    jobs: JobTimes = field(default_factory=JobTimes)
    copies: CopyBounds = field(default_factory=CopyBounds)
    verdicts: VerdictBounds = field(default_factory=VerdictBounds)
    timeouts: TimeoutBounds = field(default_factory=TimeoutBounds)
    overdue: Overdue = field(default_factory=Overdue)


@dataclass(frozen=True, slots=True)
class UpkeepBounds:
    """The limits of what runs next to the poller.

    Attributes:
        vitals: For what health checks report.
        follow: For following other processes.
        feed: For streams of all changes.
        purge: For deleting old tasks.
        catalogue: For reading the provider's catalogue.
    """

    vitals: VitalTimes = field(default_factory=VitalTimes)
    follow: FollowTimes = field(default_factory=FollowTimes)
    feed: FeedTimes = field(default_factory=FeedTimes)
    purge: PurgeBounds = field(default_factory=PurgeBounds)
    catalogue: RefreshTimes = field(default_factory=RefreshTimes)


@dataclass(frozen=True, slots=True)
class Bounds:
    """The limits; tests shorten them.

    Attributes:
        handshake_seconds: For the TLS or HTTP/2 handshake of a connection.
        http: For the clients of the HTTP ports.
        uploads: For the speed of callers.
        kie: For requests to the provider.
        source: For downloads of results.
        database: For a database that is busy or does not answer.
        grace: For a shutdown.
        poller: For the poller.
        upkeep: For what runs next to it.
        recheck_seconds: The time between two checks of the files of tokens and limits.
    """

    handshake_seconds: float = 10.0
    http: HttpLimits = field(default_factory=HttpLimits)
    uploads: UploadPace = field(default_factory=UploadPace)
    kie: Timeouts = field(default_factory=Timeouts)
    source: SourceTimes = field(default_factory=SourceTimes)
    database: DatabaseTimeouts = field(default_factory=DatabaseTimeouts)
    grace: Grace = field(default_factory=Grace)
    poller: PollerBounds = field(default_factory=PollerBounds)
    upkeep: UpkeepBounds = field(default_factory=UpkeepBounds)
    recheck_seconds: float = RECHECK_SECONDS


BOUNDS = Bounds()
