"""The process of the slow lane: `sedflow-consumer refit`.

It reads what the fast lane publishes, as a group of its own, and publishes second opinions with the
same transactions, so each is there exactly once. The fast lane never waits for it: it is another
process, gives way to others on the processor, and shares nothing with it but the topic it reads.
Trouble, halts and exit codes are those of `worker.py`.
"""

import logging
import os
from threading import Event

import torch

from consumer.message import Window
from consumer.process import start_logging, stop_on_signals
from consumer.refit import RefitMetrics, RefitStep
from consumer.refit_settings import derive_refit_settings
from consumer.settings import Settings
from consumer.start_checks import check_clients
from consumer.worker import Worker, attend, load_served
from sedflow_core import Artifact
from sedflow_core.errors import ArtifactError, MissingExtraError, check_installed
from sedflow_core.fresh_simulations import forward_model
from sedflow_core.simulation import ForwardModel

LOG = logging.getLogger("sedflow.refit")


def run_refit(settings: Settings) -> int:
    """Run the slow lane until SIGTERM or SIGINT; return the exit code.

    Raises SettingsError or ArtifactError when it cannot start, MissingExtraError without emcee.
    """
    stop = Event()
    stop_on_signals(stop)
    start_logging(settings.log)
    os.nice(settings.refit.niceness)
    torch.set_num_threads(1)
    slow = derive_refit_settings(settings)
    return attend(RefitWorker(slow, stop), slow)


class RefitWorker(Worker):
    """A worker whose step is the slow lane's."""

    def start(self) -> None:
        """Load the pinned artifact, look at the topics.

        Raises SettingsError, ArtifactError, MissingExtraError or BrokerError.
        """
        check_installed("emcee", "mcmc")
        settings = self._settings
        # Chains are short programs that a GPU would not speed up.
        artifact = load_served(settings.artifact.model_copy(update={"device": "cpu"}))
        if artifact.trust is None:
            raise ArtifactError(
                f"{artifact.name}: expected an emulator for the slow lane, got none"
            )
        self.health.beat()
        metrics = self._refit_metrics = RefitMetrics(self.registry)
        model = _find_model(artifact)
        self._step = RefitStep(
            artifact, model, settings, metrics, self._stop, keep_alive=self._keep_alive
        )
        self.health.beat()
        self._metrics.set_artifact(artifact)
        check_clients(settings)
        self._schema_id = self._find_services()
        self._answer = self._step
        self.health.warmed = True
        LOG.info("artifact loaded", extra={"fields": {"artifact": artifact.name}})

    def _note(self, window: Window) -> None:
        """Count a published window."""
        self.published.add(window)
        self._refit_metrics.count(window)

    def _keep_alive(self) -> None:
        self.health.beat()
        if self._source is not None:
            self._source.keep_alive()


def _find_model(artifact: Artifact) -> ForwardModel | None:
    """Return the simulator that the artifact's emulator stands for, None without the extra sim."""
    try:
        return forward_model(artifact)
    except MissingExtraError as error:
        LOG.warning("the emulator stays uncorrected", extra={"fields": {"reason": str(error)}})
        return None
