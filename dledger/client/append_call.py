"""One append stream of a client: batches out, answers in, by `StreamCall`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from dledger.client.stream_call import FrameDialler, GrpcCall, StreamCall, header_of, parse_answer
from dledger.client.transport import AppendAnswer, AppendBatch, Header, StreamHandler
from dledger.protobuf_wire import BYTES, VARINT, bytes_head, kinds, put_varint, read_message
from dledger.types import IndexRun
from dledger.v1 import ledger_pb2

__all__ = ["AppendCall"]

_KINDS: Final = kinds({1: BYTES, 2: BYTES, 3: VARINT})
_RUN_KINDS: Final = kinds({1: VARINT, 2: VARINT, 3: VARINT})


class AppendCall(StreamCall):
    """One AppendStream call. Implements ``AppendStream`` of ``dledger.client.transport``."""

    def __init__(
        self, group: str, address: str, call: GrpcCall, handler: StreamHandler, dialler: FrameDialler | None = None
    ) -> None:
        super().__init__(address, call, dialler)
        self._group = group
        name = group.encode()
        self._group_field = bytes_head(1, len(name)) + name
        self._header: tuple[bytes, Header] | None = None  # the last one, as it came and as it was understood
        self._handler = handler

    def send(self, batch: AppendBatch) -> None:
        """See ``AppendStream.send``."""
        if len(batch.bodies) == 1:
            self._send(self._single(batch))
            return
        request = ledger_pb2.AppendBatchRequest(
            group=self._group,
            bodies=batch.bodies,
            session_id=batch.session_id,
            first_sequence=batch.first_sequence,
            request_id=batch.request_id,
        )
        self._send(request.SerializeToString())

    def _single(self, batch: AppendBatch) -> bytes:
        """Write the request for one entry by hand (`dledger.protobuf_wire` says why)."""
        body = batch.bodies[0]
        return b"".join(
            (
                self._group_field, b"\x12", put_varint(len(body)), body, b"\x18", put_varint(batch.session_id),
                b"\x20", put_varint(batch.first_sequence), b"\x28", put_varint(batch.request_id),
            )
        )  # fmt: skip

    def _hear(self, data: bytes) -> None:
        values = read_message(data, 0, _KINDS)
        if values is not None and self._header is not None and values[1] == self._header[0] and values[2]:
            run = read_message(values[2], 0, _RUN_KINDS)
            if run is not None:
                runs_by_hand = (IndexRun(run[1] or 0, run[2] or 0, run[3] or 0),)
                self._handler.on_answer(AppendAnswer(values[3] or 0, self._header[1], runs_by_hand))
                return
        answer = parse_answer(self._address, ledger_pb2.AppendBatchResponse, data)
        runs: Iterable[ledger_pb2.IndexRun] = answer.runs
        header = header_of(answer.header)
        if values is not None and values[1]:
            self._header = values[1], header
        self._handler.on_answer(
            AppendAnswer(
                answer.request_id,
                header,
                tuple([IndexRun(run.first_index, run.count, run.term) for run in runs]),
            )
        )

    def _lost(self, reason: str) -> None:
        self._handler.on_broken(reason)
