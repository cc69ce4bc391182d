"""Private parts of torch are used by one file outside elstm.nn, and are as they were."""

import ast
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import distributed

import elstm
from elstm.training import torch_private

ROOT = Path(elstm.__file__).parent
ALLOWED = {"training/torch_private.py", "nn/norm.py", "nn/backends/plain.py"}


def private_names(path: Path) -> list[str]:
    """Returns dotted names of torch with a part that starts with one underscore."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            if name.startswith(("torch.", "distributed.")):
                found.append(name)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.startswith("torch.")]
    parts = {name: name.split(".") for name in found}
    return [n for n, p in parts.items() if any(x[0] == "_" and x[:2] != "__" for x in p if x)]


def test_one_file_has_all() -> None:
    users = {
        str(path.relative_to(ROOT)): private_names(path)
        for path in ROOT.rglob("*.py")
        if "cuda" not in path.parts
    }
    assert {path for path, names in users.items() if names} == ALLOWED


def test_norms_of() -> None:
    tensors = [torch.tensor([3.0, 4.0]), torch.full((2, 2), 2.0)]
    assert [norm.item() for norm in torch_private.norms_of(tensors)] == [5.0, 4.0]


def test_default_store(tmp_path: Path) -> None:
    if distributed.is_initialized():
        pytest.skip("another test's process group is active")
    distributed.init_process_group(
        "gloo", init_method=(tmp_path / "store").as_uri(), rank=0, world_size=1,
        timeout=timedelta(seconds=20),
    )  # fmt: skip
    try:
        torch_private.default_store().set("key", "value")
        assert torch_private.default_store().get("key") == b"value"
        assert torch_private.default_store().check(["key"])
    finally:
        distributed.destroy_process_group()


def test_scan() -> None:
    inputs = torch.arange(4.0).view(4, 1)

    def body(state: list[torch.Tensor], x: list[torch.Tensor]) -> tuple[list[torch.Tensor], ...]:
        total = state[0] + x[0]
        return [total.clone()], [total.clone()]

    (last,), (output,) = torch_private.scan(body, [torch.zeros(1)], [inputs])
    assert last.item() == 6.0
    assert output.flatten().tolist() == [0.0, 1.0, 3.0, 6.0]
