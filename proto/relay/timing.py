"""The timing of leases: a frozen value that cannot be built so that it does not work.

All in seconds. Under policy `stop` the holder's trainer must be dead before anyone else can be granted the run. The
agent counts its trust from `t0`, the moment it *sent* the heartbeat that was answered, and its clock may run off by a
fraction `rho`; so the shim begins to kill at

    t0 + ttl * (1 - 2 * rho) - kill - margin

with `kill` for killing and reaping the whole tree and `margin` for not being scheduled at once (S3).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseTiming:
    """How long a lease lasts, how often it is renewed, and when its holder gives up by itself."""

    ttl: float = 30.0  #: a place lasts this long from its last renewal
    heartbeat: float = 5.0  #: between two heartbeats
    rho: float = 0.005  #: assumed bound on clock rate errors
    kill: float = 8.0  #: killing and reaping a trainer's tree takes at most this long
    margin: float = 2.0  #: the shim is scheduled within this time

    def __post_init__(self) -> None:
        if min(self.ttl, self.heartbeat, self.kill, self.margin) <= 0 or not 0 <= self.rho < 0.1:
            raise ValueError("ttl, heartbeat, kill and margin must be positive, and rho in [0, 0.1)")
        if self.trusted < 3 * self.heartbeat:
            raise ValueError(
                f"a lease of {self.ttl:g} s leaves {self.trusted:.2f} s of trust, "
                f"less than three heartbeats of {self.heartbeat:g} s: two lost heartbeats would end it"
            )

    @property
    def trusted(self) -> float:
        """How long after a renewal's sending the lease may be trusted under policy `stop`."""
        return self.ttl * (1 - 2 * self.rho) - self.kill - self.margin

    def stop_after(self, t0: float) -> float:
        """When the shim begins to kill, on the clock that `t0` was read from."""
        return t0 + self.trusted


DEFAULT = LeaseTiming()
WAN = LeaseTiming(ttl=60.0, heartbeat=10.0, rho=0.01, kill=12.0, margin=3.0)
TEST = LeaseTiming(ttl=3.0, heartbeat=0.5, rho=0.01, kill=0.5, margin=0.3)
PROFILES = {"default": DEFAULT, "wan": WAN, "test": TEST}
