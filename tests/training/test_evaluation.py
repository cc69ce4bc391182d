"""Evaluation against the definitions, and what it must leave alone."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from training_runs import MODELS, small_config

from elstm.config.schema import Config
from elstm.data.load import load_data
from elstm.data.sequences import ImageSequences
from elstm.models import SequenceClassifier, build_model
from elstm.nn import batch_statistics
from elstm.training import evaluation


def built(
    name: str = "elstm_bn", **options: object
) -> tuple[Config, ImageSequences, SequenceClassifier]:
    config = small_config(name, **options)  # type: ignore[arg-type]
    data = load_data(config.data)
    torch.manual_seed(0)
    size = {"input_size": data.input_size, "num_steps": data.num_steps}
    options = config.model.options()
    model = build_model(config.model.name, options, num_classes=data.num_classes, **size)
    evaluation.recompute_statistics(model, data, config, 0)
    return config, data, model


def all_at_once(
    model: SequenceClassifier, data: ImageSequences
) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        return model.eval()(data.sequences(data.val.images)), data.val.labels


def test_loss_accuracy_and_confusion() -> None:
    _, data, model = built()
    found = evaluation.score_split(model.train(), data, "val", 64)
    assert model.training
    logits, y = all_at_once(model, data)
    predicted = logits.argmax(1)
    assert found.accuracy == int((predicted == y).sum()) / len(y)
    assert found.loss == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-6)
    for true in range(10):
        for guess in range(10):
            count = ((y == true) & (predicted == guess)).sum()
            assert found.confusion[true, guess] == count


def test_batch_statistics_are_those_of_each_batch() -> None:
    _, data, model = built()
    population, in_batch = evaluation.score_with_both_statistics(model, data, "val", 200)
    with batch_statistics(model), torch.no_grad():
        logits = model(data.sequences(data.val.images))
    assert in_batch.loss == pytest.approx(F.cross_entropy(logits, data.val.labels).item(), rel=1e-6)
    assert in_batch.loss != population.loss


def test_a_last_batch_of_one_image_takes_the_populations() -> None:
    _, data, model = built()
    found = evaluation.score_split(model, data, "val", 199, batch_stats=True)
    with torch.no_grad():
        x = data.sequences(data.val.images)
        with batch_statistics(model):
            first = model(x[:, :199])
        logits = torch.cat((first, model.eval()(x[:, 199:])))
    assert found.loss == pytest.approx(F.cross_entropy(logits, data.val.labels).item(), rel=1e-6)


def test_correct_sequences_are_told_in_the_order_of_the_split() -> None:
    _, data, model = built()
    found = evaluation.score_split(model, data, "val", 64)
    with torch.no_grad():
        logits = model.eval()(data.sequences(data.val.images))
    assert found.correct.tolist() == (logits.argmax(1) == data.val.labels).tolist()
    assert found.correct.double().mean().item() == pytest.approx(found.accuracy)


def test_a_model_without_normalisation_is_evaluated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    _, data, model = built("lstm")
    population, in_batch = evaluation.score_with_both_statistics(model, data, "val", 64)
    assert in_batch is population
    assert not evaluation.has_statistics(model)


def test_recomputed_statistics_leave_training_alone() -> None:
    """Random state, weights and modes; and the next steps of training, noise included."""
    config, data, model = built(model={"dropout": 0.5, "num_layers": 2, "state_noise": 0.1})
    model.train()
    other = copy.deepcopy(model)
    x, y = next(data.train_batches(0, 0))

    def step(trained: SequenceClassifier) -> list[torch.Tensor]:
        torch.manual_seed(1)
        if trained is model:
            evaluation.recompute_statistics(trained, data, config, 0)
            evaluation.over_time(trained, data)
            evaluation.measure(trained, data, "val", config)
        F.cross_entropy(trained(x), y).backward()
        return [p.grad for p in trained.parameters() if p.grad is not None]

    with torch.no_grad():
        before = [b.clone() for b in model.buffers()]
        for parameter in model.parameters():
            parameter.mul_(1.5)
    other.load_state_dict({**other.state_dict(), **dict(model.named_parameters())})
    for a, b in zip(step(model), step(other), strict=True):
        assert torch.equal(a, b)
    assert any(not torch.equal(a, b) for a, b in zip(before, model.buffers(), strict=True))


def test_what_is_raised_between_batches_ends_it() -> None:
    config, data, model = built()
    model.train()
    statistics = [b.clone() for b in model.buffers()]
    with torch.no_grad():
        next(model.parameters()).mul_(2)

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluation.score_split(model, data, "val", 64, before_batch=stop)
    with pytest.raises(KeyboardInterrupt):
        evaluation.recompute_statistics(model, data, config, 0, stop)
    assert all(module.training for module in model.modules())
    for before, after in zip(statistics, model.buffers(), strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize(
    ("trainer", "hidden_size", "expected"),
    [
        ({}, 128, (1, 5000)),
        ({}, 8000, (1, 2**27 // (8 * 8000))),  # digits have 8 steps
        ({}, 10**7, (1, 1000)),
        ({"recompute_batches": 3, "recompute_batch_size": 70}, 10**7, (3, 70)),
    ],
)
def test_how_much_is_recomputed_from(
    monkeypatch: pytest.MonkeyPatch,
    trainer: dict[str, int],
    hidden_size: int,
    expected: tuple[int, int],
) -> None:
    _, data, model = built()
    config = small_config("elstm_bn", **trainer)
    config.model.hidden_size = hidden_size
    asked = []

    def batches(_: ImageSequences, count: int, size: int, *__: object) -> list[torch.Tensor]:
        asked.append((count, size))
        return [data.sequences(data.train.images[:9])]

    monkeypatch.setattr(ImageSequences, "statistics_batches", batches)
    evaluation.recompute_statistics(model, data, config, 0)
    assert asked == [expected]


def test_no_recomputation_keeps_the_moving_averages() -> None:
    config, data, model = built()
    config.trainer.recompute_batches = 0
    with torch.no_grad():
        next(model.parameters()).mul_(2)
    before = [b.clone() for b in model.buffers()]
    evaluation.recompute_statistics(model, data, config, 0)
    assert all(torch.equal(a, b) for a, b in zip(before, model.buffers(), strict=True))


def test_reduced_precision() -> None:
    _, data, model = built()
    full = evaluation.score_split(model, data, "val", 64)
    half = evaluation.score_split(model, data, "val", 64, precision="bf16")
    assert half.loss != full.loss
    assert half.loss == pytest.approx(full.loss, rel=0.02)


@pytest.mark.parametrize("name", MODELS)
def test_over_time(name: str) -> None:
    _, data, model = built(name)
    found = evaluation.over_time(model, data)
    assert list(found) == ["gradient", "cell_mean", "cell_std"][: 1 if name == "gru" else 3]
    assert all(values.shape == (data.num_steps,) for values in found.values())
    assert found["gradient"].min() > 0
