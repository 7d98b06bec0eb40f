"""The pipelined append: what becomes of the batches of one call."""

from __future__ import annotations

from collections.abc import Callable

from dledger.rpc.answers import Answers, check_batch, parse, run_messages
from dledger.rpc.call_stream import MAX_OUTSTANDING, MAX_OUTSTANDING_BYTES, Requests
from dledger.rpc.interfaces import Backend
from dledger.types import BatchResult
from dledger.v1 import ledger_pb2 as pb

__all__ = ["Batches"]


class Batches(Requests):
    """AppendBatchRequests, submitted in the order in which they come and answered as they complete."""

    def __init__(
        self,
        backend: Backend,
        answers: Answers,
        *,
        max_outstanding: int = MAX_OUTSTANDING,
        max_bytes: int = MAX_OUTSTANDING_BYTES,
    ) -> None:
        super().__init__(max_outstanding, max_bytes)
        self._backend = backend
        self._answers = answers

    def _begin(self, data: bytes) -> None:
        request_id, size = 0, len(data)
        try:
            request = parse(pb.AppendBatchRequest, data)
            request_id = request.request_id
            self._check_open()
            self._answers.check_group(request.group)
            bodies = list(request.bodies)
            check_batch(bodies, len(bodies), request.first_sequence, self._backend)
            self._backend.submit(
                bodies,
                session_id=request.session_id,
                first_sequence=request.first_sequence,
                done=self._done_callback(request_id, size),
            )
        except Exception as error:
            self._complete(request_id, size, None, error)

    def _done_callback(self, request_id: int, size: int) -> Callable[[BatchResult | None, Exception | None], None]:
        def done(result: BatchResult | None, error: Exception | None) -> None:
            self._complete(request_id, size, result, error)

        return done

    def _complete(self, request_id: int, size: int, result: BatchResult | None, error: Exception | None) -> None:
        if self._gone:
            return
        if result is None:
            header = self._answers.failure(error or RuntimeError("neither result nor error"), "AppendStream")
            answer = pb.AppendBatchResponse(header=header, request_id=request_id)
        else:
            answer = pb.AppendBatchResponse(
                header=self._answers.success(), runs=run_messages(result), request_id=request_id
            )
        self._answer(answer.SerializeToString(), size)
