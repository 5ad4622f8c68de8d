"""One class per problem `code`: the service raises it, problem+json carries it, the client raises the same class again.

WbarError
├── Refused                     an HTTP problem: status, title, code, detail
│   ├── BadRequest  ValidationFailed  Unauthorized  NotFound  TooLarge  RangeNotSatisfiable  DigestMismatch ...
│   └── Conflict                409: InUse  CheckpointNotReady  DatasetNotReady  JobNotFinished  InvalidTransition ...
├── Rejected                    what an uploaded checkpoint or dataset is refused for, after the 201
│   ├── UnsafePickle  CorruptFile  NotAStateDict  NonFiniteWeights  ArchitectureMismatch  UnknownArchitecture ...
│   └── InvalidArchive  UnsafePath  TooFewClasses  NoImages  BrokenImage  UnknownSource ...
├── JobError                    what a job fails with: Diverged  OutOfMemory  NothingMatches  AttemptsExhausted  ...
└── Unreachable                 the client found no service at the address
"""

from __future__ import annotations

from typing import Any, ClassVar


class WbarError(Exception):
    """Base of everything wbar raises on purpose. `code` is stable and is what programs should look at."""

    code: ClassVar[str] = "error"

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail
        self.details: dict[str, Any] | None = None  # for programs: the lists behind the sentence


class Unreachable(WbarError):
    """No service answered at the address."""

    code = "unreachable"


class Refused(WbarError):
    """The service refused a request; becomes an RFC 9457 problem with this status, title and code."""

    status: ClassVar[int] = 400
    title: ClassVar[str] = "Refused"

    def __init__(self, detail: str, errors: list[dict[str, str]] | None = None, **extra: Any) -> None:
        super().__init__(detail)
        self.errors = errors
        self.extra = extra


class BadRequest(Refused):
    code, title = "bad_request", "The request cannot be read"


class Unauthorized(Refused):
    code, status, title = "unauthorized", 401, "No valid API key"


class NotFound(Refused):
    code, status, title = "not_found", 404, "No such object"


class MethodNotAllowed(Refused):
    code, status, title = "method_not_allowed", 405, "This path does not take that method"


class TooLarge(Refused):
    code, status, title = "too_large", 413, "The body is larger than this service takes"


class RangeNotSatisfiable(Refused):
    code, status, title = "range_not_satisfiable", 416, "The range lies outside the content"


class ValidationFailed(Refused):
    code, status, title = "validation_failed", 422, "The request does not fit the schema"


class DigestMismatch(Refused):
    code, status, title = "digest_mismatch", 422, "The bytes received have another digest than announced"


class ClassesMismatch(Refused):
    code, status, title = "classes_mismatch", 422, "Checkpoint and dataset disagree about the classes"


class CheckpointsDiffer(Refused):
    code, status, title = "checkpoints_differ", 422, "The checkpoints of a soup are not of one architecture"


class ChannelsMismatch(Refused):
    code, status, title = "channels_mismatch", 422, "Checkpoint and dataset disagree about the channels"


class ImageSizeUnsupported(Refused):
    code, status, title = "image_size_unsupported", 422, "The architecture does not take images of this size"


class TaskUnsupported(Refused):
    code, status, title = "task_unsupported", 422, "This version fine-tunes image classification only"


class InternalError(Refused):
    code, status, title = "internal_error", 500, "The service failed; nothing was changed"


class Unavailable(Refused):
    code, status, title = "unavailable", 503, "A part of the service is not ready"


class Conflict(Refused):
    code, status, title = "conflict", 409, "The object's state does not allow this"


class InUse(Conflict):
    code = "in_use"


class CheckpointNotReady(Conflict):
    code = "checkpoint_not_ready"


class DatasetNotReady(Conflict):
    code = "dataset_not_ready"


class JobNotFinished(Conflict):
    code = "job_not_finished"


class NoWeights(Conflict):
    code = "no_weights"


class InvalidTransition(Conflict):
    code = "invalid_transition"


class IdempotencyKeyReused(Conflict):
    code = "idempotency_key_reused"


class IdempotencyKeyInProgress(Conflict):
    code = "idempotency_key_in_progress"


class Rejected(WbarError):
    """The content of an upload is not what it should be; kept on the object as `error`, its bytes are deleted."""

    code = "rejected"


class UnsafePickle(Rejected):
    code = "unsafe_pickle"


class CorruptFile(Rejected):
    code = "corrupt_file"


class NotAStateDict(Rejected):
    code = "not_a_state_dict"


class NonFiniteWeights(Rejected):
    code = "non_finite_weights"


class ArchitectureMismatch(Rejected):
    code = "architecture_mismatch"


class UnknownArchitecture(Rejected):
    code = "unknown_architecture"


class ContentTooLarge(Rejected):
    code = "too_large"


class InvalidArchive(Rejected):
    code = "invalid_archive"


class UnsafePath(Rejected):
    code = "unsafe_path"


class TooFewClasses(Rejected):
    code = "too_few_classes"


class NoImages(Rejected):
    code = "no_images"


class BrokenImage(Rejected):
    code = "broken_image"


class UnknownSource(Rejected):
    code = "unknown_source"


class SourceUnavailable(Rejected):
    code = "source_unavailable"


class IngestFailed(Rejected):
    code = "ingest_failed"


class JobError(WbarError):
    """A job cannot go on; kept on the job as `error`."""

    code = "job_failed"


class Diverged(JobError):
    code = "diverged"


class OutOfMemory(JobError):
    code = "out_of_memory"


class NothingMatches(JobError):
    code = "nothing_matches"


class PrecisionUnsupported(JobError):
    code = "precision_unsupported"


class CompileFailed(JobError):
    code = "compile_failed"


class DevicesUnavailable(JobError):
    code = "devices_unavailable"


class AttemptsExhausted(JobError):
    code = "attempts_exhausted"


def _family(base: type[WbarError]) -> dict[str, type[Any]]:
    by_code = {base.code: base}
    for child in base.__subclasses__():
        by_code.update(_family(child))
    return by_code


REFUSED: dict[str, type[Refused]] = _family(Refused)
REJECTED: dict[str, type[Rejected]] = _family(Rejected)
JOB_ERRORS: dict[str, type[JobError]] = _family(JobError)


def job_error(code: str, detail: str) -> JobError:
    """The error of this code, which another process named."""
    return JOB_ERRORS.get(code, JobError)(detail)
