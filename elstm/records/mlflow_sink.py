"""Shows runs in MLflow: `tracking.mlflow=true`.

MLFLOW_TRACKING_URI chooses the server, and MLFLOW_EXPERIMENT_NAME the experiment. Without a server,
MLflow writes mlflow.db in the current folder, which `mlflow ui` shows under "Model training".
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Sequence

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags
from PIL import Image

from elstm.errors import UserError
from elstm.records.sink import Description, Point

EXPERIMENT = "elstm"
STATES = {"done": "FINISHED", "pruned": "FINISHED", "interrupted": "KILLED"}
BATCH = 1000  # values that MLflow takes at once
LOGGERS = ("mlflow", "alembic", "urllib3")  # would write between the lines of training


class MLflowSink:
    """Sends a run to MLflow."""

    title = "MLflow"

    def open(self, run: Description, known: str | None) -> str:
        for name in LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            self.client = MlflowClient()
            self.id = self._continued(known) if known else None
            if self.id is None:
                self.id = self._started(run)
        except MlflowException as error:
            if os.environ.get("MLFLOW_TRACKING_URI", "").startswith("http"):
                raise  # a server that may answer later
            raise UserError(f"tracking.mlflow=true: {' '.join(str(error).split())}") from error
        return self.id

    def _continued(self, known: str) -> str | None:
        """Reopens the run `known`; returns None where the store has no such run."""
        try:
            info = self.client.get_run(known).info
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        if info.lifecycle_stage != "active":  # deleted by the user
            return None
        self.client.update_run(known, status="RUNNING")
        return known

    def _started(self, run: Description) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        experiment = self.client.get_experiment_by_name(name)
        where = (
            self.client.create_experiment(name) if experiment is None else experiment.experiment_id
        )
        # With user, source and commit, which mlflow.start_run adds as well.
        tags = resolve_tags({"data": run.group, "run_folder": str(run.folder)})
        made = self.client.create_run(where, run_name=run.name, tags=tags).info.run_id
        params = [Param(key, str(value)) for key, value in run.hparams.items()]
        self.client.log_batch(made, params=params)
        return str(made)

    def log(self, points: Sequence[Point], first_row: int) -> None:
        metrics: list[Metric] = []
        for point in points:
            for tag, value in point.values.items():
                if isinstance(value, bytes):
                    picture = Image.open(io.BytesIO(value))
                    self.client.log_image(self.id, picture, key=tag, step=point.step)
                else:
                    metrics.append(Metric(tag, value, int(1000 * point.when), point.step))
        for start in range(0, len(metrics), BATCH):
            self.client.log_batch(self.id, metrics=metrics[start : start + BATCH])

    def close(self, state: str) -> None:
        self.client.set_tag(self.id, "state", state)
        self.client.set_terminated(self.id, STATES.get(state, "FAILED"))
