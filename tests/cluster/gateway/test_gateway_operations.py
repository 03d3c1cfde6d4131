"""Health, metrics, models, start and stop."""

from __future__ import annotations

import asyncio
import socket

import pytest
from transformers import PreTrainedTokenizerFast

from cluster.gateway.app import Gateway, _listen
from cluster.gateway.config import GatewayConfig
from kvstore.core.errors import ConfigurationError


async def test_health_is_ok_with_a_decode_worker(cluster) -> None:
    response = await cluster.http.get("/health")
    assert response.status_code == 200
    assert response.json() == {
        "status": "ok",
        "reasons": [],
        "members": {"nodes": 0, "prefill_workers": 1, "decode_workers": 2},
    }


async def test_health_without_a_decode_worker(cluster) -> None:
    cluster.conductor.members = cluster.conductor.members[:1]
    response = await cluster.http.get("/health")
    assert response.status_code == 503
    assert response.json()["reasons"] == ["no decode worker is registered"]


async def test_health_without_a_conductor(cluster) -> None:
    await cluster.conductor.stop()
    response = await cluster.http.get("/health")
    assert response.status_code == 503
    assert "conductor" in response.json()["reasons"][0]


async def test_models(cluster) -> None:
    listed = [model async for model in await cluster.openai.models.list()]
    assert [model.id for model in listed] == ["tiny"]
    assert (await cluster.openai.models.retrieve("tiny")).id == "tiny"
    assert (await cluster.http.get("/v1/models/a/b")).status_code == 404


async def test_no_model_at_all_is_unavailable(cluster) -> None:
    cluster.conductor.members = []
    body = {"model": "tiny", "prompt": "fox"}
    response = await cluster.http.post("/v1/completions", json=body)
    assert response.status_code == 503
    assert "no worker has registered" in response.json()["error"]["message"]


async def test_metrics(cluster) -> None:
    await cluster.openai.completions.create(model="tiny", prompt=list(range(1, 21)))
    await cluster.http.get("/nowhere")
    lines = (await cluster.http.get("/metrics")).text.splitlines()
    outputs = len(cluster.script.token_ids) + 1
    for line in (
        'kvstore_gateway_requests_total{route="/v1/completions",status="200"} 1.0',
        'kvstore_gateway_requests_total{route="none",status="404"} 1.0',
        'gen_ai_server_time_to_first_token_seconds_count{model="tiny"} 1.0',
        f'gen_ai_server_time_per_output_token_seconds_count{{model="tiny"}} {outputs - 1}.0',
        'kvstore_gateway_prompt_tokens_total{model="tiny"} 20.0',
        'kvstore_gateway_hit_tokens_total{model="tiny",tier="disk"} 3.0',
        "kvstore_gateway_in_flight 0.0",
    ):
        assert line in lines


@pytest.mark.parametrize("gateway_settings", [{"max_body_bytes": 1000}])
@pytest.mark.parametrize("chunked", [False, True])
async def test_large_body_is_refused(cluster, chunked) -> None:
    async def parts():
        for _ in range(20):
            yield b" " * 100

    headers = {"content-type": "application/json"}
    content = parts() if chunked else b" " * 2000
    response = await cluster.http.post("/v1/completions", content=content, headers=headers)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "request_too_large"
    assert "1000 bytes" in response.json()["error"]["message"]


async def test_port_in_use(tmp_path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        gateway = Gateway(GatewayConfig(port=port))
        with pytest.raises(ConfigurationError, match=f"port {port}.*choose another") as caught:
            await gateway.start()
        assert isinstance(caught.value.__cause__, OSError)
        await gateway.stop()


async def test_stop_is_idempotent_and_frees_the_port() -> None:
    first = Gateway(GatewayConfig(port=0))
    await first.start()
    port = int(first.base_url.rpartition(":")[2])
    await first.stop()
    await first.stop()
    second = Gateway(GatewayConfig(port=port))
    await second.start()
    assert second.base_url == first.base_url
    await second.stop()


async def test_nothing_runs_on_after_stop() -> None:
    before = asyncio.all_tasks()
    gateway = Gateway(GatewayConfig(port=0))
    await gateway.start()
    assert asyncio.all_tasks() > before
    await gateway.stop()
    assert {task.get_name() for task in asyncio.all_tasks() - before if not task.done()} == set()


@pytest.mark.parametrize("content", [None, "{}", "no json"])
async def test_model_without_a_tokenizer_is_unavailable(cluster, tmp_path, content) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    for member in cluster.conductor.members:
        member.model.path = str(tmp_path)
    body = {"model": "tiny", "prompt": "fox"}
    response = await cluster.http.post("/v1/completions", json=body)
    assert response.status_code == 503
    assert str(tmp_path) in response.json()["error"]["message"]


async def test_model_without_a_chat_template_completes_and_does_not_chat(cluster, tmp_path) -> None:
    bare = PreTrainedTokenizerFast(
        tokenizer_object=cluster.tokenizer.backend_tokenizer, eos_token="</s>"
    )
    bare.save_pretrained(tmp_path)
    for member in cluster.conductor.members:
        member.model.path = str(tmp_path)
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "fox"}]}
    refused = await cluster.http.post("/v1/chat/completions", json=chat)
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", "messages")
    assert "no chat template; use /v1/completions" in error["message"]
    answer = await cluster.openai.completions.create(model="tiny", prompt="fox")
    assert answer.choices[0].text == "the lazy dog"


async def test_connections_send_tokens_at_once() -> None:
    """Nagle's algorithm would hold tokens back until the client acknowledges the last one."""
    no_delay = asyncio.get_running_loop().create_future()

    async def accepted(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = writer.get_extra_info("socket")
        no_delay.set_result(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    listener = _listen("127.0.0.1", 0)
    async with await asyncio.start_server(accepted, sock=listener):
        _, writer = await asyncio.open_connection(*listener.getsockname())
        assert await no_delay
        writer.close()
        await writer.wait_closed()


async def test_base_url_can_be_used_where_all_addresses_are_served() -> None:
    gateway = Gateway(GatewayConfig(host="0.0.0.0", port=0, allow_insecure=True))
    await gateway.start()
    assert gateway.base_url.startswith("http://127.0.0.1:")
    await gateway.stop()
