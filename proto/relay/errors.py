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

import inspect
from typing import ClassVar, cast

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

DOMAIN = "relay"
DEPLOYMENT = "relay-deployment"  #: metadata of an agent's calls: the id of the deployment it works for


class RelayError(Exception):
    """Something that Relay refuses, and why. `metadata` is for programs, the message for users.

    The first paragraph of a subclass's docstring is its message where none is given; the second one says what to do.
    Both are what `docs/errors.md` is generated from.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    reason: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str = "", **metadata: str) -> None:
        super().__init__(message or self.meaning())
        self.metadata = metadata

    @classmethod
    def meaning(cls) -> str:
        """Return what this error means: the first paragraph of the class's docstring, on one line."""
        return " ".join((inspect.getdoc(cls) or "").partition("\n\n")[0].split())

    @classmethod
    def remedy(cls) -> str:
        """Return what to do about this error: the rest of the class's docstring, on one line."""
        return " ".join((inspect.getdoc(cls) or "").partition("\n\n")[2].split())

    def status(self) -> status_pb2.Status:
        """Return this error as it is sent: a Status with one ErrorInfo."""
        info = error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN, metadata=self.metadata)
        packed = any_pb2.Any()
        packed.Pack(info)
        return status_pb2.Status(code=self.code.value[0], message=str(self), details=[packed])


class LeaseLost(RelayError):
    """This lease has ended. Stop the work; do not try again.

    The run has been granted elsewhere, has ended, or its attempt was declared over. Agents stop that work by themselves
    and lose nothing that counts: what a lease wrote before its end stays.
    """

    code, reason = grpc.StatusCode.ABORTED, "LEASE_LOST"


class SessionReplaced(RelayError):
    """A newer session of this agent has taken over.

    Happens once when an agent is restarted; the older process ends by itself. When it keeps happening, two processes
    use the same `--data-dir`: give each agent its own.
    """

    code, reason = grpc.StatusCode.ABORTED, "SESSION_REPLACED"


class IdentityInUse(RelayError):
    """Another host sends heartbeats under this agent's name.

    Give this host another `--name`. A cloned disk has the other host's name too: set one explicitly.
    """

    code, reason = grpc.StatusCode.ALREADY_EXISTS, "IDENTITY_IN_USE"


class DeploymentForeign(RelayError):
    """This agent has worked for another deployment than this one.

    The coordinator stands on another database than the one this agent knows. Point the coordinator at the right
    database; if the move is meant, start the agent with a fresh `--data-dir`.
    """

    code, reason = grpc.StatusCode.FAILED_PRECONDITION, "DEPLOYMENT_FOREIGN"


class StartMissing(RelayError):
    """The attempt's first write, which says what it resumes from (StartAttempt), has not arrived yet.

    Send StartAttempt again, then this request. Agents do so by themselves.
    """

    code, reason = grpc.StatusCode.FAILED_PRECONDITION, "START_MISSING"


class EventsMissing(RelayError):
    """Events that must come before this have not arrived yet.

    Send the events up to the named offset, then this request again. Agents do so by themselves.
    """

    code, reason = grpc.StatusCode.FAILED_PRECONDITION, "EVENTS_MISSING"


class CheckpointMissing(RelayError):
    """A checkpoint that must be registered before this is not, or no more.

    Register it again, then repeat this request. Agents do so by themselves; it happens after a failover that lost the
    registration.
    """

    code, reason = grpc.StatusCode.FAILED_PRECONDITION, "CHECKPOINT_MISSING"


class CheckpointRemoved(RelayError):
    """This checkpoint is scheduled for deletion; its copies are being removed.

    That cannot be taken back. Choose another one (`relayctl checkpoints RUN`), and pin what must stay before newer
    checkpoints push it out.
    """

    code, reason = grpc.StatusCode.FAILED_PRECONDITION, "CHECKPOINT_REMOVED"


class OffsetGap(RelayError):
    """The source is not stored up to this offset; `expected` says how far it is.

    Continue from the byte that the metadata names as `expected`. Agents and clients do so by themselves.
    """

    code, reason = grpc.StatusCode.OUT_OF_RANGE, "OFFSET_GAP"


class SpecInvalid(RelayError):
    """The run file is wrong.

    The message names every mistake with its line and, where there is one, the nearest right name. Correct the run file;
    `relayctl submit FILE --dry-run` checks it without creating anything.
    """

    code, reason = grpc.StatusCode.INVALID_ARGUMENT, "SPEC_INVALID"


class InvalidRequest(RelayError):
    """The request is wrong.

    A field is malformed: the message says which. Correct the call; repeating it cannot help.
    """

    code, reason = grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_INVALID"


class RequestIdReused(RelayError):
    """This request id was used for another request.

    Draw a fresh UUID for each new request; use the same one only to repeat the same request.
    """

    code, reason = grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED"


class RunExists(RelayError):
    """A run of this name exists.

    Choose another name (`--name`), or continue the existing run (`resume` in CreateRun).
    """

    code, reason = grpc.StatusCode.ALREADY_EXISTS, "RUN_EXISTS"


class InputMissing(RelayError):
    """The content of an input is not in the artifact store.

    Upload it first (`Artifacts`), then repeat the request. `relayctl` does so by itself; when it still says this,
    garbage collection has removed an upload older than `--artifact-grace`: submit again.
    """

    code, reason = grpc.StatusCode.FAILED_PRECONDITION, "INPUT_MISSING"


class DigestMismatch(RelayError):
    """The bytes do not match their digest.

    They were damaged on their way or on disk. Send them again; when it persists, check the disk of the artifact store,
    or pull from another copy.
    """

    code, reason = grpc.StatusCode.DATA_LOSS, "DIGEST_MISMATCH"


class BlobTooLarge(RelayError):
    """A single file may not be this large.

    Raise the coordinator's `--artifact-limit`, or put the file into a store of your own (`checkpoint.store`).
    """

    code, reason = grpc.StatusCode.INVALID_ARGUMENT, "BLOB_TOO_LARGE"


class RunUnknown(RelayError):
    """There is no such run.

    `relayctl runs -a` lists all of them. After a restore from a backup, runs submitted since then are unknown.
    """

    code, reason = grpc.StatusCode.NOT_FOUND, "RUN_UNKNOWN"


class AgentUnknown(RelayError):
    """There is no such agent.

    `relayctl agents` lists those that have ever connected.
    """

    code, reason = grpc.StatusCode.NOT_FOUND, "AGENT_UNKNOWN"


class CheckpointUnknown(RelayError):
    """There is no such checkpoint in this run.

    `relayctl checkpoints RUN -a` lists all of them.
    """

    code, reason = grpc.StatusCode.NOT_FOUND, "CHECKPOINT_UNKNOWN"


class BlobUnknown(RelayError):
    """The artifact store does not have this blob.

    What named it was deleted, or the artifact folder is not the one that belongs to this database: replicas must share
    it, and a restored database needs the folder of its time.
    """

    code, reason = grpc.StatusCode.NOT_FOUND, "BLOB_UNKNOWN"


class RunEnded(RelayError):
    """The run has already ended.

    Nothing is left to pause or cancel. To train further, submit it under a new name, or from its weights
    (`model.init_from`).
    """

    code, reason = grpc.StatusCode.FAILED_PRECONDITION, "RUN_ENDED"


class IllegalVerb(RelayError):
    """The run is not in a state where this can be asked of it.

    `relayctl show RUN` says in which state it is; docs/lifecycle.md shows what each state allows.
    """

    code, reason = grpc.StatusCode.FAILED_PRECONDITION, "STATE_UNSUITABLE"


class Unauthenticated(RelayError):
    """The shared secret is missing or wrong.

    Set RELAY_SHARED_SECRET to the coordinator's own, for agents and clients alike.
    """

    code, reason = grpc.StatusCode.UNAUTHENTICATED, "SECRET_WRONG"


class StoreFull(RelayError):
    """The artifact store has no room for this.

    Raise `--artifact-limit`, free the disk, keep fewer checkpoints (`checkpoint.keep`), or give runs a store of their
    own (`checkpoint.store`). Uploads continue by themselves once there is room.
    """

    code, reason = grpc.StatusCode.RESOURCE_EXHAUSTED, "STORE_FULL"


class TooLarge(RelayError):
    """A message holds more than is taken at once.

    Split the request: the metadata or message says how much is taken.
    """

    code, reason = grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE"


#: Every reason and its class; a test keeps the reasons distinct.
BY_REASON: dict[str, type[RelayError]] = {error.reason: error for error in RelayError.__subclasses__()}


def from_status(status: status_pb2.Status) -> RelayError | None:
    """Return the domain error that a status carries; None when it carries none (a transport's own failure)."""
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Is(info.DESCRIPTOR) and detail.Unpack(info) and info.domain == DOMAIN:
            return BY_REASON.get(info.reason, RelayError)(status.message, **dict(info.metadata))
    return None


def from_rpc(error: grpc.RpcError) -> RelayError | None:
    """Return the domain error that an RPC failed with; None when the transport failed, or no reason was given."""
    status = rpc_status.from_call(cast(grpc.Call, error))
    return from_status(status) if status is not None else None


#: Codes by which a transport or a proxy reports a backend that is away: retried, unless a domain error is attached.
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
    """Return True when the same call may be retried: the connection or a proxy failed, not the request."""
    return error.code() in TRANSIENT and from_rpc(error) is None
