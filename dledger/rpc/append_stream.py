"""The pipelined append: what becomes of the batches of one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from dledger.protobuf_wire import BYTES, VARINT, kinds, read_message
from dledger.rpc.answers import Answers, check_batch, parse
from dledger.rpc.call_stream import MAX_OUTSTANDING, MAX_OUTSTANDING_BYTES, Requests
from dledger.rpc.interfaces import Backend
from dledger.types import BatchResult
from dledger.v1 import ledger_pb2 as pb

__all__ = ["Batches"]


_Batch = tuple[str, list[bytes], int, int, int]
"""(group, bodies, session, first sequence, request id)"""

_KINDS: Final = kinds({1: BYTES, 2: BYTES, 3: VARINT, 4: VARINT, 5: VARINT})


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
        self._group = backend.group.encode()

    def _begin(self, data: bytes) -> None:
        request_id, size = 0, len(data)
        try:
            group, bodies, session_id, first_sequence, request_id = self._single(data) or _parsed(data)
            self._check_open()
            self._answers.check_group(group)
            check_batch(bodies, len(bodies), first_sequence, self._backend)
            self._backend.submit(
                bodies,
                session_id=session_id,
                first_sequence=first_sequence,
                done=self._done_callback(request_id, size),
            )
        except Exception as error:
            self._complete(request_id, size, None, error)

    def _single(self, data: bytes) -> _Batch | None:
        """Read a batch of one entry by hand (`dledger.protobuf_wire` says why); None for any other."""
        values = read_message(data, 0, _KINDS)
        if values is None:
            return None
        _, group, body, session_id, first_sequence, request_id = values
        if group != self._group or body is None or (session_id or 0) >> 32:
            return None
        return self._backend.group, [body], session_id or 0, first_sequence or 0, request_id or 0

    def _done_callback(self, request_id: int, size: int) -> Callable[[BatchResult | None, Exception | None], None]:
        def done(result: BatchResult | None, error: Exception | None) -> None:
            self._complete(request_id, size, result, error)

        return done

    def _complete(self, request_id: int, size: int, result: BatchResult | None, error: Exception | None) -> None:
        if self._gone:
            return
        if result is None:
            header = self._answers.failure(error or RuntimeError("neither result nor error"), "AppendStream")
            answer = pb.AppendBatchResponse(header=header, request_id=request_id).SerializeToString()
        else:
            answer = self._answers.taken(result, request_id)
        self._answer(answer, size)


def _parsed(data: bytes) -> _Batch:
    request = parse(pb.AppendBatchRequest, data)
    return request.group, list(request.bodies), request.session_id, request.first_sequence, request.request_id
