"""Webhooks: the events that a service tells of, and their signatures by the Standard Webhooks specification.

The signature is HMAC-SHA256 under the webhook's secret over `{webhook-id}.{webhook-timestamp}.{body}`, in base64, as
`v1,<signature>`; while a secret is rotated, one for each secret, separated by spaces. A receiver checks it with `verify`,
or with any library for Standard Webhooks.
"""

import base64
import binascii
import hashlib
import hmac
import secrets
import time
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, HttpUrl, TypeAdapter, ValidationError

from wbar.checkpoints import Fault
from wbar.errors import InvalidSignature
from wbar.merges import MergeStatus
from wbar.request import RequestModel
from wbar.results import Verdict
from wbar.states import JobStatus, UploadStatus
from wbar.studies import ChildStatus, StudyStatus
from wbar.text import Name

# An object's kind and the state that it has come to, of the tables in wbar.states: every one of a job, the last ones of an
# upload, a merge or a study, whose first one is the answer to its POST.
EventType = Literal[
    "job.queued", "job.running", "job.paused", "job.succeeded", "job.failed", "job.cancelled",
    "checkpoint.ready", "checkpoint.rejected",
    "dataset.ready", "dataset.rejected",
    "merge.succeeded", "merge.failed", "merge.cancelled",
    "study.ended",
]  # fmt: skip
EventPattern = Literal[
    "*", "job.*", "checkpoint.*", "dataset.*", "merge.*", "study.*",
    "job.queued", "job.running", "job.paused", "job.succeeded", "job.failed", "job.cancelled",
    "checkpoint.ready", "checkpoint.rejected",
    "dataset.ready", "dataset.rejected",
    "merge.succeeded", "merge.failed", "merge.cancelled",
    "study.ended",
]  # fmt: skip
PING = "webhook.ping"

WebhookStatus = Literal["enabled", "disabled"]
DeliveryStatus = Literal["pending", "delivered", "failed"]

SECRET_PREFIX, SECRET_BYTES = "whsec_", 32  # how every secret begins
ID, TIMESTAMP, SIGNATURE = "webhook-id", "webhook-timestamp", "webhook-signature"
TOLERANCE = 300.0  # seconds that a message may be old, against one that somebody has recorded and sends again
DAY = 86_400
LONGEST_URL = 2048


def matches(pattern: str, event: str) -> bool:
    """Return whether an event's type is one that the pattern names: itself, `kind.*`, or `*`."""
    return pattern in ("*", event) or (pattern.endswith(".*") and event.startswith(pattern[:-1]))


_PARSE_URL = TypeAdapter(HttpUrl)


def _url(text: str) -> str:
    try:
        url = _PARSE_URL.validate_python(text)
    except ValidationError as error:
        raise ValueError(error.errors()[0]["msg"]) from None
    if url.username or url.password:
        raise ValueError("it holds a user name or a password, which every reader of the webhook would see")
    if url.fragment:
        raise ValueError("a fragment (#…) is never sent")
    return str(url)


WebhookUrl = Annotated[
    str,
    Field(max_length=LONGEST_URL, json_schema_extra={"format": "uri", "pattern": r"^https?://[^\s@#]+$"}),
    AfterValidator(_url),
]


class WebhookRequest(RequestModel):
    """A request to create a webhook."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"url": "https://example.com/wbar", "events": ["job.succeeded", "job.failed"]}]}
    )

    url: WebhookUrl = Field(
        description="Where events are sent with POST. https, and an address of the public network, unless the operator "
        "allows others (WBAR_WEBHOOKS_ALLOW)."
    )
    events: Annotated[list[EventPattern], Field(min_length=1, max_length=32, fail_fast=True)] = Field(
        default_factory=lambda: list[EventPattern](["*"]),
        description="The events to be told of, by type or by pattern: `job.*`, `*`.",
    )
    name: Name | None = Field(None, description="What it is for.")


class RotationRequest(RequestModel):
    """A request for a new secret."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"overlap_seconds": 3600}]})

    overlap_seconds: Annotated[int, Field(ge=0, le=7 * DAY)] | None = Field(
        None, description="How long messages are signed with the secret of before, too. Default: a day."
    )

    @property
    def overlap(self) -> float:
        """Seconds for which both secrets sign."""
        return float(DAY if self.overlap_seconds is None else self.overlap_seconds)


class Webhook(BaseModel):
    """A webhook. `secret` is in the answers to the requests that made it: creation and rotation, and nowhere else."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "id": "hook_0mk3q8v5zr5d2a7x9c4t",
                "object": "webhook",
                "name": None,
                "url": "https://example.com/wbar",
                "events": ["job.succeeded", "job.failed"],
                "status": "enabled",
                "disabled_reason": None,
                "secret": None,
                "created_at": "2026-11-21T09:00:00.000000Z",
            }
        }
    )

    id: str
    object: Literal["webhook"] = "webhook"
    name: str | None
    url: str
    events: list[str]
    status: WebhookStatus
    disabled_reason: str | None = Field(description="Why nothing is sent, where it is disabled.")
    secret: str | None = None
    created_at: str


class JobSummary(BaseModel):
    """A job as an event tells of it; `GET /v1/jobs/{id}` has the rest."""

    model_config = ConfigDict(frozen=True)

    id: str
    object: Literal["job"] = "job"
    name: str | None
    status: JobStatus
    checkpoint: str
    dataset: str
    metadata: dict[str, str]
    attempts: int
    verdict: Verdict | None = Field(description="Once it has succeeded.")
    error: Fault | None
    created_at: str
    started_at: str | None
    finished_at: str | None


class UploadSummary(BaseModel):
    """A checkpoint or dataset as an event tells of it."""

    model_config = ConfigDict(frozen=True)

    id: str
    object: Literal["checkpoint", "dataset"]
    name: str
    status: UploadStatus
    error: Fault | None
    created_at: str


class MergeSummary(BaseModel):
    """A merge as an event tells of it; `GET /v1/merges/{id}` has the rest."""

    model_config = ConfigDict(frozen=True)

    id: str
    object: Literal["merge"] = "merge"
    name: str | None
    status: MergeStatus
    error: Fault | None
    created_at: str
    started_at: str | None
    finished_at: str | None


class StudySummary(BaseModel):
    """A study whose jobs have all ended, as an event tells of it; `GET /v1/studies/{id}/report` has what they measured."""

    model_config = ConfigDict(frozen=True)

    id: str
    object: Literal["study"] = "study"
    name: str | None
    status: StudyStatus
    checkpoint: str
    dataset: str
    jobs: int
    counts: dict[ChildStatus, int] = Field(description="How its jobs have ended: a failed one is a result.")
    created_at: str
    ended_at: str


class WebhookSummary(BaseModel):
    """A webhook as its own ping tells of it."""

    model_config = ConfigDict(frozen=True)

    id: str
    object: Literal["webhook"] = "webhook"
    name: str | None


class WebhookEvent(BaseModel):
    """The body of a message: what has happened, when, and to what."""

    model_config = ConfigDict(
        frozen=True,
        json_schema_extra={
            "example": {
                "type": "checkpoint.ready",
                "timestamp": "2026-11-21T09:00:00.000000Z",
                "data": {
                    "id": "ckpt_0mk3q8v5zr5d2a7x9c4t",
                    "object": "checkpoint",
                    "name": "resnet18.pt",
                    "status": "ready",
                    "error": None,
                    "created_at": "2026-11-21T08:59:58.000000Z",
                },
            }
        },
    )

    type: str = Field(description=f"{', '.join(get_args(EventType))}, or `{PING}`; later versions may have others.")
    timestamp: str = Field(description="When it happened; messages may come in another order.")
    data: JobSummary | UploadSummary | MergeSummary | StudySummary | WebhookSummary


class Delivery(BaseModel):
    """The delivery of one event to one webhook. `id` is the message's `webhook-id`, the same with every attempt."""

    id: str
    object: Literal["webhook_delivery"] = "webhook_delivery"
    webhook: str
    type: str
    status: DeliveryStatus = Field(description="`failed`: it is not tried again, but for a replay.")
    attempts: int
    response_status: int | None = Field(description="The HTTP status that the last attempt was answered with.")
    error: str | None = Field(description="Why the last attempt failed.")
    payload: WebhookEvent
    created_at: str
    attempted_at: str | None = Field(description="The last attempt's time.")
    next_attempt_at: str | None = Field(description="While it is pending.")
    delivered_at: str | None


def new_secret() -> str:
    """Return a new secret, `whsec_` and 32 random bytes in base64."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def sign(secret: str, message: str, timestamp: int, body: bytes) -> str:
    """Return the signature of a message, `v1,<base64>`.

    secret: `whsec_…`.
    message: its `webhook-id`.
    timestamp: of this attempt, seconds since 1970.

    Raises ValueError for a secret that is no base64.
    """
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX) + "==")
    if not key:
        raise ValueError("the webhook's secret is empty: give the `whsec_…` that the service showed")
    signed = b".".join((message.encode(), str(timestamp).encode(), body))
    return f"v1,{base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()}"


def signed_headers(secrets_: Iterable[str], message: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Return the three headers of a message, with a signature by each secret."""
    signatures = " ".join(sign(secret, message, timestamp, body) for secret in secrets_)
    return {ID: message, TIMESTAMP: str(timestamp), SIGNATURE: signatures}


def verify(secret: str, headers: Mapping[str, str], body: bytes | str, tolerance: float = TOLERANCE) -> WebhookEvent:
    """Return the event of a received message, once its signature and its age have been checked.

    secret: `whsec_…`, as the service showed it.
    headers: of the request, in any case.
    body: the request's body as it came, not parsed and written again.
    tolerance: seconds that the clocks may differ and the message may have been on its way.

    Raises InvalidSignature for a message that is not to be trusted, pydantic's ValidationError for an event that this
    version of wbar does not know, ValueError for a secret that is none.
    """
    raw = body.encode() if isinstance(body, str) else body
    given = {name.lower(): value for name, value in headers.items()}
    missing = [name for name in (ID, TIMESTAMP, SIGNATURE) if not given.get(name)]
    if missing:
        raise InvalidSignature(f"the message has no {', '.join(missing)}: it does not come from a webhook of wbar")
    _check_age(given[TIMESTAMP], tolerance)
    try:
        expected = sign(secret, given[ID], int(given[TIMESTAMP]), raw)
    except binascii.Error:
        raise ValueError("the webhook's secret is no base64: give the `whsec_…` that the service showed") from None
    # Every signature is compared, each in the same time whatever it holds: nothing can be learned from how long it takes.
    matching = [hmac.compare_digest(one.encode(), expected.encode()) for one in given[SIGNATURE].split(" ")]
    if not any(matching):
        raise InvalidSignature("no signature of the message is by this secret: another secret, or a changed message")
    return WebhookEvent.model_validate_json(raw)


def _check_age(timestamp: str, tolerance: float) -> None:
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) < 16):
        raise InvalidSignature(f"{TIMESTAMP} is {timestamp[:32]!r}, which is no number of seconds")
    age = time.time() - int(timestamp)
    if abs(age) > tolerance:
        raise InvalidSignature(
            f"the message was sent {age:.0f} s ago by its {TIMESTAMP}, and {tolerance:g} s are allowed: an old message "
            "that is sent again, or a wrong clock"
        )
