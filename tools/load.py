"""Drive a running gateway with load generators from PyPI, and print what they saw as one JSON line.

    make load URL=http://127.0.0.1:8000 MODEL=./model

Each has an environment of its own below LOAD_TOOLS, since their dependencies are not ours. The exit
status is 0 only if no request failed and they counted all, or nearly all, of them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

TIMEOUT_S = 600


@dataclass(frozen=True)
class Load:
    url: str
    model: str
    """As it is served."""
    tokenizer: str
    """Folder or hub id: generators count tokens themselves."""
    requests: int
    concurrency: int
    prompt_tokens: int
    answer_tokens: int


@dataclass(frozen=True)
class Seen:
    requests: int
    errors: int
    ttft_ms: float
    """Medians."""
    itl_ms: float


def run_aiperf(program: Path, load: Load, folder: Path) -> Seen:
    report = folder / "profile_export_aiperf.json"
    _run(
        [
            *(program, "profile", "--model", load.model, "--url", load.url),
            *("--endpoint-type", "chat", "--streaming", "--tokenizer", load.tokenizer),
            *("--request-count", load.requests, "--concurrency", load.concurrency),
            *("--prompt-input-tokens-mean", load.prompt_tokens),
            *("--prompt-output-tokens-mean", load.answer_tokens),
            *("--extra-inputs", "ignore_eos:true", "--output-artifact-dir", folder),
            *("--ui", "none"),
        ]
    )
    told = json.loads(report.read_text())
    errors = sum(int(error["count"]) for error in told["error_summary"])
    requests = int((told["request_count"] or {"avg": 0})["avg"])
    ttft, itl = told["time_to_first_token"], told["inter_token_latency"]
    return Seen(requests, errors, ttft["p50"], itl["p50"])


def run_guidellm(program: Path, load: Load, folder: Path) -> Seen:
    report = folder / "guidellm.json"
    data = f"prompt_tokens={load.prompt_tokens},output_tokens={load.answer_tokens}"
    _run(
        [
            *(program, "run"),
            *("--backend", f"kind=openai_http,target={load.url},model={load.model}"),
            *("--profile", f"kind=concurrent,streams={load.concurrency}"),
            *("--constraint", f"kind=max_requests,count={load.requests}"),
            *("--tokenizer", f"kind=hf_auto,model={load.tokenizer}"),
            *("--data", f"kind=synthetic_text,{data}"),
            *("--output", f"kind=json,path={report}", "--disable-console"),
        ]
    )
    metrics = json.loads(report.read_text())["benchmarks"][0]["metrics"]
    totals = metrics["request_totals"]
    ttft, itl = metrics["time_to_first_token_ms"], metrics["inter_token_latency_ms"]
    failed = totals["errored"] + totals["incomplete"]
    return Seen(
        totals["successful"], failed, ttft["successful"]["median"], itl["successful"]["median"]
    )


def _run(command: list[object]) -> None:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    if done.returncode:
        sys.exit(f"error: {command[0]} failed:\n{(done.stdout + done.stderr)[-4000:]}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tools", type=Path, required=True, help="folder of their environments")
    parser.add_argument("--url", required=True, help="base URL of the gateway, without /v1")
    parser.add_argument("--model", required=True, help="name of the model, as it is served")
    parser.add_argument("--tokenizer", required=True, help="folder or hub id of its tokenizer")
    parser.add_argument("--requests", type=int, default=20)
    parser.add_argument("--concurrency", type=int, default=2)
    parser.add_argument("--prompt-tokens", type=int, default=200)
    parser.add_argument("--answer-tokens", type=int, default=8)
    given = vars(parser.parse_args())
    tools = given.pop("tools")
    load = Load(**given)
    seen = {}
    for name, run in (("aiperf", run_aiperf), ("guidellm", run_guidellm)):
        with tempfile.TemporaryDirectory(prefix=f"{name}-") as folder:
            seen[name] = run(tools / name / "bin" / name, load, Path(folder))
    print(json.dumps({name: asdict(one) for name, one in seen.items()}))
    # guidellm may end before it has counted the last answers, one in each stream at most.
    counted = load.requests - load.concurrency
    return int(any(one.errors or one.requests <= counted for one in seen.values()))


if __name__ == "__main__":
    sys.exit(main())
