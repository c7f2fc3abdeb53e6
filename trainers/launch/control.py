"""What the light parent and the ranks tell each other, through one small folder. Standard library only.

Signals do not pass launchers reliably (accelerate and torchrun each have their own handling), and exit codes do not
pass them at all: every failure becomes 1 under a long traceback. Files do.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

SUCCEEDED = 0  #: trained to the end
FAILED = 1
REFUSED = 78  #: run file, options, data or model are wrong (EX_CONFIG); trying again changes nothing
STOPPED = 143  #: stopped as asked, after saving (128 + SIGTERM)

CONTROL = "RELAY_TRAINER_CONTROL"
PROCESSES = "RELAY_TRAINER_PROCESSES"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a rank ended: an exit code for the parent and a last line for people."""

    code: int
    line: str = ""


@dataclass(frozen=True, slots=True)
class Control:
    """The folder. The first outcome written stands; a refusal of one rank is the refusal of all."""

    root: Path

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> "Control":
        return cls(Path(environ[CONTROL]))

    def ask_to_stop(self) -> None:
        self._stop.touch()

    def stop_asked(self) -> bool:
        return self._stop.exists()

    def begin_training(self) -> None:
        """From here on there are steps worth saving, so a stop waits for the next step's end."""
        self._training.touch()

    def training(self) -> bool:
        return self._training.exists()

    def conclude(self, outcome: Outcome) -> bool:
        """True for the rank that is first to say how it ended."""
        draft = self.root / f"outcome-{os.getpid()}"
        draft.write_text(json.dumps(asdict(outcome)))
        try:
            os.link(draft, self._outcome)
        except FileExistsError:
            return False
        return True

    def outcome(self) -> Outcome | None:
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
