"""What is promised when something breaks during a rollout on production hosts: one row per fault, the end state beside it.

A rollout goes from 1.0.0 to 1.1.0, 5 % -> 50 % -> 100 %, on real hosts: dockerd, sshd, Envoy, guard. Users send GETs all the time.
``tests/faults/test_rollout_faults.py`` applies each row's cause at the row's moment and compares the end state with the row. Read a row as

    fault | when it strikes | exit code and status of the run | what users get afterwards | what may fail for users | words logged

Afterwards, where the run did not finish, the fault is mended and the same run is started again: it must finish (``rerun``).
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from tests.faults import rollout_world as cause

BEFORE = 0  # percent: the fault strikes before the run starts


class Failed(Enum):
    """Which GETs of users may fail, from the break on."""

    NONE = "none"
    OF_NEW = "those that the new version itself answered so"
    OF_BOTH = "those that an instance of either version itself answered so"
    WHILE_THE_EDGE_IS_DOWN = "those that found no edge"


class Runs(Enum):
    """Which instances run afterwards."""

    OLD = "all old ones, none of the new version"
    BOTH_BUT_ONE = "as BOTH, without the old one that is broken"
    BOTH = "all old ones, which are kept as the rollback target, and all new ones"
    OLD_AND_LEFT = "all old ones; new ones that could not be stopped get no traffic"


@dataclass(frozen=True)
class End:
    """The required end state. ``status``: rollout_status, None where nothing was begun: then no route and no container has changed."""

    code: int
    status: str | None
    users: frozenset[str]
    runs: Runs
    rerun: bool  # the run did not finish; mended and started again, it does


GOES_ON = End(0, "completed", frozenset({"1.1.0"}), Runs.BOTH, rerun=False)
GOES_ON_WITHOUT_IT = End(0, "completed", frozenset({"1.1.0"}), Runs.BOTH_BUT_ONE, rerun=False)
GOES_BACK = End(1, "rolled_back", frozenset({"1.0.0"}), Runs.OLD, rerun=True)
CANCELLED = End(1, "cancelled", frozenset({"1.0.0"}), Runs.OLD, rerun=True)
CANCELLED_BUT_ONE = End(1, "cancelled", frozenset({"1.0.0"}), Runs.OLD_AND_LEFT, rerun=True)  # a lost host goes back by its guard
REFUSED = End(1, None, frozenset({"1.0.0"}), Runs.OLD, rerun=True)
BAD_INPUT = End(2, None, frozenset({"1.0.0"}), Runs.OLD, rerun=True)
UNREACHED = End(3, None, frozenset({"1.0.0"}), Runs.OLD, rerun=True)
BACK_BY_GUARD = End(3, "failed", frozenset({"1.0.0"}), Runs.OLD_AND_LEFT, rerun=True)  # nobody could be told: the guard did it
BACK_BUT_ONE = End(3, "rolled_back", frozenset({"1.0.0"}), Runs.OLD_AND_LEFT, rerun=True)  # a lost host goes back by its guard
RUNNER_DEAD = End(-signal.SIGKILL, None, frozenset({"1.0.0"}), Runs.OLD_AND_LEFT, rerun=True)


@dataclass(frozen=True)
class Row:
    """One fault and its end. ``sampled``: part of the ordinary run; the others run with ``scripts/test --all``.

    ``back_within``: seconds from the break until no user of a host that is reached gets the new version any more; None: not this
    row's promise; a host that is lost goes back by its lease, within 5 s. ``host``: the kind of the first host (``rollout_hosts``).
    """

    fault: str
    when: int
    broken: cause.Cause
    end: End
    failed: Failed = Failed.NONE
    logged: tuple[str, ...] = ()
    back_within: float | None = None
    hosts: int = 1
    lease: float = 6.0
    settings: Mapping[str, str] = field(default_factory=dict)
    rollout: Mapping[str, object] = field(default_factory=dict)
    users: int = 1  # per host
    kept: bool = False  # users' connections stay open, as those of a balancer do
    moving: bool = False  # strikes as soon as the stage's weight was moved, before it was read back, not while the stage is watched
    host: str = ""
    sampled: bool = False

    @property
    def name(self) -> str:
        """Return the row's name in test reports."""
        moment = "before" if self.when == BEFORE else f"{'on the way to' if self.moving else 'at'} {self.when}"
        return f"{self.fault} {moment}".replace(" ", "-")


LONG = {"PROGRESSIVE_MINUTES": "3"}  # the fault ends the stage long before
PATIENT = {"PROGRESSIVE_MINUTES": "0.2", "HEALTH_CHECK_RETRIES": "400"}  # the host's recovery may take its time
BRIEF_NOISE = {"HEALTH_CHECK_INTERVAL": "1", "HEALTH_CHECK_RETRIES": "20"}
TOLERANT = {"error_rate_points": 100.0}  # failed requests are not held against the new version: the row is about something else
SICK = ("1.1.0.sick", "1.1.0.error")  # both at once: health and work answer 500
BOTH_SICK = (*SICK, "1.0.0.sick", "1.0.0.error")

ROWS = (
    # --- connections to the hosts
    Row("wrong host key", BEFORE, cause.other_host_key, REFUSED, logged=("ost key",)),
    Row("wrong key", BEFORE, cause.other_key, BAD_INPUT, logged=("refuses the key",)),
    Row(
        "sshd away for 2 s",
        5,
        cause.sshd_away(2),
        GOES_ON,
        logged=("connection lost, opening it again",),
        lease=30.0,
        settings={"CANARY_MINUTES": "0.2", **BRIEF_NOISE},
    ),
    Row(
        "sshd away for longer than the lease",
        50,
        cause.sshd_gone,
        BACK_BY_GUARD,
        logged=("could not be taken back", "by itself"),
        back_within=11,
        settings=LONG,
    ),
    Row("one of three hosts unreachable", BEFORE, cause.sshd_gone, UNREACHED, logged=("cannot be reached",), hosts=3),
    Row(
        "one of three hosts unreachable",
        50,
        cause.sshd_gone,
        BACK_BUT_ONE,
        logged=("NOT proved", "not reached"),
        back_within=10,
        hosts=3,
        settings=LONG,
    ),
    Row(
        "one of three hosts silent",
        50,
        cause.black_hole,
        BACK_BUT_ONE,
        logged=("NOT proved", "not reached"),
        back_within=10,
        hosts=3,
        settings=LONG,
    ),
    Row(
        "sshd away for 2 s",
        50,
        cause.sshd_away(2),
        GOES_ON,
        logged=("connection lost, opening it again",),
        lease=30.0,
        moving=True,
        settings=BRIEF_NOISE,
    ),
    Row(
        "one of three hosts silent",
        50,
        cause.black_hole,
        BACK_BUT_ONE,
        logged=("NOT proved", "not reached"),
        back_within=10,
        hosts=3,
        moving=True,
        settings=LONG,
    ),
    # --- the hosts
    Row("guard killed", 50, cause.killed("azora-guard"), GOES_ON, settings=PATIENT, lease=30.0),
    Row("new instance killed", 50, cause.new_instance_gone, GOES_BACK, logged=("process ended",), back_within=10, settings=LONG),
    Row("new instance crashes once", 50, cause.new_instance_crashes, GOES_ON, settings=PATIENT, rollout=TOLERANT),
    Row("Envoy killed", 50, cause.killed("azora-edge"), GOES_ON, Failed.WHILE_THE_EDGE_IS_DOWN, settings=PATIENT, lease=30.0),
    Row(
        "dockerd restarted, containers too",
        50,
        cause.docker_restarted,
        GOES_ON,
        Failed.WHILE_THE_EDGE_IS_DOWN,
        settings=PATIENT,
        lease=60.0,
    ),
    # When dockerd 20.10 starts, it writes the rules of published ports anew: for about 0.3 s, new connections are refused.
    Row(
        "dockerd restarted with live-restore",
        50,
        cause.docker_restarted,
        GOES_ON,
        host="live-restore",
        kept=True,
        settings=PATIENT,
        lease=60.0,
    ),
    Row("clock an hour behind", BEFORE, cause.clock_off(-3600), REFUSED, logged=("clock is off",), host="clock"),
    Row("clock jumps by an hour", 50, cause.clock_off(3600), GOES_ON, host="clock", settings={"PROGRESSIVE_MINUTES": "0.2"}),
    Row("disk full", BEFORE, cause.disk_filled, REFUSED, logged=("too little disk",), host="small disk"),
    Row(
        "disk full", 50, cause.disk_filled, GOES_BACK, logged=("disk is full",), host="small disk", settings={"PROGRESSIVE_MINUTES": "0.1"}
    ),
    Row("image missing in the registry", BEFORE, cause.image_missing, GOES_BACK, logged=("image cannot be pulled",)),
    # --- the new version
    *(
        Row(
            "healthy for a while and then 500s",
            when,
            cause.flags(*SICK),
            GOES_BACK,
            Failed.OF_NEW,
            logged=("api_gateway",),
            back_within=10,
            settings=settings,
        )
        for when, settings in ((5, {"CANARY_MINUTES": "3"}), (50, LONG), (100, {"FULL_MINUTES": "3"}))
    ),
    Row(
        "500s for users only",
        50,
        cause.flags("1.1.0.error"),
        GOES_BACK,
        Failed.OF_NEW,
        logged=("new version failed", "99% confidence"),
        back_within=20,
        settings=LONG,
        sampled=True,
    ),
    Row(
        "answers the old version",
        50,
        cause.flags("1.1.0.liar"),
        GOES_BACK,
        logged=("answers version 9.9.9, expected 1.1.0",),
        back_within=10,
        settings=LONG,
    ),
    Row("hangs", BEFORE, cause.flags("1.1.0.hang"), GOES_BACK, logged=("no answer within",), settings={"HEALTH_CHECK_TIMEOUT": "3"}),
    Row("hangs", 50, cause.flags("1.1.0.hang"), GOES_BACK, Failed.OF_NEW, logged=("no answer within",), back_within=20, settings=LONG),
    Row("answers HTML with 200", 50, cause.flags("1.1.0.html"), GOES_BACK, logged=("text/html, not JSON",), back_within=10, settings=LONG),
    Row(
        "slow",
        50,
        cause.flags("1.1.0.slow"),
        GOES_BACK,
        logged=("new version's p95 is", "factor 3"),
        back_within=60,
        settings=LONG,
        rollout={"latency_factor": 3.0},
        users=8,
    ),
    # --- the old version
    Row(
        "both versions fail for a while",
        50,
        cause.flags_until_logged("both fail, not the new one's fault", *BOTH_SICK),
        GOES_ON,
        Failed.OF_BOTH,
        logged=("old and new version both fail, not the new one's fault",),
        settings={"PROGRESSIVE_MINUTES": "0.2"},
        rollout=TOLERANT,
    ),
    Row(
        "both versions fail for good",
        50,
        cause.flags(*BOTH_SICK),
        End(1, "rolled_back", frozenset({"HTTP 500"}), Runs.OLD, rerun=True),
        Failed.OF_BOTH,
        logged=("HOLD", "still: old and new version both fail", "NOT proved", "the old version is not healthy"),
    ),
    Row(
        "old version fails alone",
        50,
        cause.flags("1.0.0.sick"),
        GOES_ON,
        logged=("the old version fails alone, not the new one's fault",),
        settings={"PROGRESSIVE_MINUTES": "0.1"},
    ),
    Row(
        "one old instance of two gone",
        50,
        cause.old_instance_stopped,
        GOES_ON_WITHOUT_IT,
        logged=("the old version fails alone, not the new one's fault",),
        settings={"PROGRESSIVE_MINUTES": "0.1"},
    ),
    # --- the runner
    Row("cancelled by SIGINT", 50, cause.signal_sent(signal.SIGINT), CANCELLED, back_within=5, settings=LONG),
    Row("cancelled by SIGTERM", 50, cause.signal_sent(signal.SIGTERM), CANCELLED, back_within=5, settings=LONG),
    Row(
        "cancelled while one of three hosts is silent",
        50,
        cause.all_of(cause.black_hole, cause.signal_sent(signal.SIGTERM)),
        CANCELLED_BUT_ONE,
        logged=("NOT proved", "not reached"),
        back_within=5,
        hosts=3,
        settings=LONG,
    ),
    Row("runner killed", 50, cause.runner_lost, RUNNER_DEAD, back_within=11, settings=LONG),
    Row("five runners killed one after the other", BEFORE, cause.runners_lost(0, 1, 2, 3, 4), GOES_ON, lease=3.0, sampled=True),
    Row(
        "another deployment is running",
        BEFORE,
        cause.lock_held,
        REFUSED,
        logged=("Another deployment is running", "somebody", "https://runs.example/7"),
    ),
    Row("lock left by a dead owner", BEFORE, cause.lock_left, GOES_ON, logged=("taking traffic back first",), lease=3.0),
)
