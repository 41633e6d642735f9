"""The rules of the hand-over, one by one: an event goes in, these effects come out, in order."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from novacron_dwcp import Ownership
from novacron_dwcp import messages as msg
from novacron_dwcp.handover import (
    DESTINATION_MOVES,
    ENDED,
    SOURCE_MOVES,
    UNCOMMITTED,
    Begin,
    CancelCopy,
    Converged,
    Copied,
    Copy,
    Destination,
    Destroy,
    Destroyed,
    Effect,
    Effects,
    Failed,
    Finish,
    Forget,
    Gone,
    Input,
    LinkLost,
    Load,
    Loaded,
    OwnerIs,
    Pause,
    Persist,
    Phase,
    Prepare,
    Prepared,
    ReadOwner,
    Record,
    Recorded,
    Resume,
    Resumed,
    Send,
    Source,
    Tell,
    Terms,
    Tick,
    Unwritten,
    answer_without_session,
)

S = "s1"
TERMS = Terms(session=S, machine="vm", source="alpha", target="beta", epoch=4, runs=True)
PAUSED_TERMS = Terms(session=S, machine="vm", source="alpha", target="beta", epoch=4, runs=False)
OFFER = msg.Offer(
    session=S,
    machine="vm",
    source="alpha",
    target="beta",
    epoch=4,
    runs=True,
    driver="wasm",
    memory_bytes=1 << 20,
    compression="zstd",
    settings={},
    origin={},
)
SEAL = msg.Seal(session=S, digest="d1", batches=3, memory="m1")
VERIFIED = msg.Verified(session=S, digest="d1")
RUN = msg.Run(session=S, machine="vm", epoch=5)
RUNNING = msg.Running(session=S, epoch=5)
ABANDONED = msg.Abandoned(session=S, epoch=6, reason="its process died")
OWNED = Ownership(machine="vm", owner="alpha", epoch=4)
GIVEN = Ownership(machine="vm", owner="beta", epoch=5, session=S)
GIVEN_BACK = Ownership(machine="vm", owner="alpha", epoch=6, session=S)
ENDED_ALREADY = msg.Abort(session=S, reason="beta has ended this session")
SOMEBODY = Ownership(machine="vm", owner="gamma", epoch=9, session="s2")
TAKEN_ELSEWHERE = Ownership(machine="vm", owner="gamma", epoch=5, session="s2")
FREE_SOME_ROOM = "free some room on the destination and retry"

TO_COPY: tuple[Input, ...] = (Begin(), msg.Accept(session=S, have=b"have"))
TO_PAUSE = (*TO_COPY, Converged())
TO_SEALED = (*TO_PAUSE, Copied("d1", 3, "m1"))
TO_COMMIT = (*TO_SEALED, VERIFIED)
TO_HANDED = (*TO_COMMIT, Recorded())
WAYS: dict[Phase, tuple[Input, ...]] = {
    Phase.PREPARE: (Begin(),),
    Phase.COPY: TO_COPY,
    Phase.PAUSE: TO_PAUSE,
    Phase.VERIFY: TO_SEALED,
    Phase.COMMIT: TO_COMMIT,
    Phase.RUN: TO_HANDED,
    Phase.RELEASE: (*TO_HANDED, RUNNING),
    Phase.ROLLBACK: (*TO_COPY, Failed("cancelled")),
}
D_COPY: tuple[Input, ...] = (Begin(), Prepared(b"have"))
D_VERIFY = (*D_COPY, SEAL)
D_COMMIT = (*D_VERIFY, Loaded("d1"))
D_RUN = (*D_COMMIT, RUN)
D_WAYS: dict[Phase, tuple[Input, ...]] = {
    Phase.PREPARE: (Begin(),),
    Phase.COPY: D_COPY,
    Phase.VERIFY: D_VERIFY,
    Phase.COMMIT: D_COMMIT,
    Phase.RUN: D_RUN,
    Phase.ROLLBACK: (*D_COMMIT, Gone("its process died")),
}


def source(*events: Input, terms: Terms = TERMS, recovered: bool = False) -> Source:
    made = Source(terms, offer=OFFER, recovered=recovered)
    for event in events:
        made.handle(event)
    return made


def source_in(phase: Phase, terms: Terms = TERMS) -> Source:
    made = source(*WAYS[phase], terms=terms)
    assert made.phase is phase
    return made


def destination(
    *events: Input, terms: Terms = TERMS, recovered: Phase | None = None, digest: str = ""
) -> Destination:
    made = Destination(terms, recovered=recovered, digest=digest)
    for event in events:
        made.handle(event)
    return made


def destination_in(phase: Phase, terms: Terms = TERMS) -> Destination:
    made = destination(*D_WAYS[phase], terms=terms)
    assert made.phase is phase
    return made


def abort(reason: str) -> Send:
    return Send(msg.Abort(session=S, reason=reason))


def refuse(reason: str, hint: str = "", *, again: bool = False) -> Send:
    return Send(msg.Refuse(session=S, reason=reason, hint=hint, again=again))


def rolled_back(reason: str, hint: str = "", *, again: bool = False) -> Effects:
    return (CancelCopy(), Resume(), Finish(Phase.KEPT, reason, hint, again), abort(reason))


# The source: the way that everything goes well.


def test_the_source_notes_the_session_before_it_offers_the_machine() -> None:
    assert source().handle(Begin()) == (Persist(Phase.PREPARE), Send(OFFER))


def test_an_offer_is_repeated_until_it_is_answered() -> None:
    assert source(Begin()).handle(Tick()) == (Send(OFFER),)


def test_the_copy_begins_when_the_destination_accepts_with_what_it_has() -> None:
    began = source(Begin())
    assert began.handle(msg.Accept(session=S, have=b"have")) == (Copy(b"have"),)
    assert began.phase is Phase.COPY


def test_an_accept_that_comes_again_does_not_begin_a_second_copy() -> None:
    assert source_in(Phase.COPY).handle(msg.Accept(session=S)) == ()


def test_the_machine_is_paused_when_the_copy_has_converged() -> None:
    copying = source_in(Phase.COPY)
    assert copying.handle(Converged()) == (Pause(),)
    assert copying.phase is Phase.PAUSE


def test_the_seal_leaves_when_the_paused_machine_has_been_sent_and_is_repeated() -> None:
    paused = source_in(Phase.PAUSE)
    assert paused.handle(Copied("d1", 3, "m1")) == (Send(SEAL),)
    assert paused.phase is Phase.VERIFY
    assert paused.handle(Tick()) == (Send(SEAL),)


def test_the_commit_is_a_compare_and_set_on_the_epoch_by_which_the_source_owns_the_machine() -> (
    None
):
    sealed = source_in(Phase.VERIFY)
    assert sealed.handle(VERIFIED) == (Record(GIVEN, expected_epoch=4),)
    assert sealed.phase is Phase.COMMIT


def test_run_leaves_only_when_the_record_is_durable_and_is_repeated() -> None:
    committing = source_in(Phase.COMMIT)
    assert committing.handle(Recorded()) == (Send(RUN),)
    assert committing.phase is Phase.RUN
    assert committing.handle(Tick()) == (Send(RUN),)


def test_the_copy_is_destroyed_when_the_destination_runs_the_machine() -> None:
    handed = source_in(Phase.RUN)
    assert handed.handle(RUNNING) == (Destroy(),)
    assert handed.phase is Phase.RELEASE
    assert handed.handle(Tick()) == (Destroy(),)


def test_the_session_is_forgotten_when_the_copy_is_gone() -> None:
    releasing = source_in(Phase.RELEASE)
    assert releasing.handle(Destroyed()) == (Finish(Phase.MOVED), Forget())
    assert releasing.phase is Phase.MOVED


# The source: before the commit it may simply go on.


@pytest.mark.parametrize("phase", sorted(UNCOMMITTED))
def test_machine_resumes_on_the_source_when_the_link_is_lost_before_commit(phase: Phase) -> None:
    side = source_in(phase)
    assert side.handle(LinkLost("the link is broken")) == rolled_back(
        "the link is broken", again=True
    )
    assert side.phase is Phase.ROLLBACK


@pytest.mark.parametrize("phase", sorted(UNCOMMITTED))
def test_machine_resumes_on_the_source_when_the_destination_refuses_before_commit(
    phase: Phase,
) -> None:
    effects = source_in(phase).handle(msg.Refuse(session=S, reason="no room", hint="make some"))
    assert effects == rolled_back("no room", "make some")


@pytest.mark.parametrize("phase", sorted(UNCOMMITTED))
@pytest.mark.parametrize("lost", [msg.Unknown(session=S), msg.Aborted(session=S)], ids=repr)
def test_machine_resumes_on_the_source_when_the_destination_has_lost_the_session_before_commit(
    phase: Phase, lost: msg.Message
) -> None:
    effects = source_in(phase).handle(lost)
    why, hint = "the destination lost the session", "retry the migration"
    assert effects == rolled_back(why, hint, again=True)


def test_machine_resumes_on_the_source_when_an_operator_cancels_before_commit() -> None:
    assert source_in(Phase.PAUSE).handle(Failed("cancelled")) == rolled_back("cancelled")


def test_machine_resumes_on_the_source_when_what_arrived_is_not_what_was_sent() -> None:
    effects = source_in(Phase.VERIFY).handle(msg.Verified(session=S, digest="other"))
    why = "what arrived is not what was sent"
    assert effects == rolled_back(why, "report this", again=True)


def test_a_machine_that_was_paused_when_the_session_began_stays_paused() -> None:
    effects = source_in(Phase.COPY, PAUSED_TERMS).handle(Failed("cancelled"))
    assert effects == (CancelCopy(), Finish(Phase.KEPT, "cancelled"), abort("cancelled"))


def test_a_journal_that_cannot_be_written_ends_the_session_before_anything_was_begun() -> None:
    side = source(Begin())
    effects = side.handle(Unwritten("the disk is full"))
    assert effects == (Finish(Phase.KEPT, "the disk is full", "free some room and retry"),)
    assert side.phase is Phase.KEPT


def test_a_verified_before_the_seal_commits_nothing() -> None:
    for phase in (Phase.PREPARE, Phase.COPY, Phase.PAUSE):
        assert source_in(phase).handle(VERIFIED) == ()


def test_the_abort_is_repeated_until_the_destination_has_cleaned_up() -> None:
    side = source_in(Phase.ROLLBACK)
    assert side.handle(Tick()) == (abort("cancelled"),)
    assert side.handle(msg.Aborted(session=S)) == (Forget(),)
    assert side.phase is Phase.KEPT


# The source: at the commit nobody may cancel, for it is in doubt who owns the machine.


@pytest.mark.parametrize(
    "event",
    [
        LinkLost("cut"),
        Failed("cancelled"),
        Gone("died"),
        msg.Refuse(session=S, reason="no"),
        msg.Unknown(session=S),
        msg.Aborted(session=S),
        RUNNING,
        VERIFIED,
    ],
    ids=lambda event: type(event).__name__,
)
def test_nothing_but_the_register_ends_the_doubt_of_the_commit(event: Input) -> None:
    side = source_in(Phase.COMMIT)
    assert side.handle(event) == ()
    assert side.phase is Phase.COMMIT


def test_a_commit_in_doubt_asks_the_register() -> None:
    assert source_in(Phase.COMMIT).handle(Tick()) == (ReadOwner(),)


def test_a_commit_that_the_register_confirms_says_run() -> None:
    side = source_in(Phase.COMMIT)
    assert side.handle(OwnerIs(GIVEN)) == (Send(RUN),)
    assert side.phase is Phase.RUN


@pytest.mark.parametrize("record", [OWNED, None], ids=["as before", "no record"])
def test_a_commit_that_the_register_does_not_hold_rolls_back(record: Ownership | None) -> None:
    effects = source_in(Phase.COMMIT).handle(OwnerIs(record))
    assert effects == rolled_back("the change of owner could not be recorded", "see the log")


def test_a_commit_that_somebody_else_has_overtaken_never_runs_the_machine_here() -> None:
    side = source_in(Phase.COMMIT)
    assert side.handle(OwnerIs(TAKEN_ELSEWHERE)) == (
        CancelCopy(),
        Finish(Phase.FENCED, "gamma owns vm by epoch 5", "do not start it here"),
        Forget(),
    )
    assert side.phase is Phase.FENCED


# The source: after the commit the machine is the destination's.


@pytest.mark.parametrize(
    "event",
    [
        LinkLost("cut"),
        Failed("cancelled"),
        Gone("died"),
        msg.Refuse(session=S, reason="no"),
        msg.Aborted(session=S),
        msg.Abandoned(session=S, epoch=5, reason="with a wrong epoch"),
        msg.Running(session=S, epoch=4),
        VERIFIED,
        OwnerIs(OWNED),
    ],
    ids=lambda event: type(event).__name__,
)
def test_the_source_stays_paused_after_the_commit_whatever_is_lost(event: Input) -> None:
    side = source_in(Phase.RUN)
    assert side.handle(event) == ()
    assert side.phase is Phase.RUN


@pytest.mark.parametrize(
    ("event", "why"),
    [
        (msg.Unknown(session=S), "it knows nothing of it"),
        (msg.Lost(session=S, reason="its process died"), "its process died"),
    ],
    ids=["unknown", "lost"],
)
def test_a_destination_that_cannot_say_leaves_the_decision_to_a_person_once(
    event: msg.Message, why: str
) -> None:
    side = source_in(Phase.RUN)
    assert side.handle(event) == (
        Tell(
            f"beta owns vm and does not run it: {why}",
            "the copy here stays paused and whole; repair the other node",
        ),
    )
    assert side.handle(event) == ()
    assert side.handle(Tick()) == (Send(RUN),)
    assert side.phase is Phase.RUN


def test_a_machine_that_was_given_back_is_recorded_before_it_resumes() -> None:
    side = source_in(Phase.RUN)
    assert side.handle(ABANDONED) == (CancelCopy(), Record(GIVEN_BACK, None))
    assert side.phase is Phase.ROLLBACK
    assert side.handle(Recorded()) == (
        Resume(),
        Finish(Phase.KEPT, "its process died"),
        Forget(),
    )
    assert side.phase is Phase.KEPT


def test_taking_back_is_repeated_until_the_register_has_it() -> None:
    side = source(*TO_HANDED, ABANDONED)
    assert side.handle(Tick()) == (Record(GIVEN_BACK, None),)
    assert side.handle(msg.Aborted(session=S)) == ()
    assert side.handle(OwnerIs(GIVEN_BACK)) == (
        Resume(),
        Finish(Phase.KEPT, "its process died"),
        Forget(),
    )


def test_a_machine_that_somebody_else_took_meanwhile_is_not_taken_back() -> None:
    side = source(*TO_HANDED, ABANDONED)
    assert side.handle(OwnerIs(SOMEBODY)) == (
        CancelCopy(),
        Finish(Phase.FENCED, "gamma owns vm by epoch 9", "do not start it here"),
        Forget(),
    )
    assert side.phase is Phase.FENCED


def test_a_source_that_has_given_the_machine_away_ends_when_somebody_took_it_from_there() -> None:
    side = source_in(Phase.RUN)
    assert side.handle(OwnerIs(GIVEN)) == side.handle(OwnerIs(GIVEN_BACK)) == ()
    assert side.handle(OwnerIs(SOMEBODY)) == (
        CancelCopy(),
        Finish(Phase.FENCED, "gamma owns vm by epoch 9", "do not start it here"),
        Forget(),
    )


@pytest.mark.parametrize("phase", [Phase.COMMIT, Phase.ROLLBACK])
def test_a_destination_that_waits_gives_up_when_the_register_has_moved_on(phase: Phase) -> None:
    side = destination_in(phase)
    assert side.handle(OwnerIs(OWNED)) == ()
    assert side.handle(OwnerIs(SOMEBODY)) == (
        Destroy(),
        Forget(),
        Finish(Phase.KEPT, "the register has moved on"),
    )
    assert side.phase is Phase.KEPT


def test_a_machine_that_was_given_back_paused_stays_paused() -> None:
    side = source_in(Phase.RUN, PAUSED_TERMS)
    side.handle(ABANDONED)
    assert side.handle(Recorded()) == (Finish(Phase.KEPT, "its process died"), Forget())


def test_a_destination_that_abandons_during_the_roll_back_is_taken_back_from() -> None:
    side = source_in(Phase.ROLLBACK)
    assert side.handle(ABANDONED) == (CancelCopy(), Record(GIVEN_BACK, None))


# The source: after a restart the register alone decides.


@pytest.mark.parametrize("event", [Begin(), Tick()], ids=["begin", "tick"])
def test_a_restarted_source_asks_the_register_first(event: Input) -> None:
    assert source(recovered=True).handle(event) == (ReadOwner(),)


@pytest.mark.parametrize("record", [OWNED, None], ids=["as before", "no record"])
def test_a_restarted_source_that_owns_the_machine_resumes_it(record: Ownership | None) -> None:
    effects = source(Begin(), recovered=True).handle(OwnerIs(record))
    why, hint = "the node was restarted in the middle", "retry the migration"
    assert effects == rolled_back(why, hint, again=True)


def test_a_restarted_source_that_has_given_the_machine_away_says_run_again() -> None:
    side = source(Begin(), recovered=True)
    assert side.handle(OwnerIs(GIVEN)) == (Send(RUN),)
    assert side.phase is Phase.RUN


def test_a_restarted_source_never_runs_what_somebody_else_owns() -> None:
    side = source(Begin(), recovered=True)
    assert Resume() not in side.handle(OwnerIs(SOMEBODY))
    assert side.phase is Phase.FENCED


@pytest.mark.parametrize(
    "event", [VERIFIED, RUNNING, ABANDONED, LinkLost("cut"), Failed("cancelled")], ids=repr
)
def test_a_restarted_source_does_nothing_before_the_register_has_answered(event: Input) -> None:
    side = source(Begin(), recovered=True)
    assert side.handle(event) == ()
    assert side.phase is Phase.PREPARE


# The destination: the way that everything goes well.


def test_the_destination_notes_the_session_before_it_makes_room() -> None:
    assert destination().handle(Begin()) == (Persist(Phase.PREPARE), Prepare())


def test_the_destination_accepts_with_what_it_has_and_says_so_again_when_asked_again() -> None:
    side = destination(Begin())
    accept = Send(msg.Accept(session=S, have=b"have"))
    assert side.handle(Prepared(b"have")) == (accept,)
    assert side.phase is Phase.COPY
    assert side.handle(OFFER) == (accept,)


def test_the_seal_makes_the_destination_load_and_compare() -> None:
    side = destination_in(Phase.COPY)
    assert side.handle(SEAL) == (Load(3, "m1"),)
    assert side.phase is Phase.VERIFY
    assert side.handle(SEAL) == ()


def test_verified_is_said_only_after_it_is_durably_noted_and_is_said_again() -> None:
    side = destination_in(Phase.VERIFY)
    assert side.handle(Loaded("d1")) == (Persist(Phase.COMMIT, "d1"), Send(VERIFIED))
    assert side.phase is Phase.COMMIT
    assert side.handle(SEAL) == (Send(VERIFIED),)


def test_the_destination_records_its_ownership_before_it_runs_the_machine() -> None:
    side = destination_in(Phase.COMMIT)
    assert side.handle(RUN) == (Record(GIVEN, None),)
    assert side.phase is Phase.RUN
    assert side.handle(Recorded()) == (Resume(),)


def test_running_is_said_only_when_the_machine_runs() -> None:
    side = destination(*D_RUN, Recorded())
    assert side.handle(Resumed()) == (Finish(Phase.MOVED), Forget(), Send(RUNNING))
    assert side.phase is Phase.MOVED


def test_a_machine_that_is_to_stay_paused_is_the_destinations_without_being_resumed() -> None:
    side = destination_in(Phase.RUN, PAUSED_TERMS)
    assert side.handle(Recorded()) == (Finish(Phase.MOVED), Forget(), Send(RUNNING))


def test_what_is_unanswered_after_run_is_repeated() -> None:
    side = destination_in(Phase.RUN)
    assert side.handle(Tick()) == (Record(GIVEN, None),)
    side.handle(Recorded())
    assert side.handle(Tick()) == (Resume(),)


# The destination: what it may drop, and what it may not.


@pytest.mark.parametrize("phase", [Phase.PREPARE, Phase.COPY, Phase.VERIFY])
@pytest.mark.parametrize(
    ("event", "said"),
    [
        (msg.Abort(session=S, reason="cancelled"), Send(msg.Aborted(session=S))),
        (Failed("cancelled", "why"), refuse("cancelled", "why")),
        (Gone("cancelled"), refuse("cancelled")),
        (LinkLost("cancelled"), refuse("cancelled", again=True)),
        (Failed("cancelled", "", again=True), refuse("cancelled", again=True)),
        (Unwritten("cancelled"), refuse("cancelled", FREE_SOME_ROOM)),
    ],
    ids=["abort", "failed", "gone", "link lost", "wrong batch", "disk full"],
)  # fmt: skip
def test_before_verified_the_destination_drops_everything_and_says_so(
    phase: Phase, event: Input, said: Send
) -> None:
    side = destination_in(phase)
    hint, again = getattr(said.message, "hint", ""), getattr(said.message, "again", False)
    assert side.handle(event) == (
        Destroy(),
        Forget(),
        said,
        Finish(Phase.KEPT, "cancelled", hint, again),
    )
    assert side.phase is Phase.KEPT


def test_a_load_that_is_not_what_was_sealed_is_refused() -> None:
    effects = destination_in(Phase.VERIFY).handle(Loaded("other"))
    assert effects[:3] == (
        Destroy(),
        Forget(),
        refuse("what arrived is not what was sent", "report this"),
    )


def test_a_note_that_cannot_be_written_is_no_verified_and_drops_everything() -> None:
    side = destination_in(Phase.COMMIT)
    effects = side.handle(Unwritten("the disk is full"))
    assert effects[:2] == (Destroy(), Forget())
    assert side.phase is Phase.KEPT


def test_a_verified_destination_waits_however_long_the_link_is_broken() -> None:
    side = destination_in(Phase.COMMIT)
    assert side.handle(LinkLost("cut")) == ()
    assert side.handle(Tick()) == ()
    assert side.phase is Phase.COMMIT


def test_a_verified_destination_is_released_by_the_owner_alone() -> None:
    effects = destination_in(Phase.COMMIT).handle(msg.Abort(session=S, reason="cancelled"))
    assert effects == (
        Destroy(),
        Forget(),
        Send(msg.Aborted(session=S)),
        Finish(Phase.KEPT, "cancelled"),
    )


@pytest.mark.parametrize("epoch", [0, 4, 6, 1 << 60])
def test_a_run_with_another_epoch_runs_nothing(epoch: int) -> None:
    side = destination_in(Phase.COMMIT)
    assert side.handle(msg.Run(session=S, machine="vm", epoch=epoch)) == ()
    assert side.phase is Phase.COMMIT


@pytest.mark.parametrize("event", [Gone("its process died"), Failed("its process died")], ids=repr)
def test_a_verified_destination_that_cannot_run_it_gives_it_back_before_it_says_so(
    event: Input,
) -> None:
    side = destination_in(Phase.COMMIT)
    assert side.handle(event) == (Record(GIVEN_BACK, None),)
    assert side.phase is Phase.ROLLBACK
    assert side.handle(Recorded()) == (
        Destroy(),
        Forget(),
        Send(ABANDONED),
        Finish(Phase.KEPT, "its process died"),
    )
    assert side.phase is Phase.KEPT


def test_giving_back_is_repeated_until_the_register_has_it_and_run_is_not_heard() -> None:
    side = destination_in(Phase.ROLLBACK)
    assert side.handle(RUN) == ()
    assert side.handle(Tick()) == (Record(GIVEN_BACK, None),)
    assert Send(ABANDONED) in side.handle(OwnerIs(GIVEN_BACK))


def test_a_process_that_dies_before_the_record_is_given_back() -> None:
    side = destination_in(Phase.RUN)
    assert side.handle(Gone("its process died")) == (Record(GIVEN_BACK, None),)
    assert side.phase is Phase.ROLLBACK


def test_a_process_that_dies_after_it_may_have_run_is_lost_and_a_person_decides() -> None:
    side = destination(*D_RUN, Recorded())
    lost = Send(msg.Lost(session=S, reason="its process died"))
    assert side.handle(Gone("its process died")) == (lost,)
    assert side.phase is Phase.RUN
    assert side.handle(Tick()) == ()
    assert side.handle(RUN) == (lost,)


def test_a_register_that_has_moved_on_keeps_the_destination_from_running() -> None:
    side = destination_in(Phase.RUN)
    assert Resume() not in side.handle(OwnerIs(SOMEBODY))
    assert side.phase is Phase.ROLLBACK


# The destination: after a restart.


@pytest.mark.parametrize("phase", [Phase.PREPARE, Phase.COPY, Phase.VERIFY])
def test_a_destination_restarted_before_verified_drops_everything(phase: Phase) -> None:
    side = destination(recovered=phase)
    assert side.handle(Begin())[:2] == (Destroy(), Forget())
    assert side.phase is Phase.KEPT


@pytest.mark.parametrize("event", [Begin(), Tick()], ids=["begin", "tick"])
def test_a_destination_restarted_after_verified_asks_the_register(event: Input) -> None:
    assert destination(recovered=Phase.COMMIT, digest="d1").handle(event) == (ReadOwner(),)


def test_a_restarted_destination_that_owns_the_machine_runs_it() -> None:
    side = destination(Begin(), recovered=Phase.COMMIT, digest="d1")
    assert side.handle(OwnerIs(GIVEN)) == (Resume(),)
    assert side.handle(Resumed()) == (Finish(Phase.MOVED), Forget(), Send(RUNNING))


def test_a_restarted_destination_that_gave_it_back_cleans_up() -> None:
    side = destination(Begin(), recovered=Phase.COMMIT, digest="d1")
    abandoned = Send(msg.Abandoned(session=S, epoch=6, reason=""))
    assert side.handle(OwnerIs(GIVEN_BACK)) == (
        Destroy(),
        Forget(),
        abandoned,
        Finish(Phase.KEPT),
    )


@pytest.mark.parametrize("record", [None, OWNED, SOMEBODY], ids=["none", "as before", "another"])
def test_a_restarted_destination_waits_otherwise_and_still_knows_the_digest(
    record: Ownership | None,
) -> None:
    side = destination(Begin(), recovered=Phase.COMMIT, digest="d1")
    assert side.handle(OwnerIs(record)) == ()
    assert side.phase is Phase.COMMIT
    assert side.handle(SEAL) == (Send(VERIFIED),)
    assert side.handle(RUN) == (Record(GIVEN, None),)


# Messages of other sessions, and without a session.


@pytest.mark.parametrize("phase", sorted(WAYS))
def test_a_message_of_another_session_changes_nothing_at_the_source(phase: Phase) -> None:
    side = source_in(phase)
    for message in (VERIFIED, RUNNING, ABANDONED, msg.Refuse(session=S, reason="no")):
        fields = {name: getattr(message, name) for name in message.__struct_fields__}
        assert side.handle(type(message)(**fields | {"session": "s2"})) == ()
    assert side.phase is phase


@pytest.mark.parametrize("phase", sorted(D_WAYS))
def test_a_message_of_another_session_changes_nothing_at_the_destination(phase: Phase) -> None:
    side = destination_in(phase)
    for message in (
        msg.Run(session="s2", machine="vm", epoch=5),
        msg.Abort(session="s2", reason="cancelled"),
        msg.Seal(session="s2", digest="d1", batches=3),
    ):
        assert side.handle(message) == ()
    assert side.phase is phase


@pytest.mark.parametrize(
    ("message", "record", "answer"),
    [
        (msg.Abort(session=S, reason="x"), None, msg.Aborted(session=S)),
        (SEAL, None, msg.Unknown(session=S)),
        (RUN, None, msg.Unknown(session=S)),
        (RUN, OWNED, msg.Unknown(session=S)),
        (RUN, GIVEN, msg.Running(session=S, epoch=5)),
        (RUN, SOMEBODY, msg.Running(session=S, epoch=9)),
        (RUN, GIVEN_BACK, msg.Abandoned(session=S, epoch=6, reason="beta gave it back")),
        (OFFER, None, None),
        (VERIFIED, None, ENDED_ALREADY),
        (msg.Accept(session=S), None, ENDED_ALREADY),
        (RUNNING, None, None),
    ],
    ids=["abort", "seal", "run unknown", "run older", "run ours", "run newer", "run given back",
         "offer", "verified", "accept", "running"],
)  # fmt: skip
def test_a_node_without_the_session_answers_from_its_register(
    message: msg.Message, record: Ownership | None, answer: msg.Message | None
) -> None:
    assert answer_without_session(message, "beta", record) == answer


# The tables.


def test_every_way_that_a_test_took_ends_where_the_tables_say() -> None:
    assert set(SOURCE_MOVES) == set(WAYS)
    assert set(DESTINATION_MOVES) == set(D_WAYS)
    for moves in (SOURCE_MOVES, DESTINATION_MOVES):
        assert not ENDED & set(moves)
        assert set().union(*moves.values()) <= set(Phase)


def test_a_move_that_is_not_in_the_table_is_a_fault_of_ours() -> None:
    side = source_in(Phase.RUN)
    with pytest.raises(RuntimeError, match="cannot go from run to copy"):
        side._to(Phase.COPY)
    assert side.phase is Phase.RUN


RECORDS = st.sampled_from([None, OWNED, GIVEN, GIVEN_BACK, SOMEBODY, TAKEN_ELSEWHERE])
EVENTS = st.one_of(
    st.sampled_from(
        [
            Begin(), Tick(), Prepared(b"have"), Converged(), Copied("d1", 3, "m1"), Loaded("d1"),
            Loaded("other"), Recorded(), Resumed(), Destroyed(), Gone("died"), Failed("cancelled"),
            LinkLost("cut"), Unwritten("full"), OFFER, SEAL, VERIFIED, RUN, RUNNING, ABANDONED,
            msg.Accept(session=S), msg.Refuse(session=S, reason="no"), msg.Unknown(session=S),
            msg.Lost(session=S, reason="lost"), msg.Abort(session=S, reason="abort"),
            msg.Aborted(session=S), msg.Verified(session=S, digest="other"),
            msg.Run(session=S, machine="vm", epoch=4), msg.Probe(session=S),
        ]
    ),
    st.builds(OwnerIs, RECORDS),
)  # fmt: skip
WHERE = st.sampled_from(sorted(SOURCE_MOVES))
D_WHERE = st.sampled_from(sorted(DESTINATION_MOVES))


def may_run(effects: Effects) -> bool:
    return any(isinstance(effect, Resume) for effect in effects)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(WHERE, st.lists(EVENTS, max_size=12))
def test_a_source_keeps_to_its_table_and_never_resumes_what_it_has_given_away(
    phase: Phase, events: list[Input]
) -> None:
    side = source_in(phase)
    effects: Effects = ()
    for event in events:
        before = side.phase
        if isinstance(event, Unwritten) and not any(isinstance(e, Persist) for e in effects):
            continue  # a driver says so of a Persist, and at no other time
        effects = side.handle(event)
        assert side.phase is before or side.phase in SOURCE_MOVES[before]
        if may_run(effects) and before in (Phase.RUN, Phase.RELEASE):
            raise AssertionError(f"{event} made a source in {before} resume")
        if Send(RUN) in effects:
            assert isinstance(event, Recorded | OwnerIs | Tick | Begin)
        if before in ENDED:
            assert effects == ()


@settings(max_examples=400, deadline=None, derandomize=True)
@given(D_WHERE, st.lists(EVENTS, max_size=12))
def test_a_destination_keeps_to_its_table_and_resumes_only_by_a_durable_record(
    phase: Phase, events: list[Input]
) -> None:
    side = destination_in(phase)
    recorded = False
    for event in events:
        before = side.phase
        effects = side.handle(event)
        assert side.phase is before or side.phase in DESTINATION_MOVES[before]
        recorded = recorded or (before is Phase.RUN and event in (Recorded(), OwnerIs(GIVEN)))
        assert recorded or not may_run(effects)
        if before in ENDED:
            assert effects == ()


def test_every_phase_and_every_message_is_named_in_the_protocol_page() -> None:
    page = (Path(__file__).parents[3] / "docs" / "protocol.md").read_text(encoding="utf-8")
    named = {phase for phase in Phase if phase not in ENDED and phase.name in page}
    assert named == set(Phase) - ENDED
    for kind in msg.Message.__subclasses__():
        assert f"`{kind.__name__}`" in page, kind.__name__
        for field in kind.__struct_fields__:
            assert f"`{field}`" in page, f"{kind.__name__}.{field}"


def test_effects_are_values() -> None:
    assert all(kind.__hash__ is not None for kind in Effect.__subclasses__())
