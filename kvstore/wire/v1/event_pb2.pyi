from kvstore.wire.v1 import block_pb2 as _block_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class BlocksStored(_message.Message):
    __slots__ = ("tier", "keys")
    TIER_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    tier: _block_pb2.Tier
    keys: _block_pb2.BlockKeys
    def __init__(self, tier: _Optional[_Union[_block_pb2.Tier, str]] = ..., keys: _Optional[_Union[_block_pb2.BlockKeys, _Mapping]] = ...) -> None: ...

class BlocksRemoved(_message.Message):
    __slots__ = ("tier", "keys")
    TIER_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    tier: _block_pb2.Tier
    keys: _block_pb2.BlockKeys
    def __init__(self, tier: _Optional[_Union[_block_pb2.Tier, str]] = ..., keys: _Optional[_Union[_block_pb2.BlockKeys, _Mapping]] = ...) -> None: ...

class TierCleared(_message.Message):
    __slots__ = ("tier",)
    TIER_FIELD_NUMBER: _ClassVar[int]
    tier: _block_pb2.Tier
    def __init__(self, tier: _Optional[_Union[_block_pb2.Tier, str]] = ...) -> None: ...

class BlockEvent(_message.Message):
    __slots__ = ("stored", "removed", "cleared")
    STORED_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    CLEARED_FIELD_NUMBER: _ClassVar[int]
    stored: BlocksStored
    removed: BlocksRemoved
    cleared: TierCleared
    def __init__(self, stored: _Optional[_Union[BlocksStored, _Mapping]] = ..., removed: _Optional[_Union[BlocksRemoved, _Mapping]] = ..., cleared: _Optional[_Union[TierCleared, _Mapping]] = ...) -> None: ...

class EventBatch(_message.Message):
    __slots__ = ("publisher_id", "epoch", "sequence", "events")
    PUBLISHER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    publisher_id: str
    epoch: int
    sequence: int
    events: _containers.RepeatedCompositeFieldContainer[BlockEvent]
    def __init__(self, publisher_id: _Optional[str] = ..., epoch: _Optional[int] = ..., sequence: _Optional[int] = ..., events: _Optional[_Iterable[_Union[BlockEvent, _Mapping]]] = ...) -> None: ...

class ReplayRequest(_message.Message):
    __slots__ = ("epoch", "from_sequence")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    FROM_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    from_sequence: int
    def __init__(self, epoch: _Optional[int] = ..., from_sequence: _Optional[int] = ...) -> None: ...

class ReplayResponse(_message.Message):
    __slots__ = ("epoch", "snapshot", "sequence", "events", "last")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    snapshot: bool
    sequence: int
    events: _containers.RepeatedCompositeFieldContainer[BlockEvent]
    last: bool
    def __init__(self, epoch: _Optional[int] = ..., snapshot: _Optional[bool] = ..., sequence: _Optional[int] = ..., events: _Optional[_Iterable[_Union[BlockEvent, _Mapping]]] = ..., last: _Optional[bool] = ...) -> None: ...
