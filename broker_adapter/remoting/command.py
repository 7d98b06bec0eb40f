"""One remoting command and its two header encodings.

Frame: ``length`` int32, the bytes after it; int32 whose high byte is the header's serialize type and whose low 24 bits
are its length; header; body. A command is answered in the type that it came in.

Clients are loose with JSON types: numbers where upstream has strings, ``0``/``1`` for booleans, integers for enums.
Values stay as they came (`RemotingCommand.ext`) and the typed getters coerce them, so a pull that reads four of its
ten fields pays for four.
"""

from __future__ import annotations

import enum
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from json import JSONDecodeError
from typing import Any, Final

from broker_adapter.remoting.codes import LANGUAGE_NUMBERS, LANGUAGES, PROTOCOL_VERSION, ResponseCode
from broker_adapter.remoting.errors import CommandError, FrameError

__all__ = [
    "FLAG_ONEWAY",
    "FLAG_RESPONSE",
    "TRUE_TEXTS",
    "RemotingCommand",
    "SerializeType",
    "decode_command",
    "encode_command",
    "encode_head",
    "error_response",
    "header_frame",
    "text_of",
]

FLAG_RESPONSE: Final = 1
FLAG_ONEWAY: Final = 2

_OUR_LANGUAGE: Final = "PYTHON"
_MAX_HEADER_BYTES: Final = (1 << 24) - 1
TRUE_TEXTS: Final = frozenset({"true", "1", "True", "TRUE"})
_FIXED: Final = struct.Struct(">hBhiii")
"""ROCKETMQ header: code, language, version, opaque, flag, remark length."""

_LENGTHS: Final = struct.Struct(">iI")
_INT: Final = struct.Struct(">i")
_SHORT: Final = struct.Struct(">h")

_quoted: Final = json.encoder.encode_basestring_ascii
_decode_json: Final = json.JSONDecoder().decode
_scan_json: Final = json.JSONDecoder().scan_once  # type: ignore[attr-defined] # documented nowhere, set everywhere
_JSON_BLANKS: Final = " \t\n\r"
_FIXED_FIELDS: Final = ("code", "opaque", "flag", "version")
_FIXED_DEFAULTS: Final = (0, 0, 0, 0)
_INT_MIN, _INT_MAX = -(2**31), 2**31 - 1

Body = bytes | bytearray | memoryview


class SerializeType(enum.IntEnum):
    """How a header is written."""

    JSON = 0
    ROCKETMQ = 1


def text_of(value: object) -> str:
    """Write an ext value the way upstream would have: ``true``/``false``, plain numbers, text."""
    if isinstance(value, str):
        return value
    if value is True:
        return "true"
    if value is False:
        return "false"
    if isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return str(value)


@dataclass(slots=True)
class RemotingCommand:
    """One request or response. ``ext``: header fields by name; values may be of any JSON type."""

    code: int
    ext: dict[str, Any] = field(default_factory=dict)
    body: Body = b""
    remark: str | None = None
    opaque: int = 0
    flag: int = 0
    language: str = _OUR_LANGUAGE
    version: int = PROTOCOL_VERSION
    serialize_type: SerializeType = SerializeType.JSON

    @property
    def is_response(self) -> bool:
        return bool(self.flag & FLAG_RESPONSE)

    @property
    def is_oneway(self) -> bool:
        return bool(self.flag & FLAG_ONEWAY)

    # ------------------------------------------------------------------ typed getters

    def text(self, name: str) -> str:
        """Return a required text field; `CommandError` (SYSTEM_ERROR, as upstream) where it is missing."""
        value = self.ext.get(name)
        if value is None:
            raise CommandError(ResponseCode.SYSTEM_ERROR, f"the custom field <{name}> is null")
        return value if isinstance(value, str) else text_of(value)

    def text_or(self, name: str, default: str = "") -> str:
        """Return an optional text field."""
        value = self.ext.get(name)
        return default if value is None else text_of(value)

    def integer(self, name: str) -> int:
        """Return a required integer field (text or number)."""
        value = self.ext.get(name)
        if value is None:
            raise CommandError(ResponseCode.SYSTEM_ERROR, f"the custom field <{name}> is null")
        return _integer(name, value)

    def integer_or(self, name: str, default: int) -> int:
        """Return an optional integer field; empty text counts as missing."""
        value = self.ext.get(name)
        return default if value is None or value == "" else _integer(name, value)

    def boolean_or(self, name: str, default: bool = False) -> bool:
        """Return an optional boolean field: ``true``, ``1`` and JSON's true are true."""
        value = self.ext.get(name)
        if value is None or value == "":
            return default
        return text_of(value) in TRUE_TEXTS

    def json_body(self) -> Any:  # noqa: ANN401 - JSON is any value
        """Return the body as JSON; `CommandError` where it is not."""
        try:
            return json.loads(bytes(self.body))
        except (ValueError, RecursionError) as error:
            raise CommandError(ResponseCode.SYSTEM_ERROR, f"the body is not JSON: {error}") from None

    def json_object(self) -> dict[str, Any]:
        """Return the body as a JSON object; `CommandError` where it is something else."""
        value = self.json_body()
        if not isinstance(value, dict):
            raise CommandError(ResponseCode.SYSTEM_ERROR, "the body is not a JSON object")
        return value

    # ------------------------------------------------------------------ answers

    def response(
        self,
        code: int = ResponseCode.SUCCESS,
        remark: str | None = None,
        ext: Mapping[str, object] | None = None,
        body: Body = b"",
    ) -> RemotingCommand:
        """Return an answer to this request, in its type and with its ``opaque``."""
        return RemotingCommand(
            int(code),
            dict(ext) if ext else {},
            body,
            remark,
            self.opaque,
            FLAG_RESPONSE,
            serialize_type=self.serialize_type,
        )


def _integer(name: str, value: object) -> int:
    if type(value) is int:
        return value
    try:
        if isinstance(value, str):
            if len(value) > 20:
                raise ValueError
            return int(value)
        if isinstance(value, bool):
            return int(value)
        if isinstance(value, float) and value.is_integer():
            return int(value)
    except ValueError:
        pass
    raise CommandError(ResponseCode.SYSTEM_ERROR, f"the custom field <{name}> is not a whole number: {value!r}")


def error_response(request: RemotingCommand, code: int, remark: str) -> RemotingCommand:
    """Return a refusal of ``request``."""
    return request.response(code, remark)


# ---------------------------------------------------------------------- encoding


def _json_header(command: RemotingCommand) -> bytes:
    """Write the header; by hand, because a JSON encoder costs several times as much for so small an object."""
    text = (
        f'{{"code":{command.code:d},"language":{_quoted(command.language)},"version":{command.version:d},'
        f'"opaque":{command.opaque:d},"flag":{command.flag:d},"serializeTypeCurrentRPC":"JSON"'
    )
    if command.remark is not None:
        text += f',"remark":{_quoted(command.remark)}'
    if command.ext:
        # Upstream's fields are strings, whatever they mean; strict clients read nothing else.
        fields = [
            f"{_quoted(name)}:{_quoted(value if type(value) is str else text_of(value))}"
            for name, value in command.ext.items()
            if value is not None
        ]
        text += f',"extFields":{{{",".join(fields)}}}'
    return (text + "}").encode("ascii")


def _binary_header(command: RemotingCommand) -> bytes:
    remark = b"" if command.remark is None else command.remark.encode()
    parts = [
        _FIXED.pack(
            command.code,
            LANGUAGE_NUMBERS.get(command.language, LANGUAGE_NUMBERS["OTHER"]),
            command.version,
            command.opaque,
            command.flag,
            len(remark),
        ),
        remark,
    ]
    fields: list[bytes] = []
    for name, value in command.ext.items():
        if value is None:
            continue
        key, text = name.encode(), text_of(value).encode()
        fields += [_SHORT.pack(len(key)), key, _INT.pack(len(text)), text]
    ext = b"".join(fields)
    return b"".join([*parts, _INT.pack(len(ext)), ext])


def encode_head(command: RemotingCommand, body_bytes: int) -> bytes:
    """Return everything of a frame that stands before its body of ``body_bytes`` bytes."""
    binary = command.serialize_type is SerializeType.ROCKETMQ
    header = _binary_header(command) if binary else _json_header(command)
    if len(header) > _MAX_HEADER_BYTES:
        raise FrameError(f"a header of {len(header)} bytes; a frame has room for {_MAX_HEADER_BYTES}")
    mark = (command.serialize_type << 24) | len(header)
    return _LENGTHS.pack(4 + len(header) + body_bytes, mark) + header


def header_frame(header: bytes, body_bytes: int) -> bytes:
    """Put the two lengths before a JSON header that is encoded already, for a body of ``body_bytes`` bytes."""
    return _LENGTHS.pack(4 + len(header) + body_bytes, len(header)) + header


def encode_command(command: RemotingCommand) -> bytes:
    """Return a whole frame, length first."""
    return encode_head(command, len(command.body)) + bytes(command.body)


# ---------------------------------------------------------------------- decoding


def decode_command(frame: Body) -> RemotingCommand:
    """Decode one frame: the bytes *after* its length.

    Raises:
        FrameError: the header's length or type is wrong, or the header does not decode.
    """
    data = frame if type(frame) is bytes else bytes(frame)
    if len(data) < 4:
        raise FrameError(f"a frame of {len(data)} bytes has no header")
    mark = int.from_bytes(data[:4], "big")
    body_at, kind = 4 + (mark & 0xFFFFFF), mark >> 24
    if body_at > len(data):
        raise FrameError(f"a header of {body_at - 4} bytes in a frame of {len(data)}")
    header = data[4:body_at]
    body = data[body_at:]
    if kind == SerializeType.JSON:
        return _from_json(header, body)
    if kind == SerializeType.ROCKETMQ:
        return _from_binary(header, body)
    raise FrameError(f"unknown serialize type {kind}")


def _language(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int) and 0 <= value < len(LANGUAGES):
        return LANGUAGES[value]
    return "OTHER"


def _header_integer(header: Mapping[str, Any], name: str) -> int:
    value = header.get(name, 0)
    try:
        number = value if type(value) is int else _integer(name, value)
    except CommandError as error:
        raise FrameError(error.remark) from None
    if not _INT_MIN <= number <= _INT_MAX:
        raise FrameError(f"{name} is no 32-bit number: {number}")
    return number


def _parse_json(data: bytes) -> dict[str, Any]:
    try:
        text = data.decode()
        try:
            header, end = _scan_json(text, 0)
        except StopIteration:
            header, end = None, -1
        if end != len(text) and (end < 0 or text[end:].strip(_JSON_BLANKS)):
            header = _decode_json(text)  # blanks before it, or no JSON at all: the slower decoder says which
    except (JSONDecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise FrameError(f"a header that is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise FrameError("a JSON header that is no object")
    return header


def _from_json(data: bytes, body: bytes) -> RemotingCommand:
    header = _parse_json(data)
    ext = header.get("extFields")
    if ext is None:
        ext = {}
    elif not isinstance(ext, dict):
        raise FrameError("extFields is no object")
    remark, language = header.get("remark"), header.get("language")
    code, opaque, flag, version = map(header.get, _FIXED_FIELDS, _FIXED_DEFAULTS)
    if (
        not type(code) is type(opaque) is type(flag) is type(version) is int
        or not _INT_MIN <= code <= _INT_MAX
        or not _INT_MIN <= opaque <= _INT_MAX
        or not _INT_MIN <= flag <= _INT_MAX
        or not _INT_MIN <= version <= _INT_MAX
    ):
        code, opaque, flag, version = [_header_integer(header, name) for name in _FIXED_FIELDS]
    return RemotingCommand(
        code,
        ext,
        body,
        remark if remark is None or type(remark) is str else text_of(remark),
        opaque,
        flag,
        language if type(language) is str else _language(language),
        version,
        SerializeType.JSON,
    )


def _from_binary(data: bytes, body: bytes) -> RemotingCommand:
    try:
        code, language, version, opaque, flag, remark_bytes = _FIXED.unpack_from(data)
        at = _FIXED.size
        remark, at = _text(data, at, remark_bytes)
        (ext_bytes,) = _INT.unpack_from(data, at)
        at += 4
        end = at + ext_bytes
        if ext_bytes < 0 or end > len(data):
            raise FrameError(f"ext fields of {ext_bytes} bytes in a header of {len(data)}")
        ext: dict[str, Any] = {}
        while at < end:
            (key_bytes,) = _SHORT.unpack_from(data, at)
            key, at = _text(data, at + 2, key_bytes)
            (value_bytes,) = _INT.unpack_from(data, at)
            ext[key], at = _text(data, at + 4, value_bytes)
    except (struct.error, UnicodeDecodeError) as error:
        raise FrameError(f"a ROCKETMQ header that does not decode: {error}") from None
    if at > end:
        raise FrameError("ext fields run over their end")
    return RemotingCommand(
        code,
        ext,
        body,
        remark if remark_bytes else None,
        opaque,
        flag,
        _language(language),
        version,
        SerializeType.ROCKETMQ,
    )


def _text(data: bytes, at: int, length: int) -> tuple[str, int]:
    if length < 0 or at + length > len(data):
        raise FrameError(f"a field of {length} bytes in a header of {len(data)}")
    return data[at : at + length].decode(), at + length
