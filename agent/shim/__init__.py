"""The shim: one tiny process per lease, parent and subreaper of the trainer.

    agent ──(Unix socket, one JSON object a line)──► shim ──► trainer ──► whatever it starts

It exists so that the agent may die, freeze, be restarted or upgraded while the trainer never notices. It keeps stdout,
stderr and the exit code on disk, kills the *whole* tree when it must, and under policy `stop` does so by a deadline of
its own, without any other process.

What is promised
  * Every process the trainer ever started, `setsid` or not, is a descendant of the shim (PR_SET_CHILD_SUBREAPER), so
    "no children left" (ECHILD) *is* "the whole tree is reaped".
  * Trust is a moment on CLOCK_BOOTTIME, which also counts while the host sleeps. It only moves forward; once the kill
    has begun nothing undoes it.
  * A dead shim takes the trainer with it (PR_SET_PDEATHSIG). That signal does not reach the grandchildren: whoever
    finds the shim dead looks for its mark, `RELAY_SHIM=<id>`, in their environments (`agent.shim_client.orphans`).
What is not promised
  * A process in uninterruptible sleep dies when the kernel lets it. Until then the shim keeps sweeping and `wait` is
    not answered.
  * A deadline is kept if the shim runs within the timing's margin. Under `stop` it takes real-time priority for that,
    which needs CAP_SYS_NICE (root has it); without it, a trainer that keeps every core busy while the shim has a low
    priority can delay it for seconds.
  * A shim that is itself frozen (SIGSTOP, a frozen control group) enforces nothing until it thaws. Its agent notices,
    sends it SIGCONT, and where that does not help kills it, and so the trainer (`Shim.wait`). While the shim is alive
    its lease stays held, since nobody else may have the run while an unsupervised trainer runs.

Life: it is started with `python -I -S`, its id and the runtime folder as arguments and a listening socket as standard
input; then comes one `start` with the job. Before that it is a *spare*, which ends when no agent is connected any more.

    server              the process itself: its socket, its loop, the requests
    trainer_supervisor  one job from its start to its exit, and the files that describe it
    kill_deadlines      when a trainer is asked to stop and when it is killed: rules without processes
    tree                the trainer and everything it starts: start, ask to stop, kill, reap
    processes           what all this needs of Linux

All that runs in the shim's process is in this package, and nothing else is: standard library only, and few modules of
it, since a run waits for this to start. One thread, one selector, no sleeping. The agent's side is `agent.shim_client`:
`shims` (start one, find those that live, talk to them), `jobs` (the messages between the two) and `orphans`.
"""
