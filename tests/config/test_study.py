"""Files of studies: what they hold, and that nothing else of them is taken."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from elstm.config.study import Study, in_order, read_study, source_of
from elstm.errors import UserError

TEXTS = dict.fromkeys(("question", "hypothesis", "tuned", "tests", "cost"), "text")
# Nine levels of ten aliases each.
BOMB = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{key}: &{key} [{','.join(['*' + inner] * 10)}]\n"
    for inner, key in zip("abcdefgh", "bcdefghi", strict=True)
)
STUDIES = sorted((Path(__file__).parents[2] / "conf" / "study").glob("*.yaml"))


def read(folder: Path, name: str = "mine", **fields: object) -> Study:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**TEXTS, "models": ["lstm"], "seeds": [0, 1], **fields}))
    return read_study(path)


def test_a_part_takes_what_it_does_not_name_from_the_study(tmp_path: Path) -> None:
    parts = [{"models": ["gru"]}, {"seeds": [5], "settings": {"seed": 1}, "choose": ["b/digits"]}]
    study = read(tmp_path, grid={"optimizer.lr": [0.1, 1]}, choose=["a"], parts=parts)
    one, two = study.parts
    assert (study.name, one.models, one.seeds, one.choose) == ("mine", ["gru"], [0, 1], ["a"])
    assert (two.models, two.seeds, two.grid) == (["lstm"], [5], {"optimizer.lr": [0.1, 1]})
    assert study.sources == {"a", "b"}
    assert source_of({"from": "a", "model": "gru"}) == (["a"], "gru")
    assert source_of({"from": ["a", "b/mnist"]}) == (["a", "b/mnist"], None)


def test_studies_come_behind_those_they_choose_from(tmp_path: Path) -> None:
    a = read(tmp_path, "a", choose=["b/x"])
    b = read(tmp_path, "b", choose=[{"from": "c", "model": "lstm"}, "elsewhere"])
    c = read(tmp_path, "c")
    assert [study.name for study in in_order([a, b, c])] == ["c", "b", "a"]
    with pytest.raises(UserError, match="choose from each other: a <- b <- a"):
        in_order([a, read(tmp_path, "b", choose=["a"])])
    own = read(tmp_path, "own", parts=[{}, {"choose": ["own/digits"]}])
    assert in_order([own]) == [own]  # from what its earlier parts have trained


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"sead": [1]}, "there is no sead; there are question"),
        ({"seeds": 3}, "seeds is no list"),
        ({"seeds": ["x"]}, "the seed x is no integer"),
        ({"models": ["lstm hydra.run.dir=x"]}, "the model lstm hydra.run.dir=x is no name"),
        ({"parts": [1]}, "parts holds 1"),
        ({"parts": [{"alone": True}]}, "there is no parts.alone"),
        ({"settings": {"optimizer.lr": [1, 2]}}, "optimizer.lr"),
        ({"settings": {"-m x": 1}}, "the key -m x is no setting"),
        ({"grid": {"optimizer.lr": 1}}, "grid.optimizer.lr 1 is no list of values"),
        ({"grid": {"optimizer.lr": [[1]]}}, "grid.optimizer.lr"),
        ({"choose": [3]}, "choose: 3; write STUDY or"),
        ({"choose": ["../../etc"]}, "is no path of a study"),
        ({"report": {"with": ["/etc/*"]}}, "is no path of a study"),
        ({"report": {"titel": "x"}}, "there is no report.titel"),
        ({"tables": {"../x.md": "."}}, "is no file name that ends in .md"),
        ({"tables": {"x.md": "../y"}}, "is no path of a study"),
        ({"quick": {"seeds": 0}}, "is no number of seeds"),
        ({"gpu": "yes"}, "gpu is no true or false"),
    ],
)
def test_errors_are_one_message(tmp_path: Path, fields: dict[str, object], said: str) -> None:
    with pytest.raises(UserError) as error:
        read(tmp_path, **fields)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("question: !!python/object/apply:os.mkdir [harm]", "not plain YAML"),
        (BOMB, "5,000 entries"),
        ("x" * 100_001, "larger than"),
        ("- 1", "holds no settings"),
        ("question: x", "hypothesis is missing"),
    ],
)
def test_an_untrusted_file_is_read_with_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(text)
    with pytest.raises(UserError, match=said):
        read_study(Path("x.yaml"))
    assert [path.name for path in Path().iterdir()] == ["x.yaml"]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"mine\.yaml: no mine\.yaml"):
        read_study(tmp_path / "mine.yaml")


def test_the_kept_studies_can_be_read() -> None:
    studies = [read_study(path) for path in STUDIES]
    names = {study.name for study in studies}
    assert len(names) == len(STUDIES) > 15
    assert all(study.sources <= names for study in studies)
    order = [study.name for study in in_order(studies)]
    for study in studies:
        assert all(
            order.index(each) < order.index(study.name) for each in study.sources - {study.name}
        )
