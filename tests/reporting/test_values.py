"""Values stand beside their bars, within the figure, and none lies on a bar or another value."""

import pytest
from synthetic_runs import write_run

from elstm.reporting.figures import accuracy_figure, reach_figure
from elstm.reporting.groups import choose_baselines, make_sections
from elstm.reporting.measures import analyse
from elstm.reporting.runs import load_runs
from elstm.reporting.style import group_styles


@pytest.fixture(scope="module")
def analysis(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for model, offset in (("lstm", 0.0), ("gru", -0.2), ("elstm_bn", 0.01), ("bn_lstm", -0.001)):
        for seed in range(10):
            write_run(folder / f"{model}-{seed}", model, seed=seed, epochs=4, offset=offset)
    sections = make_sections(load_runs([folder])[0])
    choose_baselines(sections, [])
    return analyse(sections[0])


@pytest.mark.parametrize("draw", [accuracy_figure, reach_figure])
def test_values_are_readable_beside_their_bars(analysis, draw):
    groups = analysis.section.groups
    [styles] = group_styles([[(group.label, group.model) for group in groups]])
    options = {"times": True} if draw is reach_figure else {}
    figure = draw(analysis, groups, styles, **options)
    figure.draw_without_rendering()
    found = 0
    for axes in figure.axes:
        panel = axes.get_window_extent()
        boxes = [text.get_window_extent() for text in axes.texts]
        found += len(boxes)
        for index, box in enumerate(boxes):
            assert panel.x0 <= box.x0
            assert box.x1 <= panel.x1 + 1
            assert not any(box.overlaps(other) for other in boxes[:index])
            drawn = [line.get_window_extent() for line in axes.lines]
            drawn += [patch.get_window_extent() for patch in axes.patches]
            assert not any(box.overlaps(other) for other in drawn)
    assert found == len(groups) * len(figure.axes)
    if draw is accuracy_figure:
        shown = [text.get_text() for text in figure.axes[0].texts]
        mean = 100 * analysis.results[0].test_accuracy.mean
        assert shown[0].startswith(f"{mean:.2f} ± ")
