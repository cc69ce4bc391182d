"""Which runs of a sweep are the same, which are finished, and who trains which."""

import dataclasses

from elstm.config.compose import Composer
from elstm.config.schema import settings_without_effect
from elstm.records.tracking import hparams
from elstm.reporting.groups import IGNORED
from elstm.sweeps.plan import identity

OTHER = {bool: lambda v: not v, int: lambda v: v + 1, float: lambda v: v + 1.0, str: str.upper}


def changed(value):
    return OTHER[type(value)](value) if value is not None else 3


def test_one_list_of_settings_without_effect_serves_sweeps_reports_and_tensorboard():
    _, config = Composer().compose([])
    marked = settings_without_effect()
    assert marked == (
        "data.root", "sweep", "trainer.checkpoint_every", "trainer.log_every", "trainer.progress",
        "trainer.resume", "trainer.threads",
    )  # fmt: skip
    for name, node in vars(config).items():
        if name == "seed":
            continue
        for field in dataclasses.fields(node):
            if field.name == "name":
                continue
            value = changed(getattr(node, field.name))
            other = dataclasses.replace(
                config, **{name: dataclasses.replace(node, **{field.name: value})}
            )
            key = f"{name}.{field.name}"
            same = key in marked or name in marked
            assert (identity(other) == identity(config)) == same, key
            assert (key in IGNORED or name in IGNORED) == same, key
            assert (key in hparams(other)) == (not same), key
