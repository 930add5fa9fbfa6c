from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FromSite(_message.Message):
    __slots__ = ("hello", "answer", "beat", "noted")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    BEAT_FIELD_NUMBER: _ClassVar[int]
    NOTED_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    answer: Answer
    beat: Beat
    noted: Noted
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., answer: _Optional[_Union[Answer, _Mapping]] = ..., beat: _Optional[_Union[Beat, _Mapping]] = ..., noted: _Optional[_Union[Noted, _Mapping]] = ...) -> None: ...

class ToSite(_message.Message):
    __slots__ = ("welcome", "parcel", "beat", "notice", "head")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    PARCEL_FIELD_NUMBER: _ClassVar[int]
    BEAT_FIELD_NUMBER: _ClassVar[int]
    NOTICE_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    parcel: Parcel
    beat: Beat
    notice: Notice
    head: Head
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., parcel: _Optional[_Union[Parcel, _Mapping]] = ..., beat: _Optional[_Union[Beat, _Mapping]] = ..., notice: _Optional[_Union[Notice, _Mapping]] = ..., head: _Optional[_Union[Head, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("versions", "software", "beats", "notices", "heads")
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    BEATS_FIELD_NUMBER: _ClassVar[int]
    NOTICES_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    versions: _containers.RepeatedScalarFieldContainer[int]
    software: str
    beats: bool
    notices: bool
    heads: bool
    def __init__(self, versions: _Optional[_Iterable[int]] = ..., software: _Optional[str] = ..., beats: bool = ..., notices: bool = ..., heads: bool = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("version", "coordinator", "most_numbers", "beats")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    COORDINATOR_FIELD_NUMBER: _ClassVar[int]
    MOST_NUMBERS_FIELD_NUMBER: _ClassVar[int]
    BEATS_FIELD_NUMBER: _ClassVar[int]
    version: int
    coordinator: str
    most_numbers: int
    beats: bool
    def __init__(self, version: _Optional[int] = ..., coordinator: _Optional[str] = ..., most_numbers: _Optional[int] = ..., beats: bool = ...) -> None: ...

class Beat(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Head(_message.Message):
    __slots__ = ("note",)
    NOTE_FIELD_NUMBER: _ClassVar[int]
    note: bytes
    def __init__(self, note: _Optional[bytes] = ...) -> None: ...

class Notice(_message.Message):
    __slots__ = ("address", "authorities", "cross", "order_keys")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    AUTHORITIES_FIELD_NUMBER: _ClassVar[int]
    CROSS_FIELD_NUMBER: _ClassVar[int]
    ORDER_KEYS_FIELD_NUMBER: _ClassVar[int]
    address: str
    authorities: bytes
    cross: bytes
    order_keys: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, address: _Optional[str] = ..., authorities: _Optional[bytes] = ..., cross: _Optional[bytes] = ..., order_keys: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Noted(_message.Message):
    __slots__ = ("sha256",)
    SHA256_FIELD_NUMBER: _ClassVar[int]
    sha256: bytes
    def __init__(self, sha256: _Optional[bytes] = ...) -> None: ...

class Numbers(_message.Message):
    __slots__ = ("sha256", "size", "inline")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    INLINE_FIELD_NUMBER: _ClassVar[int]
    sha256: bytes
    size: int
    inline: bytes
    def __init__(self, sha256: _Optional[bytes] = ..., size: _Optional[int] = ..., inline: _Optional[bytes] = ...) -> None: ...

class Parcel(_message.Message):
    __slots__ = ("id", "kind", "group", "records", "numbers")
    ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    id: str
    kind: str
    group: str
    records: bytes
    numbers: Numbers
    def __init__(self, id: _Optional[str] = ..., kind: _Optional[str] = ..., group: _Optional[str] = ..., records: _Optional[bytes] = ..., numbers: _Optional[_Union[Numbers, _Mapping]] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("id", "records", "numbers")
    ID_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    id: str
    records: bytes
    numbers: Numbers
    def __init__(self, id: _Optional[str] = ..., records: _Optional[bytes] = ..., numbers: _Optional[_Union[Numbers, _Mapping]] = ...) -> None: ...

class Want(_message.Message):
    __slots__ = ("sha256", "offset", "parcel")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    PARCEL_FIELD_NUMBER: _ClassVar[int]
    sha256: bytes
    offset: int
    parcel: str
    def __init__(self, sha256: _Optional[bytes] = ..., offset: _Optional[int] = ..., parcel: _Optional[str] = ...) -> None: ...

class Held(_message.Message):
    __slots__ = ("offset",)
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    offset: int
    def __init__(self, offset: _Optional[int] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class Piece(_message.Message):
    __slots__ = ("parcel", "sha256", "size", "offset", "data")
    PARCEL_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    parcel: str
    sha256: bytes
    size: int
    offset: int
    data: bytes
    def __init__(self, parcel: _Optional[str] = ..., sha256: _Optional[bytes] = ..., size: _Optional[int] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Renewal(_message.Message):
    __slots__ = ("request", "authority")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    AUTHORITY_FIELD_NUMBER: _ClassVar[int]
    request: bytes
    authority: str
    def __init__(self, request: _Optional[bytes] = ..., authority: _Optional[str] = ...) -> None: ...

class Request(_message.Message):
    __slots__ = ("site", "token", "request", "ledger", "witness")
    SITE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    LEDGER_FIELD_NUMBER: _ClassVar[int]
    WITNESS_FIELD_NUMBER: _ClassVar[int]
    site: str
    token: str
    request: bytes
    ledger: str
    witness: str
    def __init__(self, site: _Optional[str] = ..., token: _Optional[str] = ..., request: _Optional[bytes] = ..., ledger: _Optional[str] = ..., witness: _Optional[str] = ...) -> None: ...

class Certificate(_message.Message):
    __slots__ = ("pem",)
    PEM_FIELD_NUMBER: _ClassVar[int]
    pem: bytes
    def __init__(self, pem: _Optional[bytes] = ...) -> None: ...

class Newcomer(_message.Message):
    __slots__ = ("name", "token", "request")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    name: str
    token: str
    request: bytes
    def __init__(self, name: _Optional[str] = ..., token: _Optional[str] = ..., request: _Optional[bytes] = ...) -> None: ...

class Proposal(_message.Message):
    __slots__ = ("plan", "run", "again")
    PLAN_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    AGAIN_FIELD_NUMBER: _ClassVar[int]
    plan: bytes
    run: str
    again: bool
    def __init__(self, plan: _Optional[bytes] = ..., run: _Optional[str] = ..., again: bool = ...) -> None: ...

class RunName(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: str
    def __init__(self, run: _Optional[str] = ...) -> None: ...

class File(_message.Message):
    __slots__ = ("run", "name", "offset")
    RUN_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    run: str
    name: str
    offset: int
    def __init__(self, run: _Optional[str] = ..., name: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...
