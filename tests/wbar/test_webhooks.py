"""Signatures, against the reference library of Standard Webhooks, both ways; events, against the tables of states."""

import json
import time
from datetime import UTC, datetime
from typing import get_args

import pytest
from standardwebhooks.webhooks import Webhook as Standard
from standardwebhooks.webhooks import WebhookVerificationError

from wbar.errors import InvalidSignature
from wbar.merges import ENDED
from wbar.states import TRANSITIONS, UploadStatus
from wbar.webhooks import (
    PING,
    EventPattern,
    EventType,
    UploadSummary,
    WebhookEvent,
    WebhookRequest,
    matches,
    new_secret,
    signed_headers,
    verify,
)

EVENT = WebhookEvent(
    type="checkpoint.ready",
    timestamp="2026-11-21T09:00:00.000000Z",
    data=UploadSummary(
        id="ckpt_1",
        object="checkpoint",
        name="w̄.pt",
        status="ready",
        error=None,
        created_at="2026-11-21T08:59:00.000000Z",
    ),
)
BODY = EVENT.model_dump_json().encode()


def headers(*secrets: str, body: bytes = BODY, age: float = 0) -> dict[str, str]:
    return signed_headers(secrets, "msg_1", int(time.time() - age), body)


def test_the_standard_library_takes_our_signatures() -> None:
    secret = new_secret()
    assert Standard(secret).verify(BODY, headers(secret)) == json.loads(BODY)
    assert Standard(secret).verify(BODY, headers(new_secret(), secret)), "while a secret is rotated there are two"
    with pytest.raises(WebhookVerificationError):
        Standard(secret).verify(BODY, headers(new_secret()))


def test_we_take_the_standard_librarys_signatures() -> None:
    secret, now = new_secret(), datetime.now(UTC)
    signature = Standard(secret).sign("msg_1", now, BODY.decode())
    sent = {"Webhook-Id": "msg_1", "Webhook-Timestamp": str(int(now.timestamp())), "Webhook-Signature": signature}
    assert verify(secret, sent, BODY) == EVENT
    assert verify(secret, sent, BODY.decode()) == EVENT


def test_a_message_is_not_trusted_without_a_signature_of_the_secret_and_of_now() -> None:
    secret = new_secret()
    good = headers(secret)
    assert verify(secret, good, BODY) == EVENT
    assert verify(secret, headers(new_secret(), secret), BODY) == EVENT
    for name in good:
        with pytest.raises(InvalidSignature):
            verify(secret, {key: value for key, value in good.items() if key != name}, BODY)
        with pytest.raises(InvalidSignature):
            verify(secret, good | {name: "1"}, BODY)
    with pytest.raises(InvalidSignature, match="no signature"):
        verify(new_secret(), good, BODY)
    with pytest.raises(InvalidSignature, match="no signature"):
        verify(secret, good, BODY.replace(b"ready", b"READY"))
    for age in (301, -301):
        with pytest.raises(InvalidSignature, match="sent"):
            verify(secret, headers(secret, age=age), BODY)
    assert verify(secret, headers(secret, age=301), BODY, tolerance=400) == EVENT
    with pytest.raises(ValueError, match="secret"):
        verify("whsec_", good, BODY)


def test_there_is_an_event_for_each_state_that_can_be_come_to() -> None:
    settled = [status for status in get_args(UploadStatus) if status != "processing"]
    expected = {f"job.{status}" for status in TRANSITIONS}
    expected |= {f"{kind}.{status}" for kind in ("checkpoint", "dataset") for status in settled}
    expected |= {f"merge.{status}" for status in ENDED} | {"study.ended"}
    assert set(get_args(EventType)) == expected
    kinds = {"*", "job.*", "checkpoint.*", "dataset.*", "merge.*", "study.*"}
    assert set(get_args(EventPattern)) == expected | kinds


def test_patterns() -> None:
    for event in get_args(EventType):
        matching = {pattern for pattern in get_args(EventPattern) if matches(pattern, event)}
        assert matching == {"*", event, f"{event.split('.')[0]}.*"}
    assert not matches("job.*", PING)
    assert not matches("job.*", "jobs.queued")


@pytest.mark.parametrize(
    "url",
    ["", "example.com", "ftp://example.com/", "https://", "https://user:secret@example.com/", "https://example.com/#x",
     "https://exa mple.com/", "javascript:alert(1)", "file:///etc/passwd", f"https://example.com/{'x' * 2048}",
     "https://example.com:99999/"],
)  # fmt: skip
def test_a_url_that_cannot_be_sent_to_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="url"):
        WebhookRequest(url=url)


def test_a_url_is_kept_as_it_is_understood() -> None:
    assert WebhookRequest(url="https://Bücher.example").url == "https://xn--bcher-kva.example/"
    assert WebhookRequest(url="http://2130706433/x?y=1").url == "http://127.0.0.1/x?y=1"
