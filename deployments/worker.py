"""All that this project adds to vLLM's workers; they take one class."""

from __future__ import annotations

from deployments.drafts import Drafts
from deployments.glimpses import Glimpses


class Worker(Glimpses, Drafts):
    """For `worker_extension_cls`."""
