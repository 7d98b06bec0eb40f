"""What a leader knows of one peer: the window, the search for the common point, and what is forgotten when."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from dledger.raft.progress import PeerProgress, ReplicationState
from dledger.raft.ready import SendEntries

PROFILE = settings(derandomize=True, deadline=None, max_examples=100, database=None)


def replicating(match_index: int = 9) -> PeerProgress:
    progress = PeerProgress(match_index + 1, 0)
    progress.acknowledge(match_index)
    progress.become_replicate()
    return progress


def test_a_new_peer_is_probed_from_the_end() -> None:
    """§5.3: nextIndex starts just after the leader's last entry."""
    progress = PeerProgress(10, 5)
    assert progress.state is ReplicationState.PROBE
    assert (progress.match_index, progress.next_index) == (-1, 10)
    assert progress.last_contact_ms == 5


def test_a_probe_does_not_move_the_window() -> None:
    """One probe is out; next_index moves only when the place is known."""
    progress = PeerProgress(10, 0)
    progress.fetching = SendEntries("n1", 10, 12, 1000, 1)
    progress.sent(12, 300, 7)
    assert progress.probe_sent
    assert progress.fetching is None
    assert (progress.next_index, progress.inflight_bytes, len(progress.inflight)) == (10, 0, 0)


def test_the_window_counts_messages_and_bytes() -> None:
    """Each message on the way weighs until it, or a later one, is acknowledged."""
    progress = replicating()
    progress.sent(14, 500, 1)
    progress.sent(19, 300, 2)
    assert (progress.next_index, len(progress.inflight), progress.inflight_bytes) == (20, 2, 800)
    assert progress.acknowledge(12)  # half of the first message: it still counts
    assert (len(progress.inflight), progress.inflight_bytes) == (2, 800)
    assert progress.acknowledge(14)
    assert (len(progress.inflight), progress.inflight_bytes) == (1, 300)
    assert progress.acknowledge(19)
    assert (len(progress.inflight), progress.inflight_bytes) == (0, 0)


def test_a_stale_acknowledgement_changes_nothing() -> None:
    """Answers may be late or doubled."""
    progress = replicating(9)
    assert not progress.acknowledge(9)
    assert not progress.acknowledge(3)
    assert (progress.match_index, progress.next_index) == (9, 10)


def test_become_probe_goes_back_to_what_is_certain() -> None:
    """What was on the way may be lost; what was acknowledged is not."""
    progress = replicating(9)
    progress.sent(30, 500, 1)
    progress.become_probe()
    assert progress.state is ReplicationState.PROBE
    assert (progress.match_index, progress.next_index) == (9, 10)
    assert (len(progress.inflight), progress.inflight_bytes, progress.probe_sent) == (0, 0, False)


def test_become_probe_keeps_the_search_where_nothing_is_certain() -> None:
    """A peer that has not answered since the election is not sent the whole log from index 0."""
    progress = PeerProgress(1_000_000, 0)
    progress.sent(1_000_000, 100, 1)
    progress.become_probe()
    assert (progress.match_index, progress.next_index) == (-1, 1_000_000)


def test_back_up_stops_above_the_match() -> None:
    """A refusal never asks for what is known to match."""
    progress = replicating(9)
    progress.back_up(3)
    assert (progress.state, progress.next_index) == (ReplicationState.PROBE, 10)
    progress = PeerProgress(50, 0)
    progress.back_up(20)
    assert progress.next_index == 20
    assert not progress.optimistic  # where the logs part, entries are sent only when the place is found


def test_pause_waits_for_a_sign_of_life() -> None:
    """Nothing more goes to an unreachable peer until a heartbeat's answer allows it."""
    progress = replicating()
    progress.become_probe()
    progress.pause()
    assert progress.probe_sent
    assert progress.probe_precedes_heartbeat


def test_forget_lowers_the_match() -> None:
    """A peer that lost its folder has nothing any more, whatever it acknowledged."""
    progress = replicating(9)
    progress.forget(-1)
    assert progress.match_index == -1
    progress.forget(5)
    assert progress.match_index == -1  # it never raises


@PROFILE
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("ack"), st.integers(-1, 40)),
            st.tuples(st.just("send"), st.integers(1, 5)),
            st.tuples(st.just("back"), st.integers(0, 40)),
            st.tuples(st.just("probe"), st.just(0)),
            st.tuples(st.just("replicate"), st.just(0)),
        ),
        max_size=40,
    )
)
def test_invariants_hold_over_any_history(steps: list[tuple[str, int]]) -> None:
    """match < next; match never falls; the window is ascending, above the match, and its bytes add up."""
    progress = PeerProgress(5, 0)
    for what, number in steps:
        before = progress.match_index
        if what == "ack":
            progress.acknowledge(number)
        elif what == "send":
            progress.sent(progress.next_index + number - 1, number * 10, 0)
        elif what == "back":
            progress.back_up(number)
        elif what == "probe":
            progress.become_probe()
        else:
            progress.become_replicate()
        assert progress.match_index >= before
        assert progress.match_index < progress.next_index
        lasts = [last for last, _ in progress.inflight]
        assert lasts == sorted(set(lasts))
        assert not lasts or lasts[0] > progress.match_index
        assert progress.inflight_bytes == sum(size for _, size in progress.inflight)
