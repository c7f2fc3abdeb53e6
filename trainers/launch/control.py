"""The control folder: small files through which the parent process and the ranks talk. Standard library only.

Signals do not pass through launchers reliably (accelerate and torchrun each handle them in their own way), and exit
codes do not pass through them at all: every failure becomes 1 under a long traceback. Files do.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

SUCCEEDED = 0  #: trained to the end
FAILED = 1
REFUSED = 78  #: the run file, its options, data or model are wrong (EX_CONFIG); a retry does not help
STOPPED = 143  #: stopped on request, after saving (128 + SIGTERM)

CONTROL_VARIABLE = "RELAY_TRAINER_CONTROL"
PROCESSES_VARIABLE = "RELAY_TRAINER_PROCESSES"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a rank ended: the exit code for its parent, and a last line for the user."""

    code: int
    message: str = ""


@dataclass(frozen=True, slots=True)
class ControlFolder:
    """The control folder of one attempt. The first outcome that a rank records is the outcome of all."""

    root: Path

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> "ControlFolder":
        """Return the folder that the parent process named in the environment."""
        return cls(Path(environ[CONTROL_VARIABLE]))

    def request_stop(self) -> None:
        """Ask all ranks to save and stop at the end of their step."""
        self._stop.touch()

    def stop_requested(self) -> bool:
        """Return True once a stop has been requested."""
        return self._stop.exists()

    def mark_training_started(self) -> None:
        """Record that steps are being trained, so that a stop waits for the end of the step and its checkpoint."""
        self._training.touch()

    def training_started(self) -> bool:
        """Return True once a rank has begun to train steps."""
        return self._training.exists()

    def record_outcome(self, outcome: Outcome) -> bool:
        """Record how this rank ended. Return True when no other rank was first."""
        draft = self.root / f"outcome-{os.getpid()}"
        draft.write_text(json.dumps(asdict(outcome)))
        try:
            os.link(draft, self._outcome)
        except FileExistsError:
            return False
        return True

    def read_outcome(self) -> Outcome | None:
        """Return the recorded outcome, or None while there is none."""
        try:
            return Outcome(**json.loads(self._outcome.read_text()))
        except FileNotFoundError:
            return None

    @property
    def _stop(self) -> Path:
        return self.root / "stop"

    @property
    def _training(self) -> Path:
        return self.root / "training"

    @property
    def _outcome(self) -> Path:
        return self.root / "outcome.json"
