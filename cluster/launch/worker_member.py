"""A prefill or decode worker as a member of a cluster."""

from __future__ import annotations

from typing import Literal

from cluster.launch.members import Member
from cluster.wire.v1 import conductor_pb2 as pb
from kvstore.wire.v1 import block_pb2
from model_runner.config import WorkerConfig
from model_runner.generation import ServedModel
from model_runner.worker import Worker

WorkerKind = Literal["prefill", "decode"]
_ROLES = {"prefill": pb.ROLE_PREFILL, "decode": pb.ROLE_DECODE}


class WorkerMember(Member):
    def __init__(self, kind: WorkerKind, config: WorkerConfig) -> None:
        self._worker = _make_worker(kind, config)
        self._role = _ROLES[kind]
        self._config = config
        super().__init__(
            self._worker,
            config.conductor,
            self._describe_worker,
            self._load_of_worker,
            config.credentials,
            lambda: self._worker.alive,
        )

    @property
    def addresses(self) -> dict[str, str]:
        metrics = self._worker.metrics_address
        return super().addresses | ({"metrics_address": metrics} if metrics else {})

    def _describe_worker(self) -> pb.Member:
        return pb.Member(
            member_id=self._config.worker_id,
            role=self._role,
            grpc_address=self._worker.grpc_address,
            event_endpoint=self._worker.event_endpoint,
            replay_endpoint=self._worker.replay_endpoint,
            node_id=self._config.node_id,
            model=_model_info(self._worker.model),
        )

    def _load_of_worker(self) -> pb.Load:
        load = self._worker.load()
        return pb.Load(
            running=load.running,
            waiting=load.waiting,
            waiting_tokens=load.waiting_tokens,
            free_blocks=load.free_blocks,
            total_blocks=load.total_blocks,
        )


def _make_worker(kind: WorkerKind, config: WorkerConfig) -> Worker:
    if kind == "prefill":
        from prefill_worker.worker import PrefillWorker

        return PrefillWorker(config)
    from decode_worker.worker import DecodeWorker

    return DecodeWorker(config)


def _model_info(model: ServedModel) -> pb.ModelInfo:
    layout = model.identity.layout
    return pb.ModelInfo(
        name=model.name,
        identity_root=model.identity.root(),
        layout=block_pb2.KVLayout(
            num_layers=layout.num_layers,
            num_kv_heads=layout.num_kv_heads,
            head_dim=layout.head_dim,
            block_size_tokens=layout.block_size_tokens,
            dtype=layout.dtype,
            layers=layout.layers,
        ),
        max_context_tokens=model.max_context_tokens,
        path=model.path,
    )
