"""The README files: length, every command and code block, links, and how to add things."""

import importlib.metadata
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_sets import own_process, write_idx_set
from synthetic_runs import write_run

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "README.md", *ROOT.glob("elstm/*/README.md"), *ROOT.glob("*/README.md"),
                 *ROOT.glob("outputs/*/README.md"))
)  # fmt: skip
MODULES = ("elstm/sweeps/__init__.py", "elstm/training/distributed.py")  # the README refers to them


def text_of(document):
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(document, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", text_of(document), re.M | re.S)


INLINE = r"`((?:pip|python|pytest|torchrun|elstm-[a-z]+) [^`]+)`"


def commands(document):
    """A document's commands, in blocks and in sentences, as lists of words; `a && b` is two."""
    found = []
    for block in [*blocks(document, "sh"), *re.findall(INLINE, text_of(document))]:
        for line in block.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;()<>")
            lexer.whitespace_split = True
            words = list(lexer)
            while "&&" in words:
                found.append(words[: words.index("&&")])
                words = words[words.index("&&") + 1 :]
            found += [words] if words else []
    return found


def docstring_commands(module):
    """The commands that the docstring of a module shows."""
    lines = re.findall(r"^    ((?:elstm-|torchrun).*)$", (ROOT / module).read_text(), re.M)
    assert lines
    return [shlex.split(line) for line in lines]


def all_commands():
    found = [
        (document, words)
        for document in DOCUMENTS
        for words in commands(document)
        if document != "elstm/data/README.md"
    ]  # data/test_data_page.py has the files of that
    found += [(module, words) for module in MODULES for words in docstring_commands(module)]
    return [pytest.param(words, id=f"{source}: {shlex.join(words)}") for source, words in found]


def test_the_readme_is_short():
    assert len(text_of("README.md").splitlines()) <= 150


@pytest.mark.parametrize("document", DOCUMENTS)
def test_shell_blocks_are_valid_for_bash(document):
    for block in blocks(document, "sh"):
        done = subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True)
        assert (done.returncode, done.stderr) == (0, ""), block


# --- each command, as it stands


@pytest.fixture
def place(training, monkeypatch, tmp_path):
    """A folder with what the commands name: a run, its relatives, an image, data of one's own."""
    shutil.copytree(ROOT / "tests/data/run_of_version_1", "RUN_DIR")
    Image.fromarray((np.arange(64, dtype=np.uint8) * 4).reshape(8, 8)).save("IMAGE", "PNG")
    for model in ("lstm", "elstm_bn"):
        write_run(Path("outputs/fashion_mnist") / model / "run", model, epochs=2)
    return tmp_path


def elstm_train(words):
    from elstm.train import main

    # A launcher's processes would not have the fake training: it is composed, and the rest is run.
    launcher = [word for word in words if word.startswith(("hydra/launcher", "hydra.launcher"))]
    if launcher:
        assert main([*launcher, "--cfg", "hydra"]) == 0
    assert main([word for word in words if word not in launcher]) == 0


def elstm_report(words):
    from elstm.commands.report import main

    assert main(words) == 0


def elstm_eval(words):
    from elstm.commands.evaluate import main

    assert main(words) == 0


def elstm_predict(words):
    from elstm.commands.predict import main

    assert main(words) == 0


def elstm_export(words):
    from elstm.commands.export import main

    assert main(words) == 0


def pip(words):
    assert words[0] == "install"
    extras, packages = declared()
    if "--index-url" in words:
        assert words[words.index("--index-url") + 1].startswith("https://download.pytorch.org/")
        assert {"torch", "torchvision"} <= packages
        words = words[: words.index("--index-url")]
    for word in words[1:]:
        if word.startswith((".", "elstm")):
            wanted = re.fullmatch(r"(?:\.|elstm)(?:\[(.*)\])?", word)[1]
            assert set(wanted.split(",") if wanted else ()) <= extras
        else:
            assert word == "-e" or word in packages


def declared():
    """The extras of the package, and all that it may install."""
    facts = importlib.metadata.metadata("elstm")
    names = {re.match("[A-Za-z0-9_.-]+", line)[0] for line in facts.get_all("Requires-Dist")}
    return set(facts.get_all("Provides-Extra")), names


def tool(name):
    def check(words):
        assert name in declared()[1]
        files = [word for word in words if "/" in word]
        assert all(list(ROOT.glob(file)) for file in files), files

    return check


def tensorboard(words):
    assert "tensorboard" in declared()[1]
    flag, folder = words
    assert (flag, folder) == ("--logdir", "outputs")


def torchrun(words):
    spec = importlib.util.find_spec("torch.distributed.run")
    assert words[0].lstrip("-") in Path(spec.origin).read_text().replace("-", "_")
    at = words.index("-m")
    assert words[at + 1] == "elstm.train"
    elstm_train(words[at + 2 :])


def python(words):
    """A script is there, knows the options, and finds the files; running it takes minutes."""
    script, *rest = words
    if script == "-m":
        assert rest[0] == "pydoc"
        assert importlib.util.find_spec(rest[1])
        return
    sources = [ROOT / script, *(ROOT / script).parent.glob("*/*.py")]
    options = "\n".join(source.read_text(encoding="utf-8") for source in sources)
    for word in rest:
        if word.startswith("--"):
            assert f'"{word}"' in options, word
        elif "/" in word:
            assert list(ROOT.glob(word)), word


RUNNERS = {
    "elstm-train": elstm_train, "elstm-report": elstm_report, "elstm-eval": elstm_eval,
    "elstm-predict": elstm_predict, "elstm-export": elstm_export, "pip": pip, "python": python,
    "pytest": tool("pytest"), "ruff": tool("ruff"), "mypy": tool("mypy"), "torchrun": torchrun,
    "tensorboard": tensorboard,
}  # fmt: skip


@pytest.mark.parametrize("words", all_commands())
def test_every_command_works_as_it_stands(words, place, capsys):
    name, *rest = words
    RUNNERS[name](rest)


def test_the_readme_shows_every_command_of_the_package():
    entry_points = importlib.metadata.entry_points(group="console_scripts")
    ours = {each.name for each in entry_points if each.value.startswith("elstm.")}
    assert ours <= {words[0] for words in commands("README.md")}


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if blocks(d, "python")])
def test_python_blocks_run(document, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for block in blocks(document, "python"):
        exec(compile(block, document, "exec"), namespace)


KEY = r"(?<![\w/.])((?:model|data|optimizer|scheduler|trainer|tracking)\.[a-z_]+(?:\.[a-z_]+)?)\b"
ASSIGNMENT = r"`('?[a-z]+\.[a-z_.]+=[^`|]+)`"


def test_settings_that_the_pages_and_configs_name_are_there_and_can_be_typed():
    from elstm.config.compose import Composer
    from elstm.config.hints import all_keys

    groups = {key.rpartition(".")[0] for key in all_keys()}
    pages = [document for document in DOCUMENTS if not document.startswith("outputs/")]
    files = [*pages, *MODULES, *(p.relative_to(ROOT) for p in ROOT.glob("conf/**/*.yaml"))]
    named = {(str(file), key) for file in files for key in re.findall(KEY, text_of(file))}
    assert len(named) > 50
    known = {*all_keys(), *groups, "data.name", "model.name", "scheduler.name"}
    assert sorted((file, key) for file, key in named if key not in known) == []
    typed = [text for page in pages for text in re.findall(ASSIGNMENT, text_of(page))]
    assert len(typed) > 10
    Composer().parse([word for text in typed for word in shlex.split(text)])


def headings(path):
    lines = re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.M | re.S), re.M
    )
    return {re.sub(r"[^\w\- ]", "", line.lower()).strip().replace(" ", "-") for line in lines}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    for link in re.findall(r"\]\(([^)]+)\)", text_of(document)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / document).parent / path if path else ROOT / document
        assert target.exists(), link
        assert not anchor or anchor in headings(target), link


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_the_text_names_are_there(document):
    for name in re.findall(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|yaml|md|c|csv))`", text_of(document)):
        example = name.startswith("configs/")  # the reader's own folder
        assert example or "NAME" in name or (ROOT / name).exists(), name


# --- to add a model, a data set and a variant, by the README's words


LAYER = '''
from elstm.nn.lstm import LSTM


class ScaledLSTM(LSTM):
    """Computes an LSTM on scaled input."""

    def __init__(self, *args, input_scale=1.0, **options):
        super().__init__(*args, **options)
        self.input_scale = input_scale

    def forward(self, x, *args, **options):
        return super().forward(self.input_scale * x, *args, **options)
'''
CONFIG = """
class ScaledLSTMConfig(LSTMConfig):
    name: str = setting("scaled_lstm")
    input_scale: float = bounded(1.0, gt=0, help="Factor of the input.")


@dataclass
class LayerNormLSTMConfig"""
LETTERS = """DATA_SETS = {
    "letters": DataSet(tuple("abcdefghij"), (28, 28), 50_000, "Letters", ("", "", "", "")),
"""
BRANCH = """        elif cell_norm == "shifted":
            c = bn_c(c - c.mean(1, keepdim=True), t)
        elif cell_norm == "carry":"""
# By file of the README's paragraph: what is replaced, and by what.
EDITS = {
    "A model": {
        "elstm/models.py": [
            ('    "lstm": LSTM,\n', '    "lstm": LSTM,\n    "scaled_lstm": ScaledLSTM,\n'),
            ("from elstm.nn.base", "from elstm.nn.scaled import ScaledLSTM\nfrom elstm.nn.base"),
        ],
        "elstm/config/model_options.py": [("\nclass LayerNormLSTMConfig", CONFIG)],
        "elstm/config/schema.py": [
            ("    ModelConfig,\n", "    ModelConfig,\n    ScaledLSTMConfig,\n"),
            ('        "lstm": LSTMConfig,\n',
             '        "lstm": LSTMConfig,\n        "scaled_lstm": ScaledLSTMConfig,\n'),
        ],
    },
    "A data set": {"elstm/data/catalog.py": [("DATA_SETS = {\n", LETTERS)]},
    "A variant of the cell update": {
        "elstm/nn/recurrence.py": [
            ('    "carry": (', '    "shifted": ("norm_c",),\n    "carry": ('),
            ('        elif cell_norm == "carry":', BRANCH),
        ],
        "elstm/config/model_options.py": [('"carry", "up', '"carry", "shifted", "up')],
    },
}  # fmt: skip
COPIES = {  # the file that is copied, by the new one: its last name becomes the other's
    "conf/model/scaled_lstm.yaml": "conf/model/lstm.yaml",
    "conf/data/letters.yaml": "conf/data/mnist.yaml",
}
TRAIN = """
import sys
from elstm.train import main

small = ["data=letters", "data.root=.", "data.batch_size=16", "trainer.max_epochs=1",
         "trainer.progress=false", "trainer.threads=1", "trainer.device=cpu", "model.hidden_size=4"]
sys.exit(main([*small, "model=scaled_lstm", "model.input_scale=2", "hydra.run.dir=model"])
         or main([*small, "model=elstm_bn", "model.cell_norm=shifted", "hydra.run.dir=variant"])
         or main(["--help"]))
"""


def paragraph(start):
    """The README's bullet that starts with these words."""
    (found,) = re.findall(rf"^- \*\*{start}\*\*.*?(?=^- |^$)", text_of("README.md"), re.M | re.S)
    return found


@pytest.mark.parametrize("start", EDITS)
def test_the_readme_names_the_files_that_an_addition_changes(start):
    named = set(re.findall(r"`(elstm/[\w/]+\.py)`", paragraph(start)))
    assert named - {"elstm/commands/serving.py"} == set(EDITS[start])
    for name in ("RECURRENT_LAYERS", "SCHEMAS", "DATA_SETS", "CELL_NORMS", "_steps"):
        assert f"`{name}" not in paragraph(start) or any(
            name in (ROOT / file).read_text() for file in named
        )


def test_a_model_a_data_set_and_a_variant_are_added_by_the_readmes_words(tmp_path):
    copy = tmp_path / "copy"
    ignore = shutil.ignore_patterns("__pycache__")
    for folder in ("elstm", "conf"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignore)
    (copy / "elstm/nn/scaled.py").write_text(LAYER)
    for edits in EDITS.values():
        for file, replacements in edits.items():
            text = (copy / file).read_text()
            for old, new in replacements:
                assert text.count(old) == 1, (file, old)
                text = text.replace(old, new)
            (copy / file).write_text(text)
    for new, old in COPIES.items():
        text = (copy / old).read_text()
        (copy / new).write_text(text.replace(Path(old).stem, Path(new).stem))
    write_idx_set(tmp_path, "Letters")
    environment = {**own_process(), "PYTHONPATH": str(copy)}
    done = subprocess.run(
        [sys.executable, "-c", TRAIN], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for run in ("model", "variant"):
        status = json.loads((tmp_path / run / "status.json").read_text())
        assert (status["state"], status["data"]) == ("done", "letters")
    assert {"scaled_lstm", "letters"} <= set(done.stdout.split())
