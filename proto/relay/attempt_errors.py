"""The reasons why attempts fail: what each means, whose fault it is, and what to do about it.

A failed attempt (and a failed run) carries an `error`: a `google.rpc.Status` whose `ErrorInfo` has one of these
reasons. It is data about a training, not the failure of a call; those are in `relay.errors`. `docs/errors.md` is
generated from both.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Fault(enum.Enum):
    """Whose fault a failure is: only the run's own failures count against `lifecycle.max_attempts`."""

    RUN = "the run's"
    HOST = "the infrastructure's"
    EITHER = "either"


@dataclass(frozen=True, slots=True)
class AttemptError:
    """One reason."""

    reason: str
    fault: Fault
    meaning: str
    remedy: str


ATTEMPT_ERRORS = (
    AttemptError(
        "CONFIG_INVALID",
        Fault.RUN,
        "The trainer refused what it was given (exit code 78). The run fails at once, since a retry cannot help.",
        "Correct what the message names, an option or a row of the data. `relayctl data check` finds wrong rows.",
    ),
    AttemptError(
        "NAN_LOSS",
        Fault.RUN,
        "The loss, a gradient norm or weights became NaN or infinite. The run fails at once, since a retry would train "
        "the same; its checkpoints are all from before.",
        "Lower `learning_rate`, set `max_grad_norm`, look at the rows of the step that the message names, or set "
        "`lifecycle.on_nan: continue`.",
    ),
    AttemptError(
        "CUDA_OOM",
        Fault.RUN,
        "The GPU ran out of memory.",
        "Lower `per_device_train_batch_size` (and raise `gradient_accumulation_steps`), lower `max_length`, use "
        "`preset: small-memory` or `lora`, or ask for larger GPUs (`resources.vram_gib`).",
    ),
    AttemptError(
        "OOM_KILLED",
        Fault.RUN,
        "The kernel killed the trainer because the host, or its container, ran out of memory.",
        "Ask for more (`resources.ram_gib`), or use less: fewer `dataloader_num_workers`, `data.streaming: true`.",
    ),
    AttemptError(
        "DISK_FULL",
        Fault.EITHER,
        "The disk was full. Before the trainer starts, that is the infrastructure's fault; when the trainer itself "
        "fails on it, the run's own.",
        "Free space under the agent's `--root`, ask for more (`resources.disk_gib`), or keep fewer checkpoints "
        "(`checkpoint.keep`).",
    ),
    AttemptError(
        "STALLED",
        Fault.RUN,
        "The trainer made no step for longer than `lifecycle.stall_after` and was killed. What its processes "
        "were doing is in `dump.json` in the attempt's folder.",
        "Look at the end of `relayctl logs RUN`. Where long pauses are normal, set `lifecycle.stall_after`.",
    ),
    AttemptError(
        "START_FAILED",
        Fault.EITHER,
        "The program could not be started. When it does not exist or is not executable, the run fails at once; when "
        "the host lacked memory, processes or disk, that is the infrastructure's fault.",
        "Check `command`, `workdir` and `files` in the run file, and that the program is installed on the host.",
    ),
    AttemptError(
        "SIGNAL",
        Fault.RUN,
        "A signal that Relay did not send killed the trainer, for example SIGSEGV.",
        "Look at the last lines of `relayctl logs RUN`.",
    ),
    AttemptError(
        "EXIT_CODE",
        Fault.RUN,
        "The trainer exited with a code other than 0 and gave no reason that Relay knows.",
        "The message holds the last line of its stderr; `relayctl logs RUN -n 50` has what came before.",
    ),
    AttemptError(
        "OUTPUT_INVALID",
        Fault.RUN,
        "Training ended, but its result cannot be stored anywhere: it holds a link or a device, or a file that is "
        "too large. The run fails at once.",
        "Write plain files into `RELAY_OUTPUT_DIR`, or correct `outputs`.",
    ),
    AttemptError(
        "OUTPUT_NOT_STORED",
        Fault.HOST,
        "Training ended, but its result could not be stored now: the store is out of reach, full, or refuses.",
        "The run continues from its newest checkpoint elsewhere. Check the store that the message names.",
    ),
    AttemptError(
        "INPUT_UNAVAILABLE",
        Fault.HOST,
        "A file that was uploaded with the run could not be fetched whole.",
        "Check the coordinator's artifact store and its log.",
    ),
    AttemptError(
        "STORE_UNUSABLE",
        Fault.HOST,
        "The host cannot use the store of `checkpoint.store`: credentials are missing, or a library is.",
        "Set the credentials in the agent's environment ([operations](operations.md#stores)).",
    ),
    AttemptError(
        "CHECKPOINT_UNAVAILABLE",
        Fault.HOST,
        "No store that holds a checkpoint of this run could be reached from the host.",
        "Check the store; `relayctl verify RUN` looks at every copy. Another host may reach it.",
    ),
    AttemptError(
        "START_REFUSED",
        Fault.HOST,
        "The checkpoint that the attempt had chosen was no longer one to resume from when it said so.",
        "Nothing: the next attempt is offered what counts by then.",
    ),
    AttemptError(
        "SHIM_LOST",
        Fault.HOST,
        "The trainer's parent process on the host died or could not be started; mostly the host was rebooted.",
        "Nothing, unless it happens again on the same host: look at the agent's log there.",
    ),
    AttemptError(
        "HOST_FAULT",
        Fault.HOST,
        "The operating system refused something on the host, for example an input/output error of its disk.",
        "Look at the host; the message names the file and the error.",
    ),
    AttemptError(
        "AGENT_TOO_OLD",
        Fault.HOST,
        "The agent cannot read this run file, since it was written for a newer version.",
        "Upgrade the agent.",
    ),
    AttemptError(
        "END_REFUSED",
        Fault.HOST,
        "The coordinator refused the report of how the attempt ended.",
        "This is an error in Relay: please report it, with the message and the agent's log.",
    ),
)
#: Each reason and what is known of it.
BY_REASON = {error.reason: error for error in ATTEMPT_ERRORS}
