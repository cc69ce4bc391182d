"""The HTML page holds the numbers of its curves, and allows one script by its hash."""

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess

import pytest
from synthetic_runs import write_run

from elstm.commands.report import main

EVIL = "</script><b>\"'&"


@pytest.fixture
def page(tmp_path):
    for model in ("lstm", "elstm_bn"):
        for seed in range(3):
            write_run(tmp_path / f"runs/{model}{seed}", model, seed=seed, epochs=3)
    write_run(tmp_path / "runs/evil", "lstm", epochs=3, model__name=EVIL)
    main([str(tmp_path / "runs"), "-o", str(tmp_path), "--figures", "validation-accuracy"])
    return tmp_path / "report.html"


def test_only_the_pages_own_script_may_run_and_it_loads_nothing(page):
    text = page.read_text()
    [script] = re.findall(r"(?s)<script>(.*?)</script>", text)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy"\s+content="([^"]*)"', text)[1]
    assert policy.split("; ") == [
        "default-src 'none'", "img-src data:", "style-src 'unsafe-inline'",
        f"script-src 'sha256-{digest}'",
    ]  # fmt: skip
    assert not re.search(r"innerHTML|fetch|XMLHttpRequest|import|eval", script)


def test_the_page_holds_the_numbers_of_its_curves(page):
    [data] = re.findall(r'data-curves="([^"]*)"', page.read_text())
    lines = {line["label"]: line for line in json.loads(html.unescape(data))}
    assert set(lines) == {"lstm", "elstm_bn", EVIL}
    assert lines["elstm_bn"]["x"] == [1, 2, 3]
    assert lines["elstm_bn"]["colour"] == "#D55E00"
    assert all(30 < value < 100 for value in lines["lstm"]["y"])
    assert not any(line["log"] for line in lines.values())  # as the axis of the figure


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node here")
def test_the_script_is_valid(page, tmp_path):
    script = re.search(r"(?s)<script>(.*?)</script>", page.read_text())[1]
    (tmp_path / "script.js").write_text(script)
    subprocess.run(["node", "--check", str(tmp_path / "script.js")], check=True, timeout=60)
