"""`python -m storage.hub`: do one job on the Hub, read as a line of JSON from stdin and answered on stdout.

The answer is one line, after any lines of progress. The process ends when its stdin is closed, so that nothing is
published for an agent that is dead. The token is in its environment and nowhere else.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from storage.base import DamagedCopy, StoreRefused, StoreUnavailable

Say = Callable[[Mapping[str, Any]], None]


def main() -> NoReturn:
    """Do the job and exit: with 0 also when the answer is an error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the answer
    job = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_stdin, daemon=True).start()

    def say(answer: Mapping[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    say(_answer(job, say))
    answers.close()
    os._exit(0)  # threads of the client may still be waiting


def _end_with_stdin() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


def _answer(job: Mapping[str, Any], say: Say) -> Mapping[str, Any]:
    try:
        return {"done": _done(job, say)}
    except ImportError as error:
        return _error("refused", f"huggingface_hub cannot be used by {sys.executable}: {error}")
    except StoreUnavailable as error:
        return _error("away", str(error), after=error.after)
    except StoreRefused as error:
        return _error("refused", str(error))
    except DamagedCopy as error:
        return _error("damaged", str(error))
    except OSError as error:
        return _error("disk", str(error), errno=error.errno)


def _error(kind: str, text: str, **more: Any) -> dict[str, Any]:
    return {"error": kind, "text": text.replace(os.environ.get("HF_TOKEN") or "\0", "…"), **more}


def _done(job: Mapping[str, Any], say: Say) -> Any:
    from storage.hub import jobs  # imports huggingface_hub, which may not be installed

    return jobs.JOBS[job["job"]](job, lambda size: say({"progress": size}))


if __name__ == "__main__":
    main()
