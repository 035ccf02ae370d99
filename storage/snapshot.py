"""What a task consists of at one moment, and what follows from it."""

from typing import NamedTuple

from storage.values import Artifact, Failure, Lane, Stage, Status


class Snapshot(NamedTuple):
    """What is known of a task at one moment. Times are unix seconds.

    A NamedTuple, because `_replace` is five times faster than `dataclasses.replace`.

    Attributes:
        params, filled_params: The serialised ProviderParams as the caller sent them; with defaults.
        needs: What a process must know to work on it; "" is its model.
        of_newer_version: Whether it holds values that this version does not know. Then it is shown,
            and never changed: what is unknown of it is None, or the status PENDING.
        revision: Grows by one with every visible change, from 1.
        accept_time: When the provider accepted it; its age counts from here.
        generated_time: When the provider ended a task whose results are copied; of a late delivery,
            when its results were first seen.
        unknown_time: When the response to its paid request was found to be lost.
        candidate_id: The provider's id that a callback named while that response was missing;
            adopted once the provider's record agrees. Later it shows that the callback has arrived.
        due_time: When a poller must look at it next; None is never. A claim postpones it, so that
            the task is due again if its worker dies.
        setbacks: How many times in a row the provider did not accept it, or a poll or a copy of it
            failed. All polls that fail while the provider does not answer at all count as one.
        version: Grows by one with every save, visible or not: what compare-and-set compares.
        traceparent: The span of the call that created it, in the format of W3C Trace Context.
    """

    id: str
    caller: str
    request_id: str
    prompt_id: str
    model: str
    params: bytes
    create_time: float
    update_time: float
    due_time: float | None
    status: Status = Status.PENDING
    stage: Stage | None = Stage.ACCEPTED
    revision: int = 1
    progress_percent: int | None = None
    artifacts: tuple[Artifact, ...] = ()
    result_json: str = ""
    failure: Failure | None = None
    provider_task_id: str = ""
    credits_consumed: float | None = None
    complete_time: float | None = None
    submit_time: float | None = None
    accept_time: float | None = None
    unknown_time: float | None = None
    candidate_id: str = ""
    setbacks: int = 0
    version: int = 1
    needs: str = ""
    of_newer_version: bool = False
    traceparent: str = ""
    generated_time: float | None = None
    filled_params: bytes = b""

    @property
    def provider_end_time(self) -> float | None:
        """When the provider ended it, if it has: what the provider's URLs expire by."""
        return self.complete_time if self.generated_time is None else self.generated_time

    @property
    def delivery_time(self) -> float:
        """When the provider's URLs of its results became known: they expire by it."""
        if self.generated_time is not None:
            return self.generated_time
        # The results of a FAILED task came with its last change.
        return (None if self.failure else self.complete_time) or self.update_time

    @property
    def ended(self) -> bool:
        """Whether the status is final."""
        return self.status is not Status.PENDING

    @property
    def lane(self) -> Lane | None:
        """The queue in which it waits."""
        if self.due_time is None:
            return None
        if self.ended:
            return Lane.LATE
        if self.stage is Stage.STORING:
            return Lane.STORE
        return Lane.SUBMIT if self.stage is Stage.ACCEPTED else Lane.POLL
