"""Nothing that this project reads can become code: no pickle, no eval, no loader that runs it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import kvstore

ROOT = Path(kvstore.__file__).parents[1]
PACKAGES = ("kvstore", "model_runner", "prefill_worker", "decode_worker", "cluster")
MODULES = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
BUILTINS = {"eval", "exec"}
METHODS = {("yaml", "load"), ("yaml", "unsafe_load"), ("torch", "load"), ("jsonpickle", "decode")}


def offences(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                found += [n.name for n in names if n.name.split(".")[0] in MODULES]
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in MODULES:
                found.append(module)
            case ast.Call(func=ast.Name(id=name)) if name in BUILTINS:
                found.append(name)
            case ast.Call(func=ast.Attribute(value=ast.Name(id=owner), attr=name)):
                if (owner, name) in METHODS:
                    found.append(f"{owner}.{name}")
            case ast.keyword(arg="allow_pickle", value=ast.Constant(value=True)):
                found.append("allow_pickle=True")
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_no_file_of_ours_turns_data_into_code(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    bad = {str(file.relative_to(ROOT)): found for file in files if (found := _offences_of(file))}
    assert bad == {}


def _offences_of(file: Path) -> list[str]:
    return offences(file.read_text("utf-8"))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import marshal as m",
        "eval(text)",
        "exec(code)",
        "yaml.load(text)",
        "torch.load(path)",
        "numpy.load(path, allow_pickle=True)",
    ],
)
def test_the_search_finds_each(source):
    assert offences(source)


@pytest.mark.parametrize("source", ["model.eval()", "tomllib.load(f)", "json.loads(x)", "x.exec()"])
def test_the_search_lets_others_pass(source):
    assert offences(source) == []
