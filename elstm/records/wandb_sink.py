"""Shows runs in Weights & Biases: `tracking.wandb=true`.

Its environment variables choose the place: WANDB_MODE=offline, WANDB_PROJECT, WANDB_ENTITY. Files
of a run lie in RUN_DIR/wandb; `wandb sync RUN_DIR/wandb/offline-run-*` uploads those of offline
runs.
"""

from __future__ import annotations

import io
import os
import secrets
from collections.abc import Sequence
from typing import Any

import wandb
from PIL import Image

from elstm.errors import UserError
from elstm.records.sink import Description, Point

PROJECT = "elstm"
EXIT_CODES = {"done": 0, "pruned": 0, "interrupted": 255}  # 255: as W&B itself at Ctrl-C
INIT_SECONDS, FINISH_SECONDS = 60.0, 25.0


class WandbSink:
    """Sends a run to Weights & Biases.

    W&B drops rows whose step is not above all earlier ones. Its own step is therefore the number of
    the row, and the training step is a value that its charts take as their x axis.
    """

    title = "Weights & Biases"

    def open(self, run: Description, known: str | None) -> str:
        self._log_in()
        self.run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            id=known or secrets.token_hex(4),
            resume="allow",
            name=run.name,
            group=run.group,
            dir=str(run.folder),
            config=dict(run.hparams),
            allow_val_change=True,
            settings=wandb.Settings(
                console="off",  # W&B would take over standard output, and the progress bar with it
                silent=True,
                reinit="create_new",  # else it returns a run that this process has not finished
                init_timeout=INIT_SECONDS,
                finish_timeout=FINISH_SECONDS,
                finish_timeout_raises=True,
            ),
        )
        self.run.define_metric("*", step_metric="step")
        return str(self.run.id)

    @staticmethod
    def _log_in() -> None:
        """Raises UserError where W&B would request a key at the terminal."""
        if wandb.setup().settings.mode in ("offline", "dryrun", "disabled"):
            return
        try:
            found = wandb.login(prompt=False)
        except wandb.errors.UsageError as error:
            raise UserError(f"tracking.wandb=true: {' '.join(str(error).split())}") from error
        if not found:
            raise UserError(
                "tracking.wandb=true: there is no API key of Weights & Biases: run `wandb login` "
                "once, or set WANDB_MODE=offline"
            )

    def log(self, points: Sequence[Point], first_row: int) -> None:
        for row, point in enumerate(points, start=first_row):
            values = {
                tag: wandb.Image(Image.open(io.BytesIO(value)))
                if isinstance(value, bytes)
                else value
                for tag, value in point.values.items()
            }
            self.run.log({**values, "step": point.step}, step=row)

    def close(self, state: str) -> None:
        self.run.summary["state"] = state
        self.run.finish(exit_code=EXIT_CODES.get(state, 1))
