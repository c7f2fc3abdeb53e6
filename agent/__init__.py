"""The agent: one per host; holds leases, starts trainers, carries their events and checkpoints.

the daemon           __main__, config, supervisor (the whole: services, and a task per lease)
the coordinator      session (the reconnecting loop), leases (what is wished and held: pure), contact (connections
                     and retried calls), wire (messages ↔ values)
one lease's life     attempt, in stages: preparing (with inputs, launch), watch (with progress), verdict, ending
                     (with outputs), retiring; orders is what it is told, folder where all its bytes lie
the trainer's keeper shims (the agent's side of `shim`), jobs (what the two tell each other), survivors
the host             capability, vitals

shim/                what runs in the shim's own process, and why there is one
events/              event lines and logs: files, and their way to the coordinator
checkpoints/         sealing, publishing, choosing what to resume from
stores/              where bytes go so that the next host finds them
"""
