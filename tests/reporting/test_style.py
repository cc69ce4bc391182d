"""A model looks the same in every report, and groups of one section never look alike."""

import re

import pytest
from PIL import Image
from synthetic_runs import write_run

from elstm.commands.report import main
from elstm.reporting.groups import MODEL_ORDER
from elstm.reporting.style import MODELS, group_styles


def one(model, *others):
    styles = group_styles([[(name, name) for name in (*others, model)]])
    style = styles[0][model]
    return style.colour, style.marker


@pytest.mark.parametrize("model", ["lstm", "elstm_bn", "gru", "my_model", "other"])
def test_a_model_looks_the_same_whatever_is_beside_it(model):
    assert one(model) == one(model, "bn_lstm") == one(model, "x", "ln_lstm", "y")
    labels = group_styles([[(f"{model} lr={lr}", model) for lr in (0.1, 0.2, 0.3)]])[0]
    assert {(style.colour, style.marker) for style in labels.values()} == {one(model)}


def test_the_table_has_all_models_and_no_two_look_alike():
    assert set(MODELS) == set(MODEL_ORDER)
    assert len({look[0] for look in MODELS.values()}) == len(MODELS)
    assert len({look[1] for look in MODELS.values()}) == len(MODELS)


def test_groups_of_a_section_differ():
    groups = [(f"{model} {n}", model) for model in (*MODELS, *"abcdefghij") for n in range(12)]
    kept = group_styles([groups[30:40], groups[:24], groups[::12]])
    assert all(len(set(styles.values())) == len(styles) for styles in kept)
    assert kept[0][groups[36][0]] == kept[2][groups[36][0]]


def test_a_model_keeps_its_colour_from_report_to_report(tmp_path):
    def colours(name, *models):
        for model in models:
            write_run(tmp_path / f"{name}/{model}", model, epochs=2)
        out = tmp_path / f"{name}-report"
        main([str(tmp_path / name), "-o", str(out), "--figures", "validation-accuracy"])
        svg = (out / "figures/fashion_mnist-validation-accuracy.svg").read_text()
        return set(re.findall(r"stroke: (#[0-9a-f]{6})", svg))

    pink = "#cc79a7"  # of gru
    assert pink in colours("a", "lstm", "gru") & colours("b", "gru", "elstm_bn", "bn_lstm")
    assert pink not in colours("c", "lstm", "elstm_bn", "bn_lstm")
    with Image.open(tmp_path / "a-report/figures/fashion_mnist-validation-accuracy.png") as image:
        assert image.mode == "P"  # a palette: a third of the bytes
        shown = {colour for _, colour in image.convert("RGB").getcolors()}
    assert any(
        max(abs(a - b) for a, b in zip(c, (0xCC, 0x79, 0xA7), strict=True)) < 8 for c in shown
    )
