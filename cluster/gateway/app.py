"""The gateway as an ASGI application, and as a server."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from cluster.conductor.prompt_keys import PromptKeys
from cluster.gateway.admission import InFlight
from cluster.gateway.authentication import Authentication
from cluster.gateway.catalog import ModelCatalog
from cluster.gateway.channels import WorkerChannels
from cluster.gateway.config import GatewayConfig
from cluster.gateway.errors import (
    ErrorAnswer,
    answer_of,
    answer_of_status,
    answer_of_validation,
)
from cluster.gateway.explain_route import router as explain_router
from cluster.gateway.exposure import check_exposure
from cluster.gateway.generate import Cluster
from cluster.gateway.journal import Journal
from cluster.gateway.middleware import BodyBound, RequestContext
from cluster.gateway.rate_limits import RateLimits
from cluster.gateway.reports import CompletionReporter
from cluster.gateway.routes import router
from cluster.gateway.services import Services
from cluster.gateway.tenants import Tenants, load_clients
from cluster.gateway.tokenizer_routes import router as tokenizer_router
from cluster.gateway.tokenizers import TokenizerCache
from cluster.membership.client import ConductorClient
from kvstore.core.errors import ConfigurationError, KVStoreError
from kvstore.observability.metrics import ServingMetrics
from kvstore.transports.security.keys import load_client_keys

_BACKLOG = 2048
_CUT_OFF_S = 2.0
"""Bound of the wait for responses that were cut off."""


def create_app(config: GatewayConfig) -> FastAPI:
    """Connections belong to its lifespan, on the loop that runs it. Nothing is opened before.

    Raises ConfigurationError if the file of API keys cannot be used.
    """
    metrics = ServingMetrics()
    tenants = Tenants(load_clients(config.clients), config.tenants)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with _services(config, metrics) as services:
            app.state.services = services
            yield

    app = FastAPI(title="Open KV-store gateway", lifespan=lifespan, redoc_url=None, docs_url=None)
    app.include_router(router)
    app.include_router(tokenizer_router)
    app.include_router(explain_router)
    app.add_middleware(BodyBound, bytes_max=config.max_body_bytes)
    app.add_middleware(Authentication, tenants=tenants)
    app.add_middleware(RequestContext, metrics=metrics)
    _add_error_handlers(app)
    return app


@asynccontextmanager
async def _services(config: GatewayConfig, metrics: ServingMetrics) -> AsyncIterator[Services]:
    async with AsyncExitStack() as stack:
        keys = load_client_keys(config.credentials, "gateway.credentials")
        client = await stack.enter_async_context(ConductorClient(config.conductor, keys=keys))
        reports = CompletionReporter(client)
        stack.push_async_callback(reports.close)
        workers = WorkerChannels(keys=keys)
        stack.push_async_callback(workers.close)
        catalog = ModelCatalog(client, asyncio.get_running_loop().time)
        tokenizers = TokenizerCache()
        warming = asyncio.create_task(_warm(client, tokenizers))
        stack.callback(warming.cancel)
        yield Services(
            config=config,
            cluster=Cluster(client, catalog, workers, reports),
            tokenizers=tokenizers,
            metrics=metrics,
            in_flight=InFlight(config.max_in_flight, metrics.in_flight),
            limits=RateLimits(config.tenants, asyncio.get_running_loop().time),
            journal=Journal(),
            prompt_keys=PromptKeys(),
        )


async def _warm(client: ConductorClient, tokenizers: TokenizerCache) -> None:
    """Load what is served already, so that the first request does not wait for it."""
    with contextlib.suppress(KVStoreError):  # a request that needs it will say what is wrong
        for status in await client.list_members():
            if status.member.HasField("model"):
                await tokenizers.get(status.member.model)


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(KVStoreError)
    async def _(request: Request, error: KVStoreError) -> JSONResponse:
        return _response(answer_of(error))

    @app.exception_handler(RequestValidationError)
    async def _(request: Request, error: RequestValidationError) -> JSONResponse:
        return _response(answer_of_validation(error.errors()))

    @app.exception_handler(HTTPException)
    async def _(request: Request, error: HTTPException) -> JSONResponse:
        response = _response(answer_of_status(error.status_code, error.detail))
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def _(request: Request, error: Exception) -> JSONResponse:
        # The server logs it with its traceback; the client learns no more than that it happened.
        return _response(answer_of(KVStoreError("defect in the gateway; see its log")))


def _response(answer: ErrorAnswer) -> JSONResponse:
    return JSONResponse(answer.body(), answer.status, headers=answer.headers())


class Gateway:
    """The gateway on a socket. `start` and `stop` on one event loop; `stop` leaves nothing behind.

    Leaves signals to its host. `drain_s` is the time that open responses get when it stops; then
    they are cut off.
    """

    def __init__(self, config: GatewayConfig, *, drain_s: int = 5) -> None:
        self._config = config
        self._drain_s = drain_s
        self._resources = AsyncExitStack()
        self._base_url = ""

    @property
    def base_url(self) -> str:
        """`http://host:port`, with the real port; OpenAI clients want `/v1` after it."""
        assert self._base_url, "start() first"
        return self._base_url

    async def start(self) -> None:
        """Returns when requests are answered. Raises ConfigurationError if the port is not free, or
        if its settings would leave it open to a network."""
        assert not self._base_url, "started twice"
        check_exposure(self._config)
        async with AsyncExitStack() as stack:
            listener = _listen(self._config.host, self._config.port)
            stack.callback(listener.close)
            app = create_app(self._config)
            await stack.enter_async_context(app.router.lifespan_context(app))
            server = _Server(_uvicorn_config(app, self._config, self._drain_s))
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            stack.push_async_callback(_stop, server, serving)
            await server.until_listening(serving)
            self._base_url = _url(listener, tls=self._config.tls_cert is not None)
            self._resources = stack.pop_all()

    async def stop(self) -> None:
        """Gives open responses a bounded time to end. Idempotent."""
        await self._resources.aclose()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._listening.set()

    async def until_listening(self, serving: asyncio.Task[None]) -> None:
        """Raises what `serving` raised if it ended instead."""
        listening = asyncio.ensure_future(self._listening.wait())
        await asyncio.wait({listening, serving}, return_when=asyncio.FIRST_COMPLETED)
        listening.cancel()
        if serving.done():
            serving.result()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _uvicorn_config(app: FastAPI, config: GatewayConfig, drain_s: int) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        ssl_certfile=config.tls_cert,
        ssl_keyfile=config.tls_key,
        lifespan="off",  # entered by `Gateway.start`, so that its errors reach the caller
        ws="none",
        access_log=False,
        log_config=None,
        log_level="warning",
        timeout_graceful_shutdown=drain_s,
    )


async def _stop(server: _Server, serving: asyncio.Task[None]) -> None:
    server.should_exit = True
    await serving
    # Responses that were cut off still have to cancel their workers' calls.
    if cut_off := set(server.server_state.tasks):
        await asyncio.wait(cut_off, timeout=_CUT_OFF_S)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only where the protocol is named. With it, every second
    # token would wait 40 ms for the client's delayed acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"the gateway cannot listen on {host} port {port}: {error.strerror or error}; "
            "choose another gateway port, or 0 for any free one"
        ) from error
    return listener


def _url(listener: socket.socket, *, tls: bool) -> str:
    scheme = "https" if tls else "http"
    host, port = listener.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = "::1" if ":" in host else "127.0.0.1"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
