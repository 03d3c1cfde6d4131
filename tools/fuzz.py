"""Fuzzes every parser of bytes from outside, with coverage feedback.

    python tools/fuzz.py --seconds 60

Needs atheris (`make fuzz` installs it). Each parser runs in a process of its own, for libFuzzer
ends the process that it runs in. Exit status 1 if any parser met a defect; the input that showed it
is left in crash-*.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["kvstore"], enable_loader_override=False):
    from kvstore.testing.fuzzing import Parser, parsers
    from kvstore.testing.node_fuzzing import FuzzedNode

NODE = "node"
INPUT_BYTES_MAX = 8_192


def main(seconds: int) -> int:
    failed = []
    for name in [*(parser.name for parser in parsers()), NODE]:
        ended = subprocess.run([sys.executable, __file__, "--one", name, "--seconds", str(seconds)])
        print(f"{name}: {'ok' if ended.returncode == 0 else 'DEFECT'}", flush=True)
        if ended.returncode:
            failed.append(name)
    return 1 if failed else 0


def fuzz_one(name: str, seconds: int) -> None:
    with ExitStack() as stack:
        parser = _parser(name, stack)
        corpus = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvstore-corpus-")))
        for number, example in enumerate(parser.examples):
            (corpus / str(number)).write_bytes(example)
        options = [
            f"-max_total_time={seconds}",
            f"-max_len={INPUT_BYTES_MAX}",
            "-timeout=10",
            "-rss_limit_mb=4096",
            "-verbosity=0",
            "-print_final_stats=1",
        ]
        atheris.Setup([sys.argv[0], *options, str(corpus)], parser)
        atheris.Fuzz()


def _parser(name: str, stack: ExitStack) -> Parser:
    if name == NODE:
        return stack.enter_context(FuzzedNode()).parser()
    return next(parser for parser in parsers() if parser.name == name)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seconds", type=int, default=60)
    arguments.add_argument("--one", help="fuzz this parser in this process")
    given = arguments.parse_args()
    if given.one:
        fuzz_one(given.one, given.seconds)
    else:
        sys.exit(main(given.seconds))
