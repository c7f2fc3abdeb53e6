"""The end of a process that has used a bucket."""

from __future__ import annotations

import logging
import os
import sys
from typing import NoReturn


def end_process(code: int) -> NoReturn:
    """End this process, after all is done, with this exit code.

    Threads of obstore's (0.12) abort an interpreter that is taken down just when they let go of something: one process
    in forty then ends with SIGABRT instead, with all its work done. So where it is loaded, nothing is taken down.
    """
    if "obstore" not in sys.modules:
        sys.exit(code)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
