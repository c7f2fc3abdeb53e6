"""Seeds that once caught something: they run on every commit.

A red seed of another draw joins them, with a word on what it caught.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

#: What each seed caught when all kinds of faults were drawn. Later changes have given many of them another history:
#: they stay, being as good as any others.
CORPUS: Mapping[int, str] = {
    3: "the trace must not depend on the order of sets",
    7: "the trace must not depend on the order of sets",
    19: "a heartbeat reply of an older session, heard after its end",
    25: "an end that came before the last checkpoint was registered again after a failover",
    76: "a heartbeat that a later one had overtaken",
    101: "a succeeded run with an older head after a failover",
    136: "mutants of the desired state",
    207: "a trust that began with the reply and not with the request",
    414: "a cancellation that left an `except*` block in a group",
    1053: "a cancellation that left an `except*` block in a group",
    1975: "an outage whose length a clock hid",
    2229: "a copy that was scheduled for deletion counted as not tried",
    2434: "a trainer that was killed while it was frozen counted as executing",
    3967: "a lapse before an outage, judged as one after it",
    4198: "pause and resume overtook each other",
    4399: "under `stop` a host that slept started a trainer on an old promise",
    5064: "a trainer that was about to be killed had to hear of a pause",
    5713: "a lease that another machine's session did not list",
    7234: "a copy of a database that did not yet know which it was",
    8822: "a pause while the two ends knew different sessions",
    12306: "a transaction took a lock though its connection was lost",
    13136: "one connection reordered its messages",
    15070: "an agent that was ending began another attempt",
}
#: The seeds of which one must catch each mutant, with the faults that the mutant is hunted with. A history depends
#: on asyncio, which differs between versions of Python: where there are two seeds, the first catches it on Python 3.11
#: and the second on 3.12 and 3.13. `make mutants` finds another one where a change has given a seed another history.
CATCHES: Mapping[str, Sequence[int]] = {
    "trust_from_receipt": (207, 238),
    "no_deadline": (4,),
    "started_too_late": (92,),
    "lapse_unchecked": (0,),
    "no_outage_grace": (17,),
    "no_wish_version": (19,),
    "version_not_raised": (20, 26),
    "begun_while_ending": (83, 19),
    "stop_applied_twice": (78,),
    "renewal_by_name": (5,),
    "beats_of_older_sessions": (213,),
    "missing_too_soon": (0,),
    "clone_taken_for_reboot": (143, 83),
    "clones_admitted": (0,),
    "replaced_come_back": (2,),
    "late_hellos_taken": (127,),
    "overtaken_heartbeats_heard": (18,),
    "unfenced_publish": (11,),
    "unfenced_completion": (7,),
    "unfenced_events": (1,),
    "unfenced_start": (24,),
    "head_before_events": (4,),
    "head_behind_a_fallback": (3,),
    "cursor_outside": (0,),
    "acked_before_commit": (0,),
    "gaps_taken": (0,),
    "overlaps_taken": (4,),
    "nothing_superseded": (1,),
    "resume_from_the_oldest": (2,),
    "only_copy_let_go": (0,),
    "events_before_start": (16, 62),
    "slots_not_taken": (3,),
    "ids_reused": (0,),
    "stop_granted_after_failover": (11, 19),
    "sessions_outlive_failover": (0,),
    "unknown_until_first_look": (7234,),
    "welcome_unheard": (16, 33),
    "first_write_not_repeated": (16, 62),
    "end_before_checkpoints": (214,),
    "foreign_wishes_obeyed": (64,),
}
#: All seeds that a commit simulates whatever the draw is.
KNOWN = sorted({*CORPUS, *(seeds[0] for seeds in CATCHES.values())})
