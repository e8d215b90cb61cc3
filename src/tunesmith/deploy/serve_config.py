"""How a server answers: one record for `serve:` in tunesmith.yaml, the command line and the application. Knows nothing about HTTP."""

from __future__ import annotations

import base64
import binascii
import math
import re
from typing import Literal

from tunesmith.core.errors import ConfigError, nearest
from tunesmith.core.types import Record
from tunesmith.models.engine_settings import ENGINES, EngineSettings
from tunesmith.store.blobs import BUCKETS

_DATABASE = "postgresql+psycopg://"


class Webhook(Record, frozen=True):
    """Where events go. `secret` is `whsec_` and base64, as OpenAI's client reads it; `events` empty means all."""

    url: str
    secret: str
    events: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        try:
            base64.b64decode(self.secret.removeprefix("whsec_"), validate=True)
        except binascii.Error as error:
            raise ConfigError("a webhook's secret is not base64", where="serve.webhooks.secret", allowed="whsec_ and base64") from error
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"a webhook's URL is '{self.url}'", where="serve.webhooks.url", allowed="http:// or https://")


class TokenPrice(Record, frozen=True):
    """US dollars a million tokens that are read, and a million that are generated."""

    input: float
    output: float = 0.0

    def __post_init__(self) -> None:
        for name in ("input", "output"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(
                    f"a price of {getattr(self, name)}", where=f"price.{name}", allowed="US dollars a million tokens, 0 or more"
                )


class Elsewhere(Record, frozen=True):
    """A model of another server whose answers are passed through. `api_key_from` names the environment variable with its key.

    `price` is what its tokens cost; a model of the shipped price list needs none.
    """

    base_url: str
    model: str
    api_key_from: str | None = None
    timeout_s: float = 600.0
    price: TokenPrice | None = None

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise ConfigError(
                f"an upstream's address is '{self.base_url}'", where="serve.upstreams.base_url", allowed="http:// or https://"
            )


class LogConfig(Record, frozen=True):
    """How requests are logged. An acknowledged row survives `power` cuts, or only a `kill` of the server: then nobody waits for the disk.

    `sample` is the share of requests whose rows are kept; failed ones, and those that a strategy chose a variant for, are kept always, and
    all are counted. `redact` are kinds of personal data and secrets whose places are taken by `<EMAIL>` before a row is written, here and
    in the answers of shadows. Rows older than `retention_days` are deleted, with what was said of them; None keeps them.
    """

    survives: Literal["power", "kill"] = "power"
    sample: float = 1.0
    redact: tuple[str, ...] = ()
    retention_days: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.sample <= 1:
            raise ConfigError(f"'sample' is {self.sample}", where="serve.log.sample", allowed="0 to 1")
        if self.retention_days is not None and not 0 < self.retention_days < math.inf:
            raise ConfigError(f"'retention_days' is {self.retention_days}", where="serve.log.retention_days", allowed="days, more than 0")


class OtlpConfig(Record, frozen=True):
    """Where OpenTelemetry's spans and metrics go by OTLP over HTTP: a collector's address without a path; metrics each `every_s`.

    Headers, such as a key, are read from the environment: OTEL_EXPORTER_OTLP_HEADERS.
    """

    endpoint: str
    every_s: float = 30.0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"https?://[^/?#@\s]+", self.endpoint):
            raise ConfigError(
                f"the collector's address is '{self.endpoint}'", where="serve.otlp.endpoint", allowed="http(s)://HOST:PORT without a path"
            )
        if not 0 < self.every_s < math.inf:
            raise ConfigError(f"'every_s' is {self.every_s}", where="serve.otlp.every_s", allowed="seconds, more than 0")


class ServedEngine(Record, frozen=True):
    """A model that an engine answers for: a word for it, or a GGUF file, and which engine (`auto`: by what it is and by the hardware).

    `at_once` requests are answered together, each of `context` tokens at most (None: the model's own), by `threads` threads (None: all).
    `python` is the interpreter of the environment that has vLLM, `options` are further words of its command. It must be well within
    `ready_s` of its start.
    """

    model: str
    engine: str = "auto"
    at_once: int = 8
    context: int | None = None
    threads: int | None = None
    python: str | None = None
    options: tuple[str, ...] = ()
    ready_s: float = 900.0

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise ConfigError(
                f"an engine is '{self.engine}'",
                where="serve.engines.NAME.engine",
                allowed=", ".join(ENGINES),
                remedy=nearest(self.engine, ENGINES),
            )
        for name in ("at_once", "context", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"'{name}' is {value}", where=f"serve.engines.NAME.{name}", allowed="1 or more")
        if not 0 < self.ready_s < math.inf:
            raise ConfigError(f"'ready_s' is {self.ready_s}", where="serve.engines.NAME.ready_s", allowed="seconds, more than 0")

    @property
    def settings(self) -> EngineSettings:
        """What the engine is started with."""
        return EngineSettings(self.at_once, self.context, self.threads, self.python, self.options)


class ServeConfig(Record, frozen=True):
    """Where and how a server listens. Sizes in bytes, times in seconds; `python_graders` lets clients run Python in the sandbox.

    `names` lets clients use OpenAI's model names: `gpt-4o-mini-2024-07-18: smollm2-135m` (a catalogue name, a folder, or a served alias).
    `encoders` does the same for embeddings; they come as numbers always where `base64_embeddings` is off, as the published schema has it.
    `database` is the URL of a PostgreSQL database that holds the store's tables in place of the SQLite file in its folder, `blobs` a folder
    or a bucket (`s3://BUCKET/PREFIX`) that holds the bytes of files in place of a folder there.
    `upstreams` are names that other servers answer to; `prices` says what the tokens of models here cost, by alias (without it nothing).
    `engines` are names that an engine of its own answers to, in a process beside the server where it is not the embedded one.
    `log` says how requests are logged, `otlp` which collector is told of them. `requests_per_minute` limits each key. Of the deployed
    adapters `max_adapters` are in memory, those that were asked last; others are loaded when they are asked. `workers` processes work on
    fine-tuning jobs. Pages of `cors_origins` may ask, others not.
    A request's headers must come within `headers_s`, its body within `body_s` (a large one may go on at a kilobyte a second).

    Each deployed variant is asked probes every `identity_s`, those of other servers every `identity_elsewhere_s` (0: never), to see whether
    what answers is still what was deployed.

    After SIGTERM the server says that it is not ready, goes on answering for `notice_s`, then takes no new connection and lets what is open
    end within `drain_s`.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    database: str | None = None
    blobs: str | None = None
    max_body_bytes: int = 16 << 20
    default_max_tokens: int = 1024
    max_waiting: int = 512
    max_adapters: int = 64
    python_graders: bool = False
    names: dict[str, str] = {}
    encoders: dict[str, str] = {}
    upstreams: dict[str, Elsewhere] = {}
    engines: dict[str, ServedEngine] = {}
    prices: dict[str, TokenPrice] = {}
    base64_embeddings: bool = True
    requests_per_minute: int | None = None
    webhooks: tuple[Webhook, ...] = ()
    log: LogConfig = LogConfig()
    otlp: OtlpConfig | None = None
    cors_origins: tuple[str, ...] = ()
    headers_s: float = 30.0
    body_s: float = 60.0
    notice_s: float = 0.0
    drain_s: float = 60.0
    identity_s: float = 120.0
    identity_elsewhere_s: float = 1800.0

    def __post_init__(self) -> None:
        if self.database is not None and not self.database.startswith(_DATABASE):
            came = self.database.partition("://")[0]  # the rest may hold a password
            raise ConfigError(f"'database' begins with '{came}'", where="serve.database", allowed=f"{_DATABASE}USER@HOST/NAME")
        _check_blobs(self.blobs)
        if twice := sorted(self.engines.keys() & self.upstreams.keys()):
            raise ConfigError(f"'{twice[0]}' is an engine and an upstream", where="serve.engines", allowed="a name for one of them")
        _check_origins(self.cors_origins)
        for name in ("headers_s", "body_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"'{name}' is {getattr(self, name)}", where=f"serve.{name}", allowed="seconds, more than 0")
        for name in ("identity_s", "identity_elsewhere_s"):
            if not (getattr(self, name) == 0 or 10 <= getattr(self, name) < math.inf):
                raise ConfigError(f"'{name}' is {getattr(self, name)}", where=f"serve.{name}", allowed="10 seconds or more, or 0 for never")
        for name, least in (
            ("workers", 0),
            ("max_body_bytes", 1),
            ("default_max_tokens", 1),
            ("max_waiting", 1),
            ("max_adapters", 1),
            ("requests_per_minute", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"'{name}' is {value}", where=f"serve.{name}", allowed=f"{least} or more")


def _check_origins(origins: tuple[str, ...]) -> None:
    """Refuse what no browser sends as an origin: it would let nobody in, unsaid."""
    for origin in origins:
        if origin != "*" and not re.fullmatch(r"https?://[^/?#@\s]+", origin):
            raise ConfigError(
                f"an origin is '{origin}'", where="serve.cors_origins", allowed="http(s)://HOST or http(s)://HOST:PORT without a path, or *"
            )


def _check_blobs(place: str | None) -> None:
    """Refuse what is no place for blobs, and a URL that holds credentials: logs and lists of processes would show them."""
    kind, separator, rest = (place or "").partition("://")
    allowed = f"a folder, or {', '.join(f'{kind}://BUCKET/PREFIX' for kind in BUCKETS)}"
    if separator and kind not in BUCKETS:
        raise ConfigError(f"'blobs' begins with '{kind}://'", where="serve.blobs", allowed=allowed)
    if separator and (not rest.strip("/") or set("@?#") & set(rest)):
        raise ConfigError(
            "'blobs' names no bucket, or has more than a bucket and a prefix",
            where="serve.blobs",
            allowed=allowed,
            remedy="give credentials and the endpoint in the environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL",
        )
    if place is not None and not place.strip():
        raise ConfigError("'blobs' is empty", where="serve.blobs", allowed=allowed)
