from cluster.wire.v1 import conductor_pb2 as _conductor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LearnedModel(_message.Message):
    __slots__ = ("kind", "coefficients", "least", "certainty", "moment", "observations")
    KIND_FIELD_NUMBER: _ClassVar[int]
    COEFFICIENTS_FIELD_NUMBER: _ClassVar[int]
    LEAST_FIELD_NUMBER: _ClassVar[int]
    CERTAINTY_FIELD_NUMBER: _ClassVar[int]
    MOMENT_FIELD_NUMBER: _ClassVar[int]
    OBSERVATIONS_FIELD_NUMBER: _ClassVar[int]
    kind: str
    coefficients: _containers.RepeatedScalarFieldContainer[float]
    least: _containers.RepeatedScalarFieldContainer[float]
    certainty: _containers.RepeatedScalarFieldContainer[float]
    moment: _containers.RepeatedScalarFieldContainer[float]
    observations: int
    def __init__(self, kind: _Optional[str] = ..., coefficients: _Optional[_Iterable[float]] = ..., least: _Optional[_Iterable[float]] = ..., certainty: _Optional[_Iterable[float]] = ..., moment: _Optional[_Iterable[float]] = ..., observations: _Optional[int] = ...) -> None: ...

class SnapshotMember(_message.Message):
    __slots__ = ("number", "member", "epoch", "load", "draining", "learned", "position")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    LEARNED_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    number: int
    member: _conductor_pb2.Member
    epoch: int
    load: _conductor_pb2.Load
    draining: bool
    learned: _containers.RepeatedCompositeFieldContainer[LearnedModel]
    position: EventPosition
    def __init__(self, number: _Optional[int] = ..., member: _Optional[_Union[_conductor_pb2.Member, _Mapping]] = ..., epoch: _Optional[int] = ..., load: _Optional[_Union[_conductor_pb2.Load, _Mapping]] = ..., draining: _Optional[bool] = ..., learned: _Optional[_Iterable[_Union[LearnedModel, _Mapping]]] = ..., position: _Optional[_Union[EventPosition, _Mapping]] = ...) -> None: ...

class EventPosition(_message.Message):
    __slots__ = ("epoch", "sequence", "layouts")
    class LayoutsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: bytes
        def __init__(self, key: _Optional[int] = ..., value: _Optional[bytes] = ...) -> None: ...
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    LAYOUTS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    sequence: int
    layouts: _containers.ScalarMap[int, bytes]
    def __init__(self, epoch: _Optional[int] = ..., sequence: _Optional[int] = ..., layouts: _Optional[_Mapping[int, bytes]] = ...) -> None: ...

class SnapshotFleet(_message.Message):
    __slots__ = ("model", "learned")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LEARNED_FIELD_NUMBER: _ClassVar[int]
    model: str
    learned: _containers.RepeatedCompositeFieldContainer[LearnedModel]
    def __init__(self, model: _Optional[str] = ..., learned: _Optional[_Iterable[_Union[LearnedModel, _Mapping]]] = ...) -> None: ...

class SnapshotHeader(_message.Message):
    __slots__ = ("version", "members", "fleets", "answer_tokens", "charged")
    class AnswerTokensEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class ChargedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    FLEETS_FIELD_NUMBER: _ClassVar[int]
    ANSWER_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CHARGED_FIELD_NUMBER: _ClassVar[int]
    version: int
    members: _containers.RepeatedCompositeFieldContainer[SnapshotMember]
    fleets: _containers.RepeatedCompositeFieldContainer[SnapshotFleet]
    answer_tokens: _containers.ScalarMap[str, float]
    charged: _containers.ScalarMap[str, float]
    def __init__(self, version: _Optional[int] = ..., members: _Optional[_Iterable[_Union[SnapshotMember, _Mapping]]] = ..., fleets: _Optional[_Iterable[_Union[SnapshotFleet, _Mapping]]] = ..., answer_tokens: _Optional[_Mapping[str, float]] = ..., charged: _Optional[_Mapping[str, float]] = ...) -> None: ...

class Places(_message.Message):
    __slots__ = ("places",)
    PLACES_FIELD_NUMBER: _ClassVar[int]
    places: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, places: _Optional[_Iterable[int]] = ...) -> None: ...

class SnapshotRun(_message.Message):
    __slots__ = ("keys", "ends", "held")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    ENDS_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    keys: bytes
    ends: _containers.RepeatedScalarFieldContainer[int]
    held: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, keys: _Optional[bytes] = ..., ends: _Optional[_Iterable[int]] = ..., held: _Optional[_Iterable[int]] = ...) -> None: ...

class SnapshotBlocks(_message.Message):
    __slots__ = ("holders", "runs")
    HOLDERS_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    holders: _containers.RepeatedCompositeFieldContainer[Places]
    runs: _containers.RepeatedCompositeFieldContainer[SnapshotRun]
    def __init__(self, holders: _Optional[_Iterable[_Union[Places, _Mapping]]] = ..., runs: _Optional[_Iterable[_Union[SnapshotRun, _Mapping]]] = ...) -> None: ...

class SnapshotEnd(_message.Message):
    __slots__ = ("complete", "void")
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    VOID_FIELD_NUMBER: _ClassVar[int]
    complete: bool
    void: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, complete: _Optional[bool] = ..., void: _Optional[_Iterable[int]] = ...) -> None: ...
