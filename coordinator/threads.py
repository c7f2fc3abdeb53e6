"""Work that blocks, in a thread, beside an event loop."""

from relay.threads import in_thread as in_thread
