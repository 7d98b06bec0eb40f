"""The Raft core: pure, single-threaded, deterministic. See `dledger.raft.core` for the theory."""
