"""The errors that coordinator and agents share: each class carries its gRPC code and its reason.

An RPC that fails returns a `google.rpc.Status` with one `ErrorInfo` (AIP-193): this reason, the domain `relay`, and
metadata that a program can act on. One interceptor of the coordinator renders them; `from_rpc` turns them back.

    RelayError
    ├── the lease or session is gone: stop that work      LeaseLost · SessionReplaced · IdentityInUse
    │                                                     DeploymentForeign
    ├── fix the order, then try again                     StartMissing · EventsMissing · OffsetGap
    │                                                     CheckpointMissing
    ├── the request is wrong: never try it again          SpecInvalid · InvalidRequest · RequestIdReused · RunExists
    │                                                     InputMissing · DigestMismatch · BlobTooLarge
    ├── there is no such thing                            RunUnknown · AgentUnknown · CheckpointUnknown · BlobUnknown
    ├── it is too late, or not the time                   RunEnded · IllegalVerb
    ├── the caller may not                                Unauthenticated
    └── there is no room                                  StoreFull · TooLarge
"""

from __future__ import annotations

from typing import ClassVar, cast

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

DOMAIN = "relay"
DEPLOYMENT = "relay-deployment"  #: metadata of an agent's calls: the id of the deployment it works for


class RelayError(Exception):
    """Something that Relay refuses, and why. `metadata` is for programs, the message for people."""

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    reason: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str = "", **metadata: str) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())
        self.metadata = metadata

    def status(self) -> status_pb2.Status:
        """This error as it travels."""
        info = error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN, metadata=self.metadata)
        packed = any_pb2.Any()
        packed.Pack(info)
        return status_pb2.Status(code=self.code.value[0], message=str(self), details=[packed])


class LeaseLost(RelayError):
    """This lease has ended. Stop the work; do not try again."""

    code, reason = grpc.StatusCode.ABORTED, "LEASE_LOST"


class SessionReplaced(RelayError):
    """A newer session of this agent has taken over."""

    code, reason = grpc.StatusCode.ABORTED, "SESSION_REPLACED"


class IdentityInUse(RelayError):
    """Another host beats under this agent's name."""

    code, reason = grpc.StatusCode.ALREADY_EXISTS, "IDENTITY_IN_USE"


class DeploymentForeign(RelayError):
    """This agent has worked for another deployment than this one."""

    code, reason = grpc.StatusCode.FAILED_PRECONDITION, "DEPLOYMENT_FOREIGN"


class StartMissing(RelayError):
    """The attempt's first write, which says what it resumes from (StartAttempt), has not arrived yet."""

    code, reason = grpc.StatusCode.FAILED_PRECONDITION, "START_MISSING"


class EventsMissing(RelayError):
    """Events that must come before this have not arrived yet."""

    code, reason = grpc.StatusCode.FAILED_PRECONDITION, "EVENTS_MISSING"


class CheckpointMissing(RelayError):
    """A checkpoint that must be registered before this is not, or no more."""

    code, reason = grpc.StatusCode.FAILED_PRECONDITION, "CHECKPOINT_MISSING"


class CheckpointRemoved(RelayError):
    """This checkpoint has been let go; its copies are being removed."""

    code, reason = grpc.StatusCode.FAILED_PRECONDITION, "CHECKPOINT_REMOVED"


class OffsetGap(RelayError):
    """The source is not stored up to this offset; `expected` says how far it is."""

    code, reason = grpc.StatusCode.OUT_OF_RANGE, "OFFSET_GAP"


class SpecInvalid(RelayError):
    """The run file is wrong."""

    code, reason = grpc.StatusCode.INVALID_ARGUMENT, "SPEC_INVALID"


class InvalidRequest(RelayError):
    """The request is wrong."""

    code, reason = grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_INVALID"


class RequestIdReused(RelayError):
    """This request id was used for another request."""

    code, reason = grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED"


class RunExists(RelayError):
    """A run of this name exists."""

    code, reason = grpc.StatusCode.ALREADY_EXISTS, "RUN_EXISTS"


class InputMissing(RelayError):
    """The content of an input is not in the artifact store."""

    code, reason = grpc.StatusCode.FAILED_PRECONDITION, "INPUT_MISSING"


class DigestMismatch(RelayError):
    """The bytes do not match their digest."""

    code, reason = grpc.StatusCode.DATA_LOSS, "DIGEST_MISMATCH"


class BlobTooLarge(RelayError):
    """A single file may not be this large."""

    code, reason = grpc.StatusCode.INVALID_ARGUMENT, "BLOB_TOO_LARGE"


class RunUnknown(RelayError):
    """There is no such run."""

    code, reason = grpc.StatusCode.NOT_FOUND, "RUN_UNKNOWN"


class AgentUnknown(RelayError):
    """There is no such agent."""

    code, reason = grpc.StatusCode.NOT_FOUND, "AGENT_UNKNOWN"


class CheckpointUnknown(RelayError):
    """There is no such checkpoint in this run."""

    code, reason = grpc.StatusCode.NOT_FOUND, "CHECKPOINT_UNKNOWN"


class BlobUnknown(RelayError):
    """The artifact store does not have this blob."""

    code, reason = grpc.StatusCode.NOT_FOUND, "BLOB_UNKNOWN"


class RunEnded(RelayError):
    """The run has already ended."""

    code, reason = grpc.StatusCode.FAILED_PRECONDITION, "RUN_ENDED"


class IllegalVerb(RelayError):
    """The run is not in a state where this can be asked of it."""

    code, reason = grpc.StatusCode.FAILED_PRECONDITION, "STATE_UNSUITABLE"


class Unauthenticated(RelayError):
    """The shared secret is missing or wrong."""

    code, reason = grpc.StatusCode.UNAUTHENTICATED, "SECRET_WRONG"


class StoreFull(RelayError):
    """The artifact store has no room for this."""

    code, reason = grpc.StatusCode.RESOURCE_EXHAUSTED, "STORE_FULL"


class TooLarge(RelayError):
    """A message holds more than is taken at once."""

    code, reason = grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE"


#: Every reason there is; a test keeps the reasons distinct.
BY_REASON: dict[str, type[RelayError]] = {error.reason: error for error in RelayError.__subclasses__()}


def from_status(status: status_pb2.Status) -> RelayError | None:
    """The domain error a status carries; None when it carries none (a transport's own failure)."""
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Is(info.DESCRIPTOR) and detail.Unpack(info) and info.domain == DOMAIN:
            return BY_REASON.get(info.reason, RelayError)(status.message, **dict(info.metadata))
    return None


def from_rpc(error: grpc.RpcError) -> RelayError | None:
    """The domain error an RPC failed with; None when it failed on its way, or without saying why."""
    status = rpc_status.from_call(cast(grpc.Call, error))
    return from_status(status) if status is not None else None


#: What a transport or a proxy makes of a backend that is away: to be tried again, unless a domain error says otherwise.
TRANSIENT = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
    }
)


def is_transient(error: grpc.RpcError) -> bool:
    """True when the same call may be tried again: the line or a proxy failed, not the request."""
    return error.code() in TRANSIENT and from_rpc(error) is None
