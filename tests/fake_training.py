"""Stands in for elstm.training.run where only its callers are tested: no torch, no time."""

import json
import logging
import types
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Call:
    config: object
    run_dir: Path
    resume: bool
    extend: object = None


@dataclass
class FakeTraining:
    """Notes each call of `run` and answers as told.

    answer: config -> state, or an exception to raise; accuracy: config -> fraction.
    """

    answer: object = lambda config: "done"
    accuracy: object = lambda config: 0.5
    calls: list = field(default_factory=list)
    commit: str = "0" * 40
    step: int = 7  # 0: the run ends before its first one
    late_signal: str | None = None  # comes when the run is about to end

    def check_nothing_began(self, captured, said):
        """One line with `said` in it, no run, and no file under the current folder."""
        assert captured.out == ""
        assert said in captured.err
        assert captured.err.count("\n") == 1
        assert list(Path().iterdir()) == []
        assert not self.calls

    def run(self, config, run_dir, *, resume=False, on_evaluation=None, extend=None):
        self.calls.append(Call(config, Path(run_dir), resume, extend))
        logging.getLogger("elstm.training.run").info("training with seed %d", config.seed)
        state = self.answer(config)
        if on_evaluation and state == "done":
            for epoch in (1, 2, 3):
                if on_evaluation(epoch, self.accuracy(config)) and epoch < 3:
                    state = "pruned"
                    break
        failed = isinstance(state, BaseException)
        best = None if failed else self.accuracy(config)
        status = {
            "state": "failed" if failed else state,
            "error": str(state) if failed else None,
            "step": self.step,
            "best_val_accuracy": best,
            "test_accuracy": best if state == "done" else None,
            "wall_seconds": 1.5,
            "git_commit": self.commit,
        }
        (run_dir / "status.json").write_text(json.dumps(status))
        if failed:
            raise state
        signal = "SIGTERM" if state == "interrupted" else self.late_signal
        return types.SimpleNamespace(
            state=state, best_val_accuracy=best, test_accuracy=best, status=status, signal=signal
        )
