"""The end of a process that may have used a bucket."""

from __future__ import annotations

import logging
import os
import sys
from typing import NoReturn


def end_process(code: int) -> NoReturn:
    """End this process, whose work is done, with this exit code.

    Threads of obstore 0.12 abort an interpreter that finalizes while they release an object: one process in forty then
    ends with SIGABRT although its work is done. So where obstore is loaded the interpreter is not finalized.
    """
    if "obstore" not in sys.modules:
        sys.exit(code)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
