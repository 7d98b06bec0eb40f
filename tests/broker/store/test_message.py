"""The message codec against the format as it is described, and against bytes that are none."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_adapter.message import (
    Message,
    MessageFormatError,
    SysFlag,
    batch_item,
    decode_batch,
    decode_message,
    encode_message,
    format_properties,
    get_property,
    host_bytes,
    iter_messages,
    java_hash,
    java_hash_text,
    message_id,
    parse_message_id,
    parse_properties,
    pop_properties,
    set_property,
    tags_code,
)
from broker_adapter.store.encode import batch_messages
from broker_adapter.store.index_file import key_hash
from tests.broker.format_reader import hash_of, read_message

HOSTS = st.sampled_from([("127.0.0.1", 10911), ("10.1.2.3", 0), ("::1", 65535), ("2001:db8::7", 80)])
NAMES = st.text(st.characters(blacklist_characters="\x01\x02", blacklist_categories=("Cs",)), min_size=1, max_size=8)


@given(
    st.builds(
        Message,
        topic=st.text("abcXYZ%_-9", min_size=1, max_size=127),
        body=st.binary(max_size=300),
        queue_id=st.integers(0, 2**31 - 1),
        properties=st.dictionaries(NAMES, NAMES).map(format_properties),
        flag=st.integers(-(2**31), 2**31 - 1),
        sys_flag=st.sampled_from([0, 1, 8, 9]),
        born_timestamp=st.integers(0, 2**62),
        born_host=HOSTS,
        reconsume_times=st.integers(0, 16),
        prepared_transaction_offset=st.integers(0, 2**62),
        queue_offset=st.integers(0, 2**62),
        physical_offset=st.integers(0, 2**62),
        store_timestamp=st.integers(0, 2**62),
        store_host=HOSTS,
    )
)
def test_stored_message_is_what_the_format_says(message: Message) -> None:
    """An independent reader and our own decoder find every field again, IPv4 and IPv6 in all mixtures."""
    data = b"\xff" * 3 + encode_message(message)
    read = read_message(data, 3)
    for theirs, ours in {
        "queue_id": "queue_id", "flag": "flag", "queue_offset": "queue_offset", "physical": "physical_offset",
        "born_time": "born_timestamp", "born_host": "born_host", "store_time": "store_timestamp",
        "store_host": "store_host", "reconsume_times": "reconsume_times", "body": "body", "topic": "topic",
        "prepared_offset": "prepared_transaction_offset",
    }.items():  # fmt: skip
        assert getattr(read, theirs) == getattr(message, ours)
    assert bool(read.sys_flag & SysFlag.BORN_HOST_V6) == (":" in message.born_host[0])
    assert bool(read.sys_flag & SysFlag.STORE_HOST_V6) == (":" in message.store_host[0])
    assert read.properties == parse_properties(message.properties)
    again = decode_message(data, 3)
    assert encode_message(again) == data[3:]
    assert again.stored_size == len(data) - 3


def test_places_of_the_fields_that_are_patched() -> None:
    """Queue offset at 20, physical offset at 28, sysFlag at 36, body length at 84: other code relies on them."""
    data = encode_message(Message("T", b"body", queue_offset=7, physical_offset=9, sys_flag=1))
    assert data[4:8].hex() == "daa320a7"
    assert int.from_bytes(data[20:28], "big") == 7
    assert int.from_bytes(data[28:36], "big") == 9
    assert int.from_bytes(data[36:40], "big") == 1
    assert int.from_bytes(data[84:88], "big") == 4
    assert data[88:92] == b"body"


def test_every_cut_and_every_flipped_byte_is_noticed_or_harmless() -> None:
    """A shortened message never decodes; a flipped body byte fails the CRC; nothing raises anything else."""
    data = encode_message(Message("Topic", b"some body", properties=b"TAGS\x01a\x02"))
    for length in range(len(data)):
        with pytest.raises(MessageFormatError):
            decode_message(data[:length])
    for at in range(len(data)):
        broken = bytearray(data)
        broken[at] ^= 0xFF
        try:
            decode_message(bytes(broken))
        except MessageFormatError:
            continue
        assert not 88 <= at < 97, "a changed body must not pass"


def test_limits_of_topic_and_properties() -> None:
    assert decode_message(encode_message(Message("t" * 127, b""))).topic == "t" * 127
    with pytest.raises(MessageFormatError, match="128"):
        encode_message(Message("t" * 128, b""))
    assert len(decode_message(encode_message(Message("t", b"", properties=b"p" * 32767))).properties) == 32767
    with pytest.raises(MessageFormatError, match="32768"):
        encode_message(Message("t", b"", properties=b"p" * 32768))
    with pytest.raises(MessageFormatError, match="address"):
        encode_message(Message("t", b"", born_host=("localhost", 1)))
    with pytest.raises(MessageFormatError, match="field"):
        encode_message(Message("t", b"", queue_id=2**31))


@given(st.text(max_size=60))
def test_hash_is_javas(text: str) -> None:
    """Including text beyond the basic plane, which Java hashes by UTF-16 units."""
    if text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") == text:
        assert java_hash_text(text) == hash_of(text)
    if text.isascii():
        assert java_hash(text.encode()) == hash_of(text)


def test_known_hashes() -> None:
    """Values that any Java gives."""
    assert java_hash(b"") == 0
    assert java_hash(b"hello world") == 1794106052
    assert java_hash(b"polygenelubricants") == -(2**31)
    assert tags_code(b"TagA") == tags_code("TagA") == 2598919
    assert tags_code(None) == tags_code(b"") == 0


@given(
    st.sampled_from(["Topic", "%RETRY%g", "t\u00fcr"]),
    st.text("0123456789ABCDEF", min_size=1, max_size=40) | st.text(max_size=9),
)
def test_index_hash_is_the_absolute_java_hash(topic: str, key: str) -> None:
    """The shortcut for unique ids gives what the plain rule gives."""
    key = key.encode("utf-8", "replace").decode()
    value = hash_of(f"{topic}#{key}")
    assert key_hash(topic.encode(), key.encode()) == (0 if value == -(2**31) else abs(value))


def test_index_hash_of_the_smallest_integer_is_zero() -> None:
    """abs(Integer.MIN_VALUE) is negative in Java; upstream makes it 0. The key is built to hash to exactly that."""
    wanted = 2**31 - (hash_of("t#") * 31**8 + 33 * (31**8 - 1) // 30)
    digits, left = [], wanted % 2**32
    for _ in range(8):
        left, digit = divmod(left, 31)
        digits.append(chr(33 + digit))
    key = "".join(reversed(digits))
    assert hash_of("t#" + key) == -(2**31)
    assert key_hash(b"t", key.encode()) == 0


def test_properties_survive_editing() -> None:
    raw = b"TAGS\x01a\x02XTAGS\x01no\x02KEYS\x01k1 k2"  # as clients send them: the last separator may be missing
    assert get_property(raw, b"TAGS") == b"a"
    assert get_property(raw, b"KEYS") == b"k1 k2"
    assert get_property(raw, b"AGS") is None
    assert get_property(b"XTAGS\x01no\x02TAGS\x01yes", b"TAGS") == b"yes"
    assert parse_properties(set_property(raw, b"TAGS", b"b")) == {"XTAGS": "no", "KEYS": "k1 k2", "TAGS": "b"}
    assert parse_properties(set_property(raw, b"NEW", b"1"))["KEYS"] == "k1 k2"
    assert parse_properties(pop_properties(raw, b"TAGS", b"KEYS")) == {"XTAGS": "no"}
    assert Message("t", b"", properties=b"WAIT\x01false\x02").waits_for_store is False
    assert Message("t", b"").waits_for_store is True


@pytest.mark.parametrize(("host", "length"), [(("127.0.0.1", 10911), 32), (("2001:db8::1", 10911), 56)])
def test_message_id_is_host_and_offset(host: tuple[str, int], length: int) -> None:
    text = message_id(host_bytes(host), 123456789)
    assert len(text) == length
    assert text == text.upper()
    assert parse_message_id(text) == (host, 123456789)
    assert parse_message_id(text.lower()) == (host, 123456789)


def test_message_id_as_upstream_prints_it() -> None:
    assert message_id(host_bytes(("127.0.0.1", 10911)), 0x1234) == "7F00000100002A9F0000000000001234"


@pytest.mark.parametrize(
    "text", ["", "xyz", "7F", "7F00000100002A9F00000000000012345", "7F 00000100002A9F0000000000001234"]
)
def test_bad_message_ids(text: str) -> None:
    with pytest.raises(MessageFormatError):
        parse_message_id(text)


def test_batch_keeps_order_flags_and_properties() -> None:
    items = [(n, b"b%d" % n, b"TAGS\x01t%d" % n + b"\x02" * (n % 2)) for n in range(5)]
    data = b"".join(batch_item(*item) for item in items)
    assert decode_batch(data) == items
    template = Message("Topic", data, 3, b"C\x01x\x02", born_timestamp=4, born_host=("::1", 9), store_timestamp=6)
    stored = [read_message(body) for body in batch_messages(template, items, host_bytes(("127.0.0.1", 10911)))]
    assert [(m.flag, m.body, m.properties) for m in stored] == [
        (n, b"b%d" % n, {"TAGS": f"t{n}", "C": "x"}) for n in range(5)
    ]
    assert {(m.topic, m.queue_id, m.born_host, m.store_host, m.born_time, m.store_time) for m in stored} == {
        ("Topic", 3, ("::1", 9), ("127.0.0.1", 10911), 4, 6)
    }


@given(st.binary(max_size=80))
def test_a_broken_batch_is_an_error_of_its_own_kind(data: bytes) -> None:
    with contextlib.suppress(MessageFormatError):
        assert decode_batch(data)


def test_a_cut_batch_is_refused() -> None:
    data = batch_item(0, b"one", b"") + batch_item(0, b"two", b"P\x01q\x02")
    whole = len(batch_item(0, b"one", b""))
    for length in range(len(data)):
        if length != whole:
            with pytest.raises(MessageFormatError):
                decode_batch(data[:length])


def test_messages_back_to_back() -> None:
    data = b"".join(encode_message(Message("T", b"%d" % n)) for n in range(4))
    assert [m.body for m in iter_messages(data)] == [b"0", b"1", b"2", b"3"]
    with pytest.raises(MessageFormatError):
        list(iter_messages(data[:-1]))
