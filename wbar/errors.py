"""One class per problem `code`: the service raises it, problem+json carries it, the client raises the same class again.

WbarError
├── Refused                     an HTTP problem: status, title, code, detail
│   ├── BadRequest  ValidationFailed  Unauthorized  Forbidden  NotFound  TooLarge  RangeNotSatisfiable  DigestMismatch ...
│   └── Conflict                409: InUse  CheckpointNotReady  DatasetNotReady  JobNotFinished  InvalidTransition ...
├── Rejected                    the content of an uploaded checkpoint or dataset is refused, after the 201
│   ├── UnsafePickle  CorruptFile  NotAStateDict  NonFiniteWeights  ArchitectureMismatch  UnknownArchitecture ...
│   └── InvalidArchive  UnsafePath  TooFewClasses  NoImages  BrokenImage  UnknownSource ...
├── JobError                    a job failed: Diverged  OutOfMemory  NothingMatches  TimeLimit  AttemptsExhausted  ...
├── InvalidSignature            a receiver of webhooks got a message that is not to be trusted
├── NotVerified                 a file is not what was signed
└── Unreachable                 the client found no service at the address
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NotRequired, TypedDict

MAX_DETAIL = 4000  # characters of the sentence that an upload is rejected with; a file's content may be repeated in it


def cut(detail: str) -> str:
    """Return a sentence that repeats parts of files, at its longest. Names in it are cut where they are quoted."""
    return detail if len(detail) <= MAX_DETAIL else f"{detail[: MAX_DETAIL - 3]}..."


class WbarError(Exception):
    """The base of every error that wbar raises on purpose. Programs should look at `code`, which is stable."""

    code: ClassVar[str] = "error"

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail
        self.details: dict[str, Any] | None = None  # for programs: the lists behind the sentence


class Unreachable(WbarError):
    """Raised by the client when no service answers at the address."""

    code = "unreachable"


class InvalidSignature(WbarError):
    """Raised where a webhook's message has no signature by the secret, or is too old."""

    code = "invalid_signature"


class NotVerified(WbarError):
    """Raised where a file is not among what the key signed, or the signature is not the key's."""

    code = "not_verified"


class FieldError(TypedDict):
    """A fault of one field of a request.

    pointer: its JSON pointer into the body; empty for the body as a whole. parameter: of the path, the query or a header.
    """

    pointer: str
    detail: str
    parameter: NotRequired[str]


class Refused(WbarError):
    """The service refused a request; becomes an RFC 9457 problem with this status, title and code.

    errors: what is wrong with single fields. headers: of the answer. extra: further members of the problem.
    """

    status: ClassVar[int] = 400
    title: ClassVar[str] = "Refused"

    def __init__(
        self,
        detail: str,
        errors: Sequence[FieldError] | None = None,
        headers: Mapping[str, str] | None = None,
        **extra: Any,
    ) -> None:
        super().__init__(detail)
        self.errors = None if errors is None else list(errors)
        self.headers = dict(headers or {})
        self.extra = extra


class BadRequest(Refused):
    """Raised when a request cannot be read: malformed JSON, a header or a parameter that makes no sense."""

    code, title = "bad_request", "The request cannot be read"


class Unauthorized(Refused):
    """Raised when a request has no API key, or one that is not valid."""

    code, status, title = "unauthorized", 401, "No valid API key"


class Forbidden(Refused):
    """Raised when the API key is valid and does not have the scope that the request needs."""

    code, status, title = "insufficient_scope", 403, "The API key does not allow this"


class NotFound(Refused):
    """Raised when an object does not exist, or belongs to another tenant."""

    code, status, title = "not_found", 404, "No such object"


class MethodNotAllowed(Refused):
    """Raised when a path does not take the request's HTTP method."""

    code, status, title = "method_not_allowed", 405, "This path does not take that method"


class TooLarge(Refused):
    """Raised when a request's body is larger than the service takes."""

    code, status, title = "too_large", 413, "The body is larger than this service takes"


class UnsupportedMediaType(Refused):
    """Raised when a body is not of the content type that the request must have."""

    code, status, title = "unsupported_media_type", 415, "The body has another content type"


class PreconditionFailed(Refused):
    """Raised when `If-Match` names other content than there is."""

    code, status, title = "precondition_failed", 412, "The content is another one"


class UnsupportedTusVersion(Refused):
    """Raised when a request of an upload names another version of tus than the service's."""

    code, status, title = "unsupported_tus_version", 412, "Another version of tus"


class UploadIsFinal(Refused):
    """Raised when bytes are sent to an upload that was made of partial ones."""

    code, status, title = "upload_is_final", 403, "A concatenated upload takes no bytes"


class ChecksumMismatch(Refused):
    """Raised when the bytes of one PATCH have another checksum than it announced; nothing of them is kept."""

    code, status, title = "checksum_mismatch", 460, "The bytes have another checksum than announced"


class RangeNotSatisfiable(Refused):
    """Raised when a `Range` header asks for bytes outside the content."""

    code, status, title = "range_not_satisfiable", 416, "The range lies outside the content"


class ValidationFailed(Refused):
    """Raised when a request does not fit the schema, or when its fields do not fit each other."""

    code, status, title = "validation_failed", 422, "The request does not fit the schema"


class StudyTooLarge(Refused):
    """Raised when a study asks for more jobs than the service lets it have; none of them is made."""

    code, status, title = "study_too_large", 422, "The study has too many jobs"


class DigestMismatch(Refused):
    """Raised when received bytes have another digest than was announced."""

    code, status, title = "digest_mismatch", 422, "The bytes received have another digest than announced"


class ClassesMismatch(Refused):
    """Raised when the classes of the dataset do not fit the outputs of the checkpoint's network."""

    code, status, title = "classes_mismatch", 422, "Checkpoint and dataset disagree about the classes"


class CheckpointsDiffer(Refused):
    """Raised when the checkpoints of a soup, or a teacher and its student, do not fit each other."""

    code, status, title = "checkpoints_differ", 422, "The checkpoints of a soup are not of one architecture"


class ChannelsMismatch(Refused):
    """Raised when the images, the normalization and the network do not have the same number of channels."""

    code, status, title = "channels_mismatch", 422, "Checkpoint and dataset disagree about the channels"


class ImageSizeUnsupported(Refused):
    """Raised when the network does not take images of the size that is asked for."""

    code, status, title = "image_size_unsupported", 422, "The architecture does not take images of this size"


class TaskUnsupported(Refused):
    """Raised when this version does not have the task of a dataset, or the network is one for another task."""

    code, status, title = "task_unsupported", 422, "Network and dataset are not for one task that can be fine-tuned"


class InternalError(Refused):
    """Raised when the service failed unexpectedly; nothing was changed."""

    code, status, title = "internal_error", 500, "The service failed; nothing was changed"


class StorageFull(Refused):
    """Raised when no room is left on the disk for what was sent; nothing was kept."""

    code, status, title = "storage_full", 507, "No room is left"


class TooManyRequests(Refused):
    """Raised when a key sends more requests than its limit; `Retry-After` says when to come back."""

    code, status, title = "rate_limited", 429, "Too many requests"


class Busy(Refused):
    """Raised when everything that could answer a request is at work; `Retry-After` says when to come back."""

    code, status, title = "busy", 429, "Everything is at work"


class QuotaExceeded(Refused):
    """Raised when a tenant has as much of something (bytes, jobs) as it may have."""

    code, status, title = "quota_exceeded", 429, "The tenant's quota is used up"


class Unavailable(Refused):
    """Raised when a part of the service, such as the database or the broker, is not ready."""

    code, status, title = "unavailable", 503, "A part of the service is not ready"


class Conflict(Refused):
    """The base of the errors that are raised when an object's state does not allow the request."""

    code, status, title = "conflict", 409, "The object's state does not allow this"


class InUse(Conflict):
    """Raised when an object cannot be deleted because a job that has not ended needs it."""

    code = "in_use"


class CheckpointNotReady(Conflict):
    """Raised when a job names a checkpoint that is not validated yet, or was rejected."""

    code = "checkpoint_not_ready"


class CheckpointNotTrainable(Conflict):
    """Raised for a job on a checkpoint that was taken for merging only."""

    code = "checkpoint_not_trainable"


class DatasetNotReady(Conflict):
    """Raised when a job names a dataset that is not packed yet, or was rejected."""

    code = "dataset_not_ready"


class UploadNotFinished(Conflict):
    """Raised when something is to be made of an upload whose bytes have not all come."""

    code = "upload_not_finished"


class UploadUsed(Conflict):
    """Raised when an upload is named that a checkpoint or dataset was made of already."""

    code = "upload_used"


class OffsetMismatch(Conflict):
    """Raised when bytes are sent for another place of an upload than where it stands; `Upload-Offset` says where that is."""

    code = "offset_mismatch"


class JobNotFinished(Conflict):
    """Raised when a file is asked of a job that has not ended yet."""

    code = "job_not_finished"


class FilesExpired(Refused):
    """Raised when a file is asked of a job whose files had a time that is over (`expires_after`)."""

    code, status, title = "files_expired", 410, "The time of these files is over"


class PredictionFailed(Conflict):
    """Raised when a job's network was asked about images and gave no answer; the message says why."""

    code, title = "prediction_failed", "The network gave no answer"


class NoWeights(Conflict):
    """Raised when a file is asked of a job that ended without making it."""

    code = "no_weights"


class InvalidTransition(Conflict):
    """Raised when a job's status does not allow the transition that is asked for."""

    code = "invalid_transition"


class IdempotencyKeyReused(Conflict):
    """Raised when an idempotency key was used before with another request body."""

    code = "idempotency_key_reused"


class IdempotentObjectDeleted(Conflict):
    """Raised when a request is sent again whose object was made by the first one, and deleted since."""

    code = "idempotent_object_deleted"


class Rejected(WbarError):
    """The base of the errors that an upload is rejected with; kept on the object as `error`, its bytes are deleted."""

    code = "rejected"

    def __init__(self, detail: str) -> None:
        super().__init__(cut(detail))  # lists of names, or another library's text, may be long


class UnsafePickle(Rejected):
    """Raised when a PyTorch file asks to run or build anything but tensors."""

    code = "unsafe_pickle"


class CorruptFile(Rejected):
    """Raised when an uploaded file cannot be read as safetensors or as a PyTorch file."""

    code = "corrupt_file"


class NotAStateDict(Rejected):
    """Raised when a file holds no state dict of dense tensors."""

    code = "not_a_state_dict"


class NonFiniteWeights(Rejected):
    """Raised when a checkpoint has NaN or infinite values."""

    code = "non_finite_weights"


class ArchitectureMismatch(Rejected):
    """Raised when a checkpoint's tensors are not those of the given architecture."""

    code = "architecture_mismatch"


class UnknownArchitecture(Rejected):
    """Raised when no architecture of the catalog has the given name, or the checkpoint's tensors."""

    code = "unknown_architecture"


class UnsupportedProgram(Rejected):
    """Raised when an exported program cannot be trained, or asks for something that is not run."""

    code = "unsupported_program"


class ContentTooLarge(Rejected):
    """Raised when the content of an upload needs more memory, time, files or bytes than the limits allow."""

    code = "too_large"


class InvalidArchive(Rejected):
    """Raised when an archive cannot be read, or does not have the expected layout."""

    code = "invalid_archive"


class UnsafePath(Rejected):
    """Raised when an archive's entry is a link or a device, or points outside the archive."""

    code = "unsafe_path"


class TooFewClasses(Rejected):
    """Raised when a dataset has fewer than two classes, or a class with a single training image."""

    code = "too_few_classes"


class NoImages(Rejected):
    """Raised when an archive has no training images where they are expected."""

    code = "no_images"


class BrokenImage(Rejected):
    """Raised when an image of a dataset cannot be decoded."""

    code = "broken_image"


class UnknownSource(Rejected):
    """Raised when a built-in dataset does not exist."""

    code = "unknown_source"


class SourceUnavailable(Rejected):
    """Raised when the source of a dataset cannot be read."""

    code = "source_unavailable"


class IngestFailed(Rejected):
    """Raised when every attempt to validate an upload ended its process."""

    code = "ingest_failed"


class JobError(WbarError):
    """The base of the errors that a job fails with; kept on the job as `error`."""

    code = "job_failed"


class Diverged(JobError):
    """Raised when a loss, a weight or a BatchNorm statistic is not finite."""

    code = "diverged"


class OutOfMemory(JobError):
    """Raised when the device has too little memory for the job."""

    code = "out_of_memory"


class HeldOutTooSmall(JobError):
    """There are too few held-out images to select by some of them and report on the others."""

    code = "held_out_too_small"


class NothingMatches(JobError):
    """Raised when an option names parameters or layers that the network does not have."""

    code = "nothing_matches"


class PrecisionUnsupported(JobError):
    """Raised when the device does not have the precision or the layer that the recipe asks for."""

    code = "precision_unsupported"


class CompileFailed(JobError):
    """Raised when torch.compile fails on the worker."""

    code = "compile_failed"


class PackageMissing(JobError):
    """Raised when a worker has not installed what the job's dataset needs."""

    code = "package_missing"


class DevicesUnavailable(JobError):
    """Raised when a job asks for more GPUs than its worker has."""

    code = "devices_unavailable"


class ReplicaFailed(JobError):
    """Raised when a replica of a job did not succeed, so that there is nothing to join it by."""

    code = "replica_failed"


class MergeFailed(JobError):
    """Raised when a merge cannot be made of its checkpoints."""

    code = "merge_failed"


class TimeLimit(JobError):
    """Raised when a job has run for as long as its request or the operator allows."""

    code = "time_limit"


class AttemptsExhausted(JobError):
    """Raised when several attempts in a row were lost without getting further."""

    code = "attempts_exhausted"


def _family(base: type[WbarError]) -> dict[str, type[Any]]:
    by_code = {base.code: base}
    for child in base.__subclasses__():
        by_code.update(_family(child))
    return by_code


REFUSED: dict[str, type[Refused]] = _family(Refused)
REJECTED: dict[str, type[Rejected]] = _family(Rejected)
JOB_ERRORS: dict[str, type[JobError]] = _family(JobError)


def refusal(status: int, content: bytes) -> Refused:
    """Return the error that an answer of the service stands for. content: its body, a problem or anything else."""
    try:
        problem = json.loads(content)
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        problem = {}
    kind = REFUSED.get(problem.get("code", ""), Refused)
    return kind(problem.get("detail") or f"HTTP {status} from the service", problem.get("errors"))


def job_error(code: str, detail: str) -> JobError:
    """Return an error of the class that has this code; a JobError for an unknown code."""
    return JOB_ERRORS.get(code, JobError)(detail)
