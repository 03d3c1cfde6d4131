"""The engine: one thread that turns requests into tokens, step by step."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial

from kvstore.core.errors import InvalidArgumentError, UnavailableError
from kvstore.core.ids import RequestId
from kvstore.core.ports import Clock
from kvstore.events.base import EventSink
from model_runner.engine_core import EngineCore
from model_runner.engine_output import Emit, EngineLoad, EngineStatistics
from model_runner.engine_request import LiveRequest, LiveRequests
from model_runner.engine_step import StepModel, room_tokens
from model_runner.load_or_compute import LoadPlanner
from model_runner.store import StoreConnector
from model_runner.types import Request, Scheduler

_LOG = logging.getLogger(__name__)


class Engine:
    """Runs requests to their end on one model, as its scheduler decides.

    Threads: one of its own owns all state; every method may be called from any other. With nothing
    to compute it sleeps until something is submitted or the store answers.
    Bound: `max_live` requests at a time, from `submit` until their last output.
    Failure: an exception in a step ends the requests of that step with an error, and the engine
    goes on. One in its own bookkeeping ends them all, and `submit` raises UnavailableError from
    then on.
    Ownership: the caller closes `model`, `sink` and `store`, after the engine.
    """

    def __init__(
        self,
        model: StepModel,
        scheduler: Scheduler,
        store: StoreConnector,
        sink: EventSink,
        *,
        max_live: int,
        clock: Clock = time.monotonic,
        planner: LoadPlanner | None = None,
        died: Callable[[], None] | None = None,
    ) -> None:
        """`planner` learns from the steps what they cost. `died` is called, on the engine's
        thread, if a defect ends it."""
        self._room_tokens = room_tokens(model)
        self._clock = clock
        self._live = LiveRequests(max_live)
        self._mailbox = _Mailbox()
        self._core = EngineCore(
            model, scheduler, store, sink, self._live, self._mailbox.post, clock, planner
        )
        self._died = died
        self._load = self._core.load()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request, emit: Emit) -> None:
        """Queue a request; its outputs go to `emit`. It belongs to the engine from now on.

        Raises ResourceExhaustedError when `max_live` are there already, InvalidArgumentError if
        the device tier could not hold it even alone, UnavailableError when the engine has stopped.
        """
        self._check_size(request)
        request.arrived_s = self._clock()
        self._live.enter(LiveRequest(request, emit))
        self._mailbox.post(partial(self._core.add, request))

    def cancel(self, request_id: RequestId) -> None:
        """End a request before the next step, and free its blocks. Idempotent."""
        self._mailbox.post(partial(self._core.cancel, request_id))

    def load(self) -> EngineLoad:
        """As of the last step."""
        return self._load

    def statistics(self) -> EngineStatistics:
        return self._core.statistics()

    @property
    def alive(self) -> bool:
        """False once `submit` refuses for good."""
        return not self._live.closed

    def drain(self, timeout_s: float) -> bool:
        """Refuse new requests with UnavailableError from now on, and wait for those that are here.
        False if some are left: `close` ends them."""
        self._live.close()
        return self._live.wait_empty(timeout_s)

    def close(self, timeout_s: float = 30.0) -> None:
        """Finish the step under way, then end what is left with UnavailableError. Idempotent."""
        self._live.close()
        self._mailbox.post(self._stop)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        idle = False
        try:
            while not self._stopping:
                for call in self._mailbox.take(wait=idle):
                    call()
                idle = not self._core.step()
                self._load = self._core.load()
        except Exception:
            # The boundary of the thread: state that was being changed cannot be trusted any more.
            _LOG.exception("the engine stops: a defect in its bookkeeping")
            if self._died is not None:
                self._died()
        finally:
            self._live.close()
            self._core.end_all(UnavailableError("the engine has stopped: use another worker"))

    def _stop(self) -> None:
        self._stopping = True

    def _check_size(self, request: Request) -> None:
        prompt, max_tokens = request.num_prompt_tokens, request.sampling.max_tokens
        if self._room_tokens is not None and prompt + max_tokens > self._room_tokens:
            raise InvalidArgumentError(
                f"a prompt of {prompt} tokens and max_tokens={max_tokens} do not fit in the device "
                f"tier of {self._room_tokens} tokens: shorten the request, or raise device_blocks"
            )


class _Mailbox:
    """Calls for the engine's thread, in order. Bounded by what posts: a few calls a request."""

    def __init__(self) -> None:
        self._arrived = threading.Condition()
        self._calls: list[Callable[[], None]] = []

    def post(self, call: Callable[[], None]) -> None:
        with self._arrived:
            self._calls.append(call)
            self._arrived.notify()

    def take(self, *, wait: bool) -> list[Callable[[], None]]:
        """What has arrived; with `wait`, at least one call. No deadline: stopping posts one."""
        with self._arrived:
            while wait and not self._calls:
                self._arrived.wait()
            calls, self._calls = self._calls, []
            return calls
