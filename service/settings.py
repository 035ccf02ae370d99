"""The table of settings: environment variables, which service/environment.py reads at start.

`make settings-page` writes docs/settings.md from the docstrings below the fields.
"""

from typing import Any, Literal, Self

from pydantic import (
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from providers.public_address import is_public_url
from service.setting_rules import FROM_FILES, broken_rules
from service.setting_types import (
    Address,
    AddressOrEmpty,
    AtLeastOne,
    Bytes,
    Channel,
    ChannelOrZero,
    Copies,
    Count,
    DatabaseUrl,
    DatabaseUrlFile,
    HeaderToken,
    HeaderTokenFile,
    Hosts,
    HttpUrl,
    LimitsFile,
    Models,
    ReadableFile,
    ResultBytes,
    ResultsUrl,
    Retention,
    Seconds,
    Secret,
    SecretFile,
    Secrets,
    SecretsFile,
    SomeSeconds,
    TokensFile,
    read_secret,
)

MAY_BE_EMPTY = frozenset({"admin_address", "http_address"})
UNKNOWN_WAIT_SECONDS = 900.0


class Settings(BaseSettings):
    """The environment variables.

    An empty variable counts as unset, but turns ADMIN_ADDRESS and HTTP_ADDRESS off.
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    listen_address: Address = "127.0.0.1:50051"
    """Where gRPC is served. An address that other machines can reach needs AUTH_TOKENS_FILE, or
    ALLOW_UNAUTHENTICATED=true."""

    auth_tokens_file: TokensFile | None = None
    """The callers and their tokens; see [Tokens](#tokens). With it, every method except
    `Health.Check` needs a token, or a [certificate](#certificates)."""

    caller_limits_file: LimitsFile | None = None
    """The limits of each caller; see [Limits of callers](#limits-of-callers)."""

    allow_unauthenticated: bool = False
    """Serve an address that other machines can reach without tokens."""

    tls_cert_file: ReadableFile | None = None
    """The certificate of the server, in PEM. Set it together with TLS_KEY_FILE to serve TLS. See
    [Certificates](#certificates)."""

    tls_key_file: ReadableFile | None = None
    """The key of the certificate, in PEM and without a passphrase."""

    tls_client_ca_file: ReadableFile | None = None
    """With it, only clients with a certificate of one of these authorities can connect. It does not
    replace AUTH_TOKENS_FILE, which may [name callers by their certificates](#certificates), or
    ALLOW_UNAUTHENTICATED."""

    admin_address: AddressOrEmpty = "127.0.0.1:9090"
    """Where /healthz, /readyz and [/metrics](metrics.md) are served over HTTP. Empty: off."""

    database_url_file: DatabaseUrlFile | None = None
    """A file with the value of DATABASE_URL; see [Secrets from files](#secrets-from-files)."""

    database_url: DatabaseUrl = Field(SecretStr("sqlite:///generation.db"), validate_default=True)
    """`sqlite:///FILE`, for one process at a time, or `postgresql://user:password@host/name`, for
    any number of replicas."""

    database_hints: bool = True
    """Whether replicas notify each other of changes with NOTIFY. Set it to false behind a pooler in
    transaction mode, where the service does not start otherwise; replicas then check once a
    second."""

    task_retention_seconds: Retention = 0
    """How long ended tasks are kept, at least an hour; 0 = forever. A deleted task's request_id is
    forgotten. Cancelled tasks are kept for [a day at most](guarantees.md#the-limits-of-callers)."""

    kie_simulator: bool | None = None
    """`true`: use a simulator of Kie, whose results are samples: the bundled one, or the one at
    KIE_API_URL. `false`: never use one. By default the bundled one is used if there is no
    KIE_API_KEY, but only with SQLite and a LISTEN_ADDRESS on loopback; otherwise the service does
    not start. A loopback or private KIE_API_URL counts as a simulator unless this is `false`."""

    kie_api_key_file: HeaderTokenFile | None = None
    """A file with the value of KIE_API_KEY; see [Secrets from files](#secrets-from-files). When it
    changes, the next request uses the new key."""

    kie_api_key: HeaderToken | None = Field(None, validate_default=True)
    """Your key. It cannot be combined with KIE_SIMULATOR=true."""

    kie_api_url: HttpUrl = "https://api.kie.ai"
    """Kie's API, or another server with the same API, such as a simulator. Needs KIE_API_KEY or
    KIE_SIMULATOR=true. A key is sent only over https, or to a loopback or private host. The
    [proxy](#proxies-and-authorities) of the environment is used."""

    kie_upload_url: HttpUrl = "https://kieai.redpandaai.co"
    """The same for uploads, for which Kie has another host."""

    kie_creates_per_10_seconds: Count = 20
    """The account's limit on new tasks, across all replicas; 0 = no limit."""

    kie_status_per_second: Count = 10
    """The account's limit on status requests, across all replicas; 0 = no limit."""

    kie_running_max: Count = 100
    """How many tasks may run at the provider at a time, across all replicas; 0 = no limit."""

    kie_creates_in_flight_max: Count = 20
    """How many paid requests may be in progress at a time, across all replicas; 0 = no limit."""

    kie_catalogue_refresh_seconds: Seconds = 21_600
    """How often Kie's catalogue of models is read, across all replicas; 0 = never, so that only the
    bundled snapshot is used. See [Models](models.md)."""

    kie_market_unlisted: bool = False
    """Whether `market` sends tasks of models that Kie's catalogue does not list."""

    kie_market_validation: Literal["schema", "basic"] = "schema"
    """How the input of `market` is checked: `schema`: by the schema of its model; `basic`: only its
    size and its kinds of values, and the provider decides the rest."""

    disabled_models: Models = frozenset()
    """Models that are refused, separated by commas, for example `sora2,kling-3.0/video,wan/*`: a
    member of KieParams.model, or an id of [ListModels](models.md). `*` at the end of a name matches
    any characters. A variant of Imagen 4, Midjourney, Veo 3 or Sora 2 has both names."""

    public_url: HttpUrl | None = None
    """The URL under which Kie can reach HTTP_ADDRESS, for example `https://gen.example.com`. With
    it the service asks for callbacks: results are known at once, a task that nobody watches costs
    one or two status requests, and creates whose response was lost are recovered."""

    http_address: AddressOrEmpty = "127.0.0.1:8080"
    """Where callbacks are received, if PUBLIC_URL is set."""

    kie_webhook_key_file: SecretFile | None = None
    """A file with the value of KIE_WEBHOOK_KEY; see [Secrets from files](#secrets-from-files). When
    it changes, the next callback is verified with the new key."""

    kie_webhook_key: Secret | None = Field(None, validate_default=True)
    """The key of Kie's own signatures. With it, a callback without a valid signature is not trusted
    to name the provider's id of a task."""

    callback_secret_file: SecretsFile | None = None
    """A file with the value of CALLBACK_SECRET; see [Secrets from files](#secrets-from-files)."""

    callback_secret: Secrets | None = Field(None, validate_default=True)
    """The key of the HMAC in our callback URLs. Separate several with commas: the first signs new
    URLs, and all of them verify, so that a secret can be replaced. By default the secret is
    generated once and kept in the database; a new KIE_API_KEY does not change it."""

    queue_max_tasks: AtLeastOne = 10_000
    """How many tasks may wait to be sent. More are refused with RATE_LIMITED."""

    create_wait_seconds: Seconds = 10
    """How long CreateTask waits for the provider to accept or refuse the task; 0 = not at all."""

    account_hold_seconds: Seconds = 3_600
    """How long a task waits while the provider refuses the account: the key, the credits, or an
    error page of a proxy. Until then one task at a time is tried. 0 = refused tasks fail, and none
    waits."""

    poll_interval_seconds: SomeSeconds = 2
    """The shortest time between two polls of a task. The longest is 8 times as long: the time grows
    with the task's age and with failed polls, depending on how long tasks of the model usually
    take."""

    task_max_age_seconds: SomeSeconds = 3_600
    """When a task fails with TASK_TIMEOUT, counted from its acceptance by the provider. While the
    provider responds to no request at all, it is 24 hours."""

    unknown_wait_seconds: Seconds | None = None
    """How long a create whose response was lost waits for its callback. The default is 900, or 0
    without PUBLIC_URL."""

    max_streams_per_connection: Channel = 1_000
    """Concurrent calls and watches on one connection. More wait inside the client until one ends; a
    client that needs more opens more connections."""

    max_connections: ChannelOrZero = 0
    """Incoming gRPC connections; 0 = the hard limit of file descriptors minus 1,000, or half of it
    if that is more."""

    max_pending_calls: Channel = 3_000
    """Calls that have arrived and are not accepted yet. Beyond it the server drops some of them;
    beyond three times as many it drops all. Clients retry them."""

    connection_idle_seconds: Seconds = 3_600
    """How long a connection may have no call before the client is asked to close it; 0 = no
    limit."""

    connection_age_seconds: Seconds = 7_200
    """How old a connection may become before the client is asked to close it; 0 = no limit. Its
    open watches continue until WATCH_MAX_AGE_SECONDS."""

    watch_max_streams: AtLeastOne = 20_000
    """Open streams of WatchTask and WatchTasks in one process. More are refused with
    RATE_LIMITED."""

    watch_heartbeat_seconds: SomeSeconds = 20
    """How long a stream may be quiet before WatchTask repeats the last snapshot, and WatchTasks
    sends a bookmark."""

    watch_max_age_seconds: SomeSeconds = 1_800
    """How old a stream may become before it ends with STREAM_EXPIRED; clients reconnect."""

    uploads_max: AtLeastOne = 64
    """Concurrent uploads and downloads in one process."""

    upload_max_bytes: Bytes = 104_857_600
    """The largest file that may be uploaded."""

    upload_retention_seconds: SomeSeconds = 86_400
    """The assumed lifetime of an uploaded file when the provider reports none."""

    results_url: ResultsUrl | None = None
    """Where [results are kept](results.md): `s3://bucket/prefix`, `gs://bucket/prefix`,
    `az://container/prefix` or `file:///folder`. Each result is copied there before its task becomes
    SUCCESS. Credentials and endpoints come from the usual environment variables of each store. By
    default results are not copied."""

    results_public_url: HttpUrl | None = None
    """The URL under which everybody can fetch what is at RESULTS_URL. With it, artifacts have a
    `public_url`."""

    results_max_bytes: ResultBytes = 2_147_483_648
    """The largest result that is copied, at most 50 GB."""

    results_parallel: Copies = 4
    """Results that are copied at a time in one process, each with at most 24 MiB of memory."""

    results_give_up_seconds: SomeSeconds = 86_400
    """How long copies are tried. Then the task becomes SUCCESS without them, and the artifacts that
    could not be copied have a `storage_error`."""

    results_allow_hosts: Hosts = frozenset()
    """Hosts of results, separated by commas, that need not have public addresses, and may be asked
    over plain http. By default results are fetched over https from public addresses only."""

    results_delete_on_purge: bool = False
    """Whether the copies of a task are deleted together with the task (TASK_RETENTION_SECONDS)."""

    shutdown_seconds: SomeSeconds = 9
    """How long the process may take to end, from the end of DRAIN_DELAY_SECONDS. Watches end at
    once, other calls and polls within a third of it and 3 s at most, and paid requests get all the
    time that is left: the provider may take up to 60 s to respond. The orchestrator has to wait
    for longer than both settings together."""

    drain_delay_seconds: Seconds = 0
    """How long the process still serves calls after the signal to stop, while it already reports
    NOT_SERVING and /readyz responds with 503, so that load balancers stop sending calls first."""

    metrics_per_caller: bool = False
    """Whether [/metrics](metrics.md) also counts creates, refusals and ended tasks by caller."""

    otel_exporter_otlp_endpoint: HttpUrl | None = None
    """The collector that [traces](tracing.md) are sent to by OTLP over HTTP, for example
    `http://collector:4318`. Unset: nothing is traced."""

    log_format: Literal["text", "json"] = "text"
    """The format of the log. Each line about a call has its caller, its peer and a request_id: the
    `x-request-id` in its metadata, or one that the service makes. It is not CreateTask's."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The lowest level that is logged. At info there is one line for each create, acceptance and
    end of a task, with its task_id, model, caller and prompt_id."""

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, given: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in given.items() if v not in ("", None) or k in MAY_BE_EMPTY}

    @field_validator(*FROM_FILES, mode="before")
    @classmethod
    def _or_from_its_file(cls, value: Any, info: ValidationInfo) -> Any:
        # The field of the file comes first, so that an error of its content has its name.
        file = info.data.get(f"{info.field_name}_file")
        return value if file is None else read_secret(file)

    @model_validator(mode="after")
    def _cross_field_rules(self) -> Self:
        if broken := list(broken_rules(self)):
            raise ValueError("\n".join(broken))
        return self

    @property
    def effective_unknown_wait_seconds(self) -> float:
        """How long a create whose response was lost waits for its callback."""
        if self.unknown_wait_seconds is not None:
            return self.unknown_wait_seconds
        return UNKNOWN_WAIT_SECONDS if self.public_url else 0

    @property
    def callback_secrets(self) -> tuple[bytes, ...]:
        """The secrets of CALLBACK_SECRET: the first signs callback URLs, all of them verify."""
        listed = self.callback_secret.get_secret_value() if self.callback_secret else ""
        return tuple(secret.encode() for secret in listed.split(",") if secret)

    @property
    def simulated(self) -> bool:
        """Whether results are samples: tasks go to a simulator of Kie."""
        if self.kie_simulator is not None:
            return self.kie_simulator
        return self.kie_api_key is None or not is_public_url(self.kie_api_url)

    @property
    def uses_bundled_simulator(self) -> bool:
        """Whether the service starts its own simulator."""
        return self.kie_api_key is None and "kie_api_url" not in self.model_fields_set
