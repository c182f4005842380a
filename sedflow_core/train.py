"""Training a flow on noiseless simulations, with fresh noise in every epoch.

`fit` minimises -ln q(u | context), which is the Kullback-Leibler divergence from the posterior up
to a constant. It checkpoints after every epoch and resumes from there; the noise, the order and the
split depend on the seed and the epoch alone.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sedflow_core.batches import Batch, fit_scale, noisy_batches, split_rows
from sedflow_core.errors import TrainingError
from sedflow_core.flow import FlowConfig, MaskedAutoregressiveFlow
from sedflow_core.gradients import Gradients
from sedflow_core.muon import Muon, split_params
from sedflow_core.noise import NoiseModel
from sedflow_core.observation import ContextScale, to_context
from sedflow_core.simulation import TrainingSet, stream_generator
from sedflow_core.train_config import TrainConfig
from sedflow_core.whole_file import written_whole

_CHECKPOINT = "checkpoint.pt"
_FORMAT = 3  # of the checkpoint; raise it when what is stored changes its meaning
_N_WHITENING_ROWS = 1 << 17
_OUTLIER = 100.0
"""Of `gradient_clip`: a steeper batch is left out, for a single row far outside makes it so."""


class Epoch(NamedTuple):
    """One epoch's mean losses -ln q and its last learning rate."""

    epoch: int
    train_loss: float
    validation_loss: float
    learning_rate: float


class TrainedFlow(NamedTuple):
    """The best flow of a run, its context constants and its losses."""

    flow: nn.Module
    scale: ContextScale
    history: list[Epoch]


def build_flow(config: TrainConfig) -> nn.Module:
    """The untrained network: a module that maps (u, context) to ln q.

    Raises:
        TrainingError: the library is not known.
    """
    if config.library == "sbi":
        from sedflow_core.nflows_bridge import SbiFlow

        return SbiFlow(config.flow)
    if config.library != "sedflow":
        raise TrainingError(f"library: expected sedflow or sbi, got {config.library!r}")
    return MaskedAutoregressiveFlow(config.flow)


def schedule(config: TrainConfig, step: int, n_step: int) -> float:
    """Share of the learning rates at a step of n_step: warm-up, then constant or cosine decay."""
    warm_up = min(1.0, (step + 1) / config.warm_up_steps) if config.warm_up_steps else 1.0
    progress = min(1.0, step / n_step)
    decay = 0.5 * (1.0 + math.cos(math.pi * progress)) if config.cosine else 1.0
    return warm_up * decay


def build_optimizers(flow: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for the square matrices of hidden layers if asked for, Adam for all the rest."""
    if config.hidden_learning_rate is None:
        return [torch.optim.Adam(flow.parameters(), lr=config.learning_rate)]
    hidden, rest = split_params(flow.parameters())
    return [Muon(hidden, config.hidden_learning_rate), torch.optim.Adam(rest, config.learning_rate)]


class _Run:
    """The mutable state of one training run."""

    def __init__(
        self,
        training_set: TrainingSet,
        noise: NoiseModel,
        config: TrainConfig,
        folder: Path,
    ) -> None:
        self.folder = folder
        self.provenance = {**training_set.config, "n_rows": len(training_set.u)}
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        training, validation = split_rows(training_set, config.validation_fraction, config.seed)
        self.scale, accepted = fit_scale(training, noise, config.seed)
        flow_config = config.flow._replace(n_context=len(self.scale.mean))
        self.config = config = replace(config, flow=flow_config)
        self.training, self.validation = (
            rows.map(lambda t: t.to(self.device)) for rows in (training, validation)
        )
        self.noise = NoiseModel(*(t.to(self.device) for t in noise))
        self.scale_there = ContextScale(*(t.to(self.device) for t in self.scale))
        self.flow = build_flow(config).to(self.device)
        self._whiten()
        self.gradients = Gradients(self.flow, self.device)
        self.optimizers = build_optimizers(self.flow, config)
        self.full_rates = [o.param_groups[0]["lr"] for o in self.optimizers]
        self.history: list[Epoch] = []
        self.best: dict[str, Tensor] = {}
        self.steps_per_epoch = math.ceil(accepted * len(self.training.u) / config.batch_size)

    def _encode(self, flux: Tensor, flux_err: Tensor, redshift: Tensor) -> Tensor:
        return to_context(flux, flux_err, redshift, self.scale_there)

    def batches(self, rows: TrainingSet, stream: int, size: int) -> Iterator[Batch]:
        generator = stream_generator(self.config.seed, stream, self.device)
        return noisy_batches(rows, self.noise, generator, self._encode, size)

    def _whiten(self) -> None:
        flow = self.flow
        if isinstance(flow, MaskedAutoregressiveFlow) and flow.whitening is not None:
            flow.whitening.fit(*next(self.batches(self.training, 0, _N_WHITENING_ROWS)))

    def train_epoch(self, epoch: int, on_step: Callable[[int, Tensor], None]) -> Epoch:
        self.flow.train()
        total, n_rows, share = torch.zeros((), dtype=torch.float64, device=self.device), 0, 0.0
        n_step = self.steps_per_epoch * self.config.max_epochs
        stream = 2 * epoch + 2
        batches = self.batches(self.training, stream, self.config.batch_size)
        is_coarse = epoch < self.config.bfloat16_epochs
        for i, batch in enumerate(batches):
            share = schedule(self.config, epoch * self.steps_per_epoch + i, n_step)
            loss = self.gradients.set_for(batch, is_coarse)
            norm = nn.utils.clip_grad_norm_(self.flow.parameters(), self.config.gradient_clip)
            if norm < _OUTLIER * self.config.gradient_clip:  # not where it is NaN
                with self.gradients.precision(is_coarse):
                    self._step(share)
                total += loss * len(batch.u)
                n_rows += len(batch.u)
            on_step(len(batch.u), total / n_rows)
        rate = share * self.config.learning_rate
        return Epoch(epoch, float(total / n_rows), self.validation_loss(), rate)

    def _step(self, share: float) -> None:
        for optimizer, rate in zip(self.optimizers, self.full_rates, strict=True):
            optimizer.param_groups[0]["lr"] = share * rate
            optimizer.step()

    @torch.no_grad()
    def validation_loss(self) -> float:
        self.flow.eval()
        total, n_rows = 0.0, 0
        for batch in self.batches(self.validation, 1, 4096):
            total -= float(self.flow(batch.u, batch.context).sum())
            n_rows += len(batch.u)
        if not n_rows:
            raise TrainingError(
                f"validation: expected rows inside the magnitude range, got none of "
                f"{len(self.validation.u)}"
            )
        return total / n_rows

    def record(self, epoch: Epoch) -> None:
        if epoch.validation_loss < self._best_loss():
            self.best = {k: v.detach().cpu().clone() for k, v in self.flow.state_dict().items()}
        self.history.append(epoch)
        self._save()

    def _best_loss(self) -> float:
        losses = [e.validation_loss for e in self.history]
        return min(filter(math.isfinite, losses), default=math.inf)

    def should_stop(self) -> bool:
        losses = [e.validation_loss for e in self.history]
        best = self._best_loss()
        since_best = len(losses) - 1 - losses.index(best) if best in losses else len(losses)
        return len(losses) >= self.config.max_epochs or since_best >= self.config.patience

    def _save(self) -> None:
        state = {
            "format": _FORMAT,
            "flow": self.flow.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "best": self.best,
            "scale": self.scale._asdict(),
            "history": [tuple(e) for e in self.history],
            "config": _plain(self.config),
            "training_set": self.provenance,
            "noise": self.noise._asdict(),
        }
        with written_whole(self.folder / _CHECKPOINT) as partial:
            torch.save(state, partial)
        history = json.dumps([e._asdict() for e in self.history], indent=1)
        (self.folder / "history.json").write_text(history + "\n")

    def resume(self) -> None:
        path = self.folder / _CHECKPOINT
        if not path.exists():
            return
        state = _read_checkpoint(path, self.device)
        if state["config"] != _plain(self.config):
            raise TrainingError(
                f"{path}: expected a checkpoint of the configuration {_plain(self.config)}, "
                f"got {state['config']}"
            )
        self._check_rows(path, state["training_set"])
        if any(not torch.equal(state["noise"][k], t) for k, t in self.noise._asdict().items()):
            raise TrainingError(f"{path}: expected a checkpoint of the same noise, got another")
        self.flow.load_state_dict(state["flow"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.best = state["best"]
        self.history = [Epoch(*e) for e in state["history"]]

    def _check_rows(self, path: Path, trained_on: dict[str, Any]) -> None:
        ours, saved = _facts(self.provenance), _facts(trained_on)
        for name, value in ours.items():
            if value != saved.get(name):
                raise TrainingError(
                    f"{path}: expected a checkpoint of rows with {name} {value}, "
                    f"got {saved.get(name)}"
                )

    def result(self) -> TrainedFlow:
        _check_best(self.best, self.history)
        self.flow.load_state_dict(self.best)
        return TrainedFlow(self.flow.cpu().eval(), self.scale, self.history)


def _read_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    if state.get("format") != _FORMAT:
        raise TrainingError(
            f"{path}: expected a checkpoint of format {_FORMAT}, got {state.get('format')}"
        )
    return state


def _check_best(best: dict[str, Tensor], history: list[Epoch]) -> None:
    if not best:
        losses = [epoch.validation_loss for epoch in history]
        raise TrainingError(f"training: expected a finite validation loss, got {losses}")


def _facts(training_set: dict[str, Any]) -> dict[str, Any]:
    """What a training set was made from, in one level; of a prior, what was wanted."""
    model = training_set["forward_model"]
    wanted = {part["name"]: part["wanted"] for part in model.get("prior") or []}
    own = {"forward_model": None, "ssp_name": model["ssp"], "prior": wanted}
    return {**model, **training_set, **own}


def _plain(config: TrainConfig) -> dict[str, Any]:
    """The configuration as JSON values."""
    document: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return document


def _ignore(*_: object) -> None:
    """Progress that nobody watches."""


class FinishedRun(NamedTuple):
    """What a run's checkpoint says: the best flow, its size, its constants, its provenance."""

    flow: MaskedAutoregressiveFlow
    flow_config: FlowConfig
    scale: ContextScale
    provenance: dict[str, Any]


def load_run(folder: Path) -> FinishedRun:
    """The best flow so far of a training run, ready for an artifact.

    Raises:
        TrainingError: the folder holds no checkpoint, one of another format, or one without a
            finite loss.
    """
    path = folder / _CHECKPOINT
    if not path.exists():
        raise TrainingError(f"{folder}: expected a training run with {_CHECKPOINT}, got none")
    state = _read_checkpoint(path, torch.device("cpu"))
    history = [Epoch(*e) for e in state["history"]]
    _check_best(state["best"], history)
    document = state["config"]
    config = TrainConfig(**{**document, "flow": FlowConfig(*document["flow"])})
    flow = build_flow(config)
    flow.load_state_dict(state["best"])
    return FinishedRun(
        flow=flow if isinstance(flow, MaskedAutoregressiveFlow) else flow.to_flow(),  # type: ignore[operator]
        flow_config=config.flow,
        scale=ContextScale(**state["scale"]),
        provenance={
            "training_set": state["training_set"],
            "config": document,
            "losses": [epoch._asdict() for epoch in history],
        },
    )


def fit(
    training_set: TrainingSet,
    noise: NoiseModel,
    *,
    config: TrainConfig,
    folder: Path,
    on_step: Callable[[int, Tensor], None] = _ignore,
    on_epoch: Callable[[Epoch], None] = _ignore,
) -> TrainedFlow:
    """Train a flow, resuming from the folder's checkpoint when there is one.

    Args:
        training_set: noiseless simulations.
        noise: the noise drawn for every epoch.
        config: network, optimiser and schedule.
        folder: receives the checkpoint and history.json after every epoch.
        on_step: called with the batch's number of rows and the epoch's mean loss so far, which
            may lie on a GPU: looking at it waits for it.
        on_epoch: called with each finished epoch.

    Raises:
        TrainingError: the folder holds a checkpoint of another configuration, format, noise or
            rows, the loss is not finite in any epoch, or too few rows are in the magnitude range.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run = _Run(training_set, noise, config, folder)
    run.resume()
    while not run.should_stop():
        epoch = run.train_epoch(len(run.history), on_step)
        run.record(epoch)
        on_epoch(epoch)
    return run.result()
