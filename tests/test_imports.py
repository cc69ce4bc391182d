"""Imports run one way: each package imports only those before it in ORDER."""

import ast
import json
import subprocess
import sys
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import elstm

ROOT = Path(elstm.__file__).parent
ORDER = (
    "elstm", "errors", "nn", "files", "cli", "data", "models", "config", "records", "training",
    "sweeps", "reporting", "commands", "evaluate", "predict", "export", "report", "train",
)  # fmt: skip
HEAVY = {"torch", "torchvision", "accelerate", "tensorboard", "sklearn", "matplotlib"}


def module_names():
    """{"elstm.nn.layers": its file, ...}"""
    names = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = ("elstm", *path.relative_to(ROOT).with_suffix("").parts)
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


MODULES = module_names()


def imports(module, *, late):
    """Returns a module's imports by full name; late: within functions and for type checkers too."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    found = set()

    def visit(node):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [node.module])])
            # `from elstm import nn` imports a module, `from elstm.nn import LSTM` a name of one.
            members = {f"{base}.{alias.name}" for alias in node.names}
            found.update(member if member in MODULES else base for member in members)
        elif not late and (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
        ):
            return
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(MODULES[module].read_text(encoding="utf-8")))
    return found


def ours(names):
    return {name for name in names if name.split(".")[0] == "elstm"}


def place(module):
    """The file or folder of elstm/ that a module lies in."""
    return module.split(".")[1] if "." in module else module


def height(module):
    """The place of a module's package in ORDER; a package that is not there is a ValueError."""
    return ORDER.index(place(module))


def closure(module, *, late=False):
    """All that is imported with a module, its packages included."""
    seen, todo = set(), [module]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in MODULES:
            todo += imports(name, late=late)
            if "." in name:
                todo.append(name.rpartition(".")[0])
    return seen


@pytest.mark.parametrize("module", MODULES)
def test_imports_nothing_above(module):
    """Imports within functions count as well."""
    above = {name for name in ours(imports(module, late=True)) if height(name) > height(module)}
    assert not above


@pytest.mark.parametrize("module", [name for name in MODULES if place(name) == "nn"])
def test_nn_needs_torch_alone(module):
    allowed = {"torch", "triton", "__future__"} | sys.stdlib_module_names
    found = imports(module, late=True)
    assert {name for name in ours(found) if place(name) != "nn"} == set()
    assert {name.split(".")[0] for name in found - ours(found)} <= allowed
    # torch brings triton along on some machines alone, so that only the kernels import it.
    kernels = {"all_steps", "kernels", "layer_norm_kernels", "parts"}
    if module.removeprefix("elstm.nn.backends.cuda.") not in kernels:
        assert "triton" not in {name.split(".")[0] for name in imports(module, late=False)}


ANSWERS_AT_ONCE = [
    name
    for name in MODULES
    if place(name) in {"elstm", "errors", "cli", "config", "files", "commands", "train"}
    and name not in ("elstm.commands.programs", "elstm.commands.serving")  # what is exported
]


@pytest.mark.parametrize("module", [*ANSWERS_AT_ONCE, "elstm.sweeps.sweep"])
def test_answers_at_once(module):
    """--help and a wrong value need no torch, and no other heavy package."""
    assert not {name.split(".")[0] for name in closure(module)} & HEAVY


def test_reports_need_no_trainer():
    readers = [name for name in MODULES if place(name) == "reporting"]
    assert readers
    for module in readers:
        everything = closure(module, late=True)
        assert "torch" not in {name.split(".")[0] for name in everything}, module
        trainers = {"nn", "models", "training", "sweeps"}
        assert not {place(name) for name in ours(everything)} & trainers, module


def test_no_circle():
    """Imports within functions and for type checkers count as well."""
    graph = {name: ours(imports(name, late=True)) & MODULES.keys() for name in MODULES}
    for name in graph:  # a module may import from the package that it is part of
        graph[name] -= {name, "elstm"}
    list(TopologicalSorter(graph).static_order())  # CycleError names the circle


def test_no_class_name_is_defined_twice():
    """A dotted name in an error or a traceback then leads to one place."""
    places = defaultdict(list)
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(name)
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_what_is_loaded_in_a_fresh_process():
    code = """if True:
        import json, sys
        import elstm
        first = set(sys.modules)
        import elstm.nn
        print(json.dumps([sorted(first), sorted(set(sys.modules) - first)]))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, then = json.loads(done.stdout)
    assert "elstm" in first
    assert not {name.split(".")[0] for name in first} & {"torch", "numpy"}
    assert "torch" in then
    assert all(name.startswith("elstm.nn") for name in ours(then))
    packages = {name.split(".")[0] for name in then}
    others = HEAVY - {"torch"} | {"hydra", "omegaconf", "yaml", "scipy", "PIL"}
    assert not packages & others
