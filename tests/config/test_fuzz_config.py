"""elstm-train against whatever one may type: it trains, or says in one line which word is wrong."""

import contextlib
import io
import os
import re
import shutil
import string
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf, open_dict

from elstm.config.check import validate
from elstm.config.compose import Composer
from elstm.config.fields import leaves
from elstm.config.run_config import load_run_config
from elstm.config.schema import SCHEMAS, SweepConfig, TrainerConfig
from elstm.errors import UserError, show
from elstm.train import main

REPOSITORY = Path(__file__).parents[2]

# --- words

GROUPS = [*SCHEMAS, "trainer", "experiment", "debug", "schema", "sweep", "hydra"]
FIELDS = sorted(
    {
        f"{group}.{name}"
        for group, schemas in {
            **SCHEMAS, "trainer": {"": TrainerConfig}, "sweep": {"": SweepConfig},
        }.items()
        for schema in schemas.values()
        for name, _, _ in leaves(schema)
    }
    | {"seed"}
)  # fmt: skip
HYDRA = [
    "hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.mode", "hydra.verbose",
    "hydra.launcher", "hydra/launcher", "hydra/sweeper", "hydra.launcher.n_jobs",
    "hydra.sweeper.params", "hydra.sweeper.max_batch_size", "hydra.job.chdir", "hydra.searchpath",
    "hydra.job.env_set.PATH", "hydra/job_logging", "hydra.callbacks.x", "hydra.output_subdir",
    "hydra.runtime.cwd", "hydra.help.template", "hydra.job.config.override_dirname.kv_sep",
]  # fmt: skip
# Anything but surrogates, which no terminal hands over; NUL and other control characters too.
TEXT = st.text(max_size=20)
LONG = st.builds(
    lambda c, n: c * n, st.characters(exclude_categories=["Cs"]), st.integers(0, 12000)
)
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats()
    | st.sampled_from([2**31, 10**30, 1e308]) | st.text(string.ascii_letters + "_.", max_size=8)
)  # fmt: skip
NESTED = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["a", "name", "hidden_size", "lr", "_x", "1"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)


def hydras(value):
    """A value in Hydra's grammar."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{hydras(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(hydras, value)) + "]"
    return {None: "null", True: "true", False: "false"}.get(value, str(value))


SPECIAL = [
    "", "null", "true", "yes", "on", "???", "nan", "-inf", "1e400", "-0", "0x10", "1_000", "1e-3",
    "1.5", "'1'", '"x', "'x", "\\'", "'\\'", "[", "]", "{", "}", "(", ")", "[" * 300, "{a:" * 60,
    "9" * 5000, "-" + "9" * 400, "a,b", "1,2,3", "a\\,b", "=", "=1", "1=2", "@", "a@b", ":", "a:b",
    "%", "#x", "!x", "&a", "*a", "$", "$$", "\\", "\\\\", "`id`", "$(id)", "; id", "| id", "~",
    "~/x", "..", "../..", "/", "/dev/null", "/proc/self/mem", "CON", "a/b", "a\\b", "lstm", "LSTM",
    "lstm.yaml", "lstm ", " lstm", "bn_lstm,lstm", "elstm_bn", "digits", "mnist", "adam", "cosine",
    "chrono", "cpu", "bf16", "choice(1,2)", "choice()", "range(3)", "range(1,1e9)", "range(0,1,0)",
    "range(5,1)", "range()", "interval(0,1)", "glob(*)", "glob([a*,b*],exclude=c)", "glob()",
    "shuffle(1,2)", "sort(3,1,2)", "sort(a,1)", "shuffle(range(3))", "tag(a,1,2)", "int(x)",
    "int(1.5)", "float('1')", "str(1)", "bool(x)", "json_str([1])", "extend_list(1)", "nosuch(1)",
    "int(choice(1,x))", "cast(1)", "${seed}", "${model}", "${model.name}", "${model.eps}", "${x}",
    "${.x}", "${..x}", "${", "${}", "${${seed}}", "${seed", "a${seed}b", "${seed}${seed}",
    "\\${seed}", "${model.hidden_size}", "${data.root}", "${data}", "${hydra:runtime.cwd}",
    "${hydra.run.dir}", "${oc.env:HOME}", "${oc.env:NO,1}", "${oc.decode:'1'}",
    "${oc.create:{a:1}}", "${oc.select:seed}", "${now:%Y}", "${run_name:}", "${eval:1}",
    "${python_version:}", "${oc.dict.keys:model}", "${oc.deprecated:seed}", "_target_",
    "{_target_: os.system, _args_: [id]}", "{_convert_: all}", "!!python/name:os.system", "\x00",
    "\x1b[31m", "\x7f", "\x85", "\u2028", "\u202e", "\ufeff", "é", "e\u0301", "٣", "１",
    "\U0001f600", "名前", "ß", "İ", "\n", "a\nb", "\t", "\r", "a b", "  ", "'a b'", '"a b"',
    "'a,b'", '"\\""',
]  # fmt: skip
VALUES = (
    st.sampled_from(SPECIAL) | NESTED.map(hydras) | TEXT | LONG | LEAVES.map(hydras)
    | st.lists(st.sampled_from(SPECIAL), min_size=2, max_size=3).map("".join)
)  # fmt: skip
KEYS = (
    st.sampled_from(FIELDS) | st.sampled_from(GROUPS) | st.sampled_from(HYDRA)
    | st.tuples(st.sampled_from(FIELDS), st.text(max_size=3)).map("".join)
    | st.lists(st.sampled_from([*GROUPS, "x", "_target_", "name", "0", "é", "", "resume"]),
               min_size=1, max_size=4).map(".".join)
    | st.lists(st.sampled_from([*GROUPS, "lstm", "x", ""]), min_size=2, max_size=3).map("/".join)
    | TEXT | LONG
)  # fmt: skip
ODD = st.builds(
    lambda *parts: "".join(parts),
    st.sampled_from(["", "+", "++", "~", "+++", "-", "--", " ", "~+", "\\"]),
    KEYS,
    st.sampled_from(["", "@x", "@", "@:", "@a:b", "@_global_", "@_here_", "@model.x"]),
    st.sampled_from(["=", "", " = ", "==", ":", "+=", ":=", "=="]),
    VALUES,
)
PLAIN = st.builds("{}{}={}".format, st.sampled_from(["", "", "", "", "+", "++"]), KEYS, VALUES)
KNOWN = st.builds("{}={}".format, st.sampled_from([*FIELDS, *GROUPS, *HYDRA]), VALUES)
WORDS = st.one_of(KNOWN, KNOWN, KNOWN, PLAIN, ODD)

# --- what has to hold

FUZZ = settings(
    deadline=None, database=None, derandomize=False, suppress_health_check=list(HealthCheck)
)
FLAGS = st.sampled_from([[], [], [], ["-m"]])
LINES = st.tuples(st.lists(WORDS, min_size=1, max_size=3), FLAGS).map(
    lambda pair: [*pair[0], *pair[1]]
)
FOLDER = re.compile(r"hydra\.(run|sweep)\.\w+\W*=(.*)", re.DOTALL)


def leads_out(word):
    """Tells whether a run would be made outside the current folder, where one may ask for it."""
    given = FOLDER.search(word)
    return bool(given) and bool(re.search(r"\.\.|^\W*[/~]", given[2]))


def check_line(line, words):
    """One printable line, of bounded length, that names one of the words."""
    assert line.startswith("elstm-train: error: ")
    assert line.isprintable()
    assert len(line) < 2000
    assert "(a bug" not in line
    names = set()
    for word in words:
        key = re.split("[=@:]", word.lstrip("~+- \\"), maxsplit=1)[0].strip()
        names |= {show(word)[:20], show(" ".join(word.split()))[:20], show(key)} - {""}
        if key.count(".") > 1:  # in something that holds no keys: that is named then
            names.add(".".join(key.split(".")[:2]))
    assert any(name in line for name in names), line


def check_main(training, words):
    """elstm-train in the current folder, which is left as it was."""
    training.calls.clear()
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(words)
        except SystemExit as end:
            code = end.code
    made = sorted(Path().iterdir())
    for path in made:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if code == 0:
        for call in training.calls:
            validate(call.config)
        assert bool(made) == bool(training.calls)
        return
    assert code in (1, 2)
    assert (made, training.calls, out.getvalue()) == ([], [], "")
    (line,) = err.getvalue().splitlines()
    check_line(line, words)


def fuzz_main(training, count):
    @settings(FUZZ, max_examples=count)
    @given(LINES)
    def run(words):
        if not any(map(leads_out, words)):
            check_main(training, words)

    run()


def test_whatever_is_typed(training):
    fuzz_main(training, 25)


@pytest.mark.slow
def test_whatever_is_typed_at_length(training):
    fuzz_main(training, 3000)


@pytest.mark.parametrize(
    "words",
    [  # found by the above
        ["=1"],
        ["x" * 300 + "=1"],
        ["schema=1"],
        ["-hydra.verbose=true"],
        ["--\x1b[31m=1"],
        ["--" + "x" * 5000],
        ["+optimizer.lr=" + "0" * 3000],
        [" " * 76 + "=null"],
        ["-m", "hydra.sweeper.params=1"],
    ],
)
def test_lines_that_were_wrong_once(training, words):
    check_main(training, words)
    assert not training.calls


def test_no_experiment_can_be_chosen(training):
    """Hydra itself takes no null for a group."""
    for words in (
        ["experiment=null"],
        ["experiment=fashion_rows", "+experiment=null", "debug=null"],
    ):
        assert main(words) == 0
        assert training.calls.pop().config.data.name == "digits"
    assert main(["-m", "experiment=null,fashion_rows", "debug=null", "seed=1"]) == 0
    assert [call.config.data.name for call in training.calls] == ["digits", "fashion_mnist"]


@pytest.mark.slow
def test_whatever_is_typed_in_a_process_of_its_own(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}

    @settings(FUZZ, max_examples=40)
    @given(st.lists(WORDS.filter(lambda word: "\0" not in word), min_size=1, max_size=2))
    def run(words):
        # The last word is refused always: nothing is to be trained here.
        done = subprocess.run(
            [sys.executable, "-m", "elstm.train", *words, "seed=wrong"],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode in (1, 2)
        assert done.stdout == ""
        (line,) = done.stderr.splitlines()
        check_line(line, [*words, "seed=wrong"])
        assert list(tmp_path.iterdir()) == []

    run()


# --- .hydra/config.yaml of a run to go on with

YAML = [
    "!!python/object/apply:os.mkdir [harm]", "!!python/name:os.system", "!!python/tuple [1]",
    "!x 1", "!!binary aGk=", "!!set {a}", "!!omap [a: 1]", "!!timestamp 99999-99-99", "2001-01-01",
    "&a [*a]", "*a", "<<: *a", "<<: {a: 1}", "? {a: 1}\n: 1", "? [1]\n: 1", "|\n  a", ">-\n  a",
    "- 1", "'", '"\\ud800"', '"\\x1b[31m"', '"\\0"', "%YAML 9.9", "---", "...", "@a", "`a", "\t1",
    ".inf", "0o7", "1:30", "0b1", "{", "}", "[" * 2000, "- " * 2000, "{a: " * 400, "null", "~", "",
    "${oc.env:HOME}", "${oc.decode:'1'}", "${seed}", "${model.name}", "${x:y}",
    "{_target_: os.system}", "_target_", "9" * 5000, "1e999", "true",
]  # fmt: skip


@st.composite
def damaged_configs(draw, text):
    lines = text.splitlines()
    for _ in range(draw(st.integers(1, 3))):
        row = draw(st.integers(0, len(lines) - 1))
        value = draw(st.sampled_from(YAML) | NESTED.map(hydras) | TEXT)
        how = draw(
            st.sampled_from(["value", "value", "value", "key", "insert", "drop", "cut", "byte"])
        )
        key, _, old = lines[row].partition(":")
        if how == "value":
            lines[row] = f"{key}: {value}"
        elif how == "key":
            lines[row] = f"{value}: {old}"
        elif how == "insert":
            lines.insert(row, value)
        elif how == "drop" and len(lines) > 1:
            del lines[row]
        elif how == "cut":
            lines[row] = lines[row][: draw(st.integers(0, 20))]
        else:
            place = draw(st.integers(0, len(lines[row])))
            lines[row] = lines[row][:place] + draw(st.characters()) + lines[row][place + 1 :]
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def fuzz_run_config(folder, count):
    text = write_config(folder)

    @settings(FUZZ, max_examples=count)
    @given(damaged_configs(text))
    def run(content):
        (folder / ".hydra" / "config.yaml").write_bytes(content)
        try:
            validate(load_run_config(folder))
        except UserError as error:
            line = str(error)
            assert line.isprintable()
            assert ".hydra" in line
            assert len(line) < 2000
        assert sorted(path.name for path in folder.iterdir()) == [".hydra"]

    run()


def write_config(folder):
    (folder / ".hydra").mkdir()
    cfg, _ = Composer().compose([])
    with open_dict(cfg):
        del cfg["hydra"]
    text = OmegaConf.to_yaml(cfg)
    (folder / ".hydra" / "config.yaml").write_text(text)
    return text


@pytest.mark.slow
def test_whatever_a_run_folder_has_as_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fuzz_run_config(tmp_path, 150)


def test_a_run_folders_config_that_was_shown_raw_once(tmp_path):
    text = write_config(tmp_path)
    bad = text.replace("data:\n", '"\\x1b[31m":\n')
    (tmp_path / ".hydra" / "config.yaml").write_text(bad)
    with pytest.raises(UserError) as caught:
        load_run_config(tmp_path)
    assert str(caught.value).isprintable()


@pytest.mark.slow
def test_whatever_a_run_folder_has_as_config_at_length(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fuzz_run_config(tmp_path, 5000)
