"""The header of a send, however a client spells it: the fast way and the loose way say the same."""

from __future__ import annotations

from typing import Any

import pytest

from broker_adapter.broker.send import _parse_header, _parse_loose_header
from broker_adapter.remoting.codes import RequestCode
from broker_adapter.remoting.command import RemotingCommand
from broker_adapter.remoting.errors import CommandError

LONG = (
    "producerGroup", "topic", "defaultTopic", "defaultTopicQueueNums", "queueId", "sysFlag", "bornTimestamp", "flag",
    "properties", "reconsumeTimes", "unitMode", "maxReconsumeTimes", "batch",
)  # fmt: skip
SHORT = tuple("abcdefghijklm")
TEXTS: tuple[Any, ...] = (
    "P",
    "T",
    "TBW102",
    "4",
    "3",
    "1",
    "1795000000000",
    "7",
    "KEYS\x01k\x02",
    "2",
    "true",
    "16",
    "false",
)
MIXED: tuple[Any, ...] = ("P", "T", "TBW102", 4, 3, 1, "1795000000000", 7, "", "2", "0", None, "1")


def request(code: RequestCode, values: tuple[Any, ...]) -> RemotingCommand:
    names = LONG if code is RequestCode.SEND_MESSAGE else SHORT
    ext = {name: value for name, value in zip(names, values, strict=True) if value is not None}
    return RemotingCommand(int(code), ext)


def changed(values: tuple[Any, ...], place: int, value: object) -> tuple[Any, ...]:
    return (*values[:place], value, *values[place + 1 :])


@pytest.mark.parametrize(
    "code", [RequestCode.SEND_MESSAGE, RequestCode.SEND_MESSAGE_V2, RequestCode.SEND_BATCH_MESSAGE]
)
@pytest.mark.parametrize(
    "values",
    [
        TEXTS,
        MIXED,
        changed(TEXTS, 10, True),
        changed(TEXTS, 12, 1),
        changed(TEXTS, 12, "TRUE"),
        changed(TEXTS, 5, True),
        changed(TEXTS, 7, 7.0),
        changed(TEXTS, 8, None),
        changed(TEXTS, 3, ""),
        changed(TEXTS, 1, 12),
        changed(TEXTS, 11, ""),
    ],
)
def test_both_ways_agree(code: RequestCode, values: tuple[Any, ...]) -> None:
    made = request(code, values)
    names = LONG if code is RequestCode.SEND_MESSAGE else SHORT
    assert _parse_header(made) == _parse_loose_header(made, names)


def test_what_it_says() -> None:
    header = _parse_header(request(RequestCode.SEND_MESSAGE_V2, TEXTS))
    assert (header.group, header.topic, header.queue_id, header.flag) == ("P", "T", 3, 7)
    assert (header.properties, header.reconsume_times, header.unit_mode, header.batch) == (
        b"KEYS\x01k\x02",
        2,
        True,
        False,
    )
    # The C++ client's way: a batch is code 10 with batch="1", numbers here and there, no maxReconsumeTimes.
    header = _parse_header(request(RequestCode.SEND_MESSAGE, MIXED))
    assert (header.batch, header.unit_mode, header.max_reconsume_times) == (True, False, -1)


@pytest.mark.parametrize(("place", "value"), [(4, "x"), (4, None), (1, None), (5, "1.5"), (7, 7.5), (9, [1])])
def test_nonsense_is_refused(place: int, value: object) -> None:
    with pytest.raises(CommandError):
        _parse_header(request(RequestCode.SEND_MESSAGE_V2, changed(TEXTS, place, value)))
