"""One append stream of a client: batches out, answers in, by `StreamCall`."""

from __future__ import annotations

from collections.abc import Iterable

from dledger.client.stream_call import FrameDialler, GrpcCall, StreamCall, header_of, parse_answer
from dledger.client.transport import AppendAnswer, AppendBatch, StreamHandler
from dledger.types import IndexRun
from dledger.v1 import ledger_pb2

__all__ = ["AppendCall"]


class AppendCall(StreamCall):
    """One AppendStream call. Implements ``AppendStream`` of ``dledger.client.transport``."""

    def __init__(
        self, group: str, address: str, call: GrpcCall, handler: StreamHandler, dialler: FrameDialler | None = None
    ) -> None:
        super().__init__(address, call, dialler)
        self._group = group
        self._handler = handler

    def send(self, batch: AppendBatch) -> None:
        """See ``AppendStream.send``."""
        request = ledger_pb2.AppendBatchRequest(
            group=self._group,
            bodies=batch.bodies,
            session_id=batch.session_id,
            first_sequence=batch.first_sequence,
            request_id=batch.request_id,
        )
        self._send(request.SerializeToString())

    def _hear(self, data: bytes) -> None:
        answer = parse_answer(self._address, ledger_pb2.AppendBatchResponse, data)
        runs: Iterable[ledger_pb2.IndexRun] = answer.runs
        self._handler.on_answer(
            AppendAnswer(
                answer.request_id,
                header_of(answer.header),
                tuple([IndexRun(run.first_index, run.count, run.term) for run in runs]),
            )
        )

    def _lost(self, reason: str) -> None:
        self._handler.on_broken(reason)
