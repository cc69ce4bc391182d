"""Names the curves, histograms and pictures of a run in TensorBoard.

TensorBoard groups cards by the part of a tag before the first slash, sorts the groups by name and
opens the first two. The groups are therefore named so that accuracy, loss and optimization come
first, and the groups for diagnosis last.

A run that started under the earlier names resumes under them, so that no curve is split in two.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

SCALARS = {  # by column of metrics.csv
    "lr": "optimization/lr",
    "train_loss": "loss/train",
    "train_accuracy": "accuracy/train",
    "grad_norm": "optimization/grad_norm",
    "samples_per_second": "optimization/samples_per_second",
    "val_loss": "loss/val",
    "val_accuracy": "accuracy/val",
    "val_accuracy_batch_stats": "statistics/val_accuracy_batch_stats",
    "test_loss": "loss/test",
    "test_accuracy": "accuracy/test",
    "test_accuracy_batch_stats": "statistics/test_accuracy_batch_stats",
    "val_balanced_accuracy": "per_class/balanced_accuracy_val",
    "val_macro_f1": "per_class/macro_f1_val",
    "test_balanced_accuracy": "per_class/balanced_accuracy_test",
    "test_macro_f1": "per_class/macro_f1_test",
}
# The columns that metrics.csv had before; a run that started with them keeps them.
FIRST_SCALARS = tuple(SCALARS)[:-4]
# Tags of runs with trainer.ema_decay: the weights that are trained, beside their average.
RAW_SCALARS = {"val_loss_raw": "loss/val_raw", "val_accuracy_raw": "accuracy/val_raw"}
# Written once, at the end, for the HPARAMS tab: a run without an end shows neither.
RESULTS = {
    "best_val_accuracy": "results/best_val_accuracy",
    "train_seconds": "results/train_seconds",
}
HISTOGRAMS = {  # by tensor of a normalisation; the norm's name is appended
    "gamma": "weights/gamma",
    "beta": "weights/beta",
    "running_mean": "statistics/running_mean",
    "running_var": "statistics/running_var",
}
PICTURES = {
    "augmented": "pictures/augmented_training",
    "gradient": "pictures/gradient_over_time",
    "confusion": "pictures/confusion_of_test",
    "mistakes": "pictures/mistakes_of_test",
}
TAGS = {**SCALARS, **RAW_SCALARS, **RESULTS, **HISTOGRAMS, **PICTURES}

# The names that some columns had for a short time.
BETWEEN = {
    "val_balanced_accuracy": "balanced_accuracy/val",
    "val_macro_f1": "macro_f1/val",
    "test_balanced_accuracy": "balanced_accuracy/test",
    "test_macro_f1": "macro_f1/test",
}
EARLIER = {
    "lr": "lr",
    "train_loss": "train/loss",
    "train_accuracy": "train/accuracy",
    "grad_norm": "grad_norm",
    "samples_per_second": "samples_per_second",
    "val_loss": "val/loss",
    "val_accuracy": "val/accuracy",
    "val_accuracy_batch_stats": "val/accuracy_batch_stats",
    "test_loss": "test/loss",
    "test_accuracy": "test/accuracy",
    "test_accuracy_batch_stats": "test/accuracy_batch_stats",
    "gamma": "gamma",
    "beta": "beta",
    "running_mean": "running_mean",
    "running_var": "running_var",
    "gradient": "gradient/hidden",
}


def tags_after(existing: Collection[str]) -> Mapping[str, str]:
    """Returns the tags with which a run continues its event file.

    Args:
        existing: the tags that the event file holds; empty for a new run.
    """
    tags = TAGS
    for names, scalars in ((EARLIER, FIRST_SCALARS), (BETWEEN, BETWEEN)):
        if {names[column] for column in scalars}.intersection(existing):
            tags = {**tags, **names}
    return tags
