"""A vLLM worker on CPU that tells what its model costs. As an engine's `worker_cls`: `loadtest.timed_worker.Worker`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker

from loadtest.forward import FOLDER, kept, timed


class Worker(CPUWorker):
    """Layers and logits are timed, in the thread that computes them."""

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        super().load_model(*args, **kwargs)
        seconds = kept(Path(os.environ[FOLDER]), os.getpid())
        model = self.model_runner.model
        for part in ("forward", "compute_logits"):
            setattr(model, part, timed(getattr(model, part), seconds))
