"""The agent: one per host. It holds leases, starts trainers, and brings their events and checkpoints to safety.

Each line may import those below it, never those above (a contract in pyproject.toml):

__main__             the process: settings, wiring, signals
supervisor, session  the host as a whole, with a task per lease; the stream to the coordinator that reconnects
attempt/             the life of one attempt in stages, from its assignment to its completion
context              what every attempt on this host works with
hub/                 what a run publishes on the Hugging Face Hub
checkpoints/         sealing, publishing, removing, choosing which one to resume from
stores/              where bytes go so that the next host finds them
events/              event lines and logs: files, and how they reach the coordinator
shim_client/         starting the shims, talking to them, reaping what they leave behind
cleanup              what happens to an attempt's files once it is over
host_metrics         the load of this host
coordinator_client   connections to the coordinator, and calls that outlast its absence
wire                 protobuf messages to values and back
leases               what is desired, what is held and how long it may be trusted (pure)
capability, settings what this host has; what it was configured to do
folder               the layout of a run's folder on this host
shim/                what runs in the shim's own process, and why there is one
"""
