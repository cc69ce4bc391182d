"""Trains many runs: plans them, launches them, and lists how they ended.

    elstm-train -m model=lstm,elstm_bn 'seed=range(3)'
    elstm-train -m hydra/launcher=joblib hydra.launcher.n_jobs=4 'seed=range(4)'
    elstm-train -m hydra/launcher=slurm hydra.launcher.partition=gpu 'seed=range(8)'
    elstm-train -m hydra/sweeper=optuna hydra.sweeper.n_trials=10 'optimizer.lr=interval(1e-4,1e-1)'

A sweep checks every run before the first one starts. A run that fails does not stop the others.
The same command again skips finished runs and resumes the others. A run on another trainer.device,
or with another model.backend, counts as another run, because its results may differ in the last
bits. Ctrl-C saves the running runs, and a second Ctrl-C ends them at once. If a worker of
joblib is killed, joblib ends all workers. The sweep then starts new ones, which resume the runs; a
run that was active in two such crashes is recorded as killed.

The last three commands need an extra: joblib, submitit and optuna, or sweeps for all of them.

- joblib runs `n_jobs` runs at once and divides the cores among them.
- slurm submits a job array (conf/hydra/launcher/slurm.yaml has its settings). A job whose time is
  up or that is preempted (SIGUSR1, SIGUSR2, SIGTERM) saves, is requeued, and resumes in its folder.
- optuna samples ranges with TPE (`hydra.sweeper.sampler=gp` or `random`), stops runs that fall
  behind in validation accuracy (`hydra.sweeper.pruner`: median, hyperband, none), and stores its
  study in outputs/studies. The same command resumes the study, and `n_trials` may grow. With a
  launcher, `hydra.sweeper.n_jobs` trials are chosen together. `elstm-train --help hydra.sweeper`
  describes all settings.

Sweepers from other Hydra plugins work too: finished runs are skipped, and sweep.csv lists all.
The overhead of a run is about 0.24 s of a worker's time (scripts/sweep_overhead.py).
"""
