"""Training: it learns, it resumes to the same weights, it stops, and it knows the paper."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sedflow_core.batches import Batch, noisy_batches, split_rows
from sedflow_core.errors import TrainingError
from sedflow_core.flow import FlowConfig, MaskedAutoregressiveFlow
from sedflow_core.gradients import Gradients
from sedflow_core.nflows_bridge import SbiFlow
from sedflow_core.noise import NoiseModel, in_mag_range
from sedflow_core.simulation import ForwardModel, TrainingSet
from sedflow_core.threads import torch_threads
from sedflow_core.train import (
    Epoch,
    TrainedFlow,
    build_flow,
    fit,
    load_run,
    schedule,
)
from sedflow_core.train_config import PRESETS, TrainConfig

PRIOR_LOSS = 0.5 * 11 * (1.0 + math.log(2.0 * math.pi))
"""-ln of the prior's density in u, averaged over the prior."""
CONFIG = TrainConfig(
    FlowConfig(2, 24, "silu", n_embedding=4, is_whitened=True),
    learning_rate=5e-3,
    batch_size=64,
    warm_up_steps=10,
    max_epochs=2,
    validation_fraction=0.1,
)


@pytest.fixture(scope="module")
def noise(forward: ForwardModel) -> NoiseModel:
    return forward.noise


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def trained(training_set: TrainingSet, noise: NoiseModel, folder: Path) -> TrainedFlow:
    return fit(training_set, noise, config=CONFIG, folder=folder)


def assert_same_weights(first: torch.nn.Module, second: torch.nn.Module) -> None:
    ours, others = first.state_dict(), second.state_dict()
    assert ours.keys() == others.keys()
    assert all(torch.equal(ours[key], others[key]) for key in ours)


def test_training_lowers_the_loss_below_the_priors(trained: TrainedFlow) -> None:
    assert [epoch.epoch for epoch in trained.history] == [0, 1]
    first, second = trained.history
    assert second.train_loss < first.train_loss
    assert second.validation_loss < first.validation_loss < PRIOR_LOSS
    assert not trained.flow.training


@pytest.mark.parametrize("killed_in", ["second epoch", "between epochs"])
def test_a_killed_run_ends_with_the_weights_of_an_unbroken_one(
    trained: TrainedFlow,
    training_set: TrainingSet,
    noise: NoiseModel,
    tmp_path: Path,
    killed_in: str,
) -> None:
    epochs: list[Epoch] = []

    def on_epoch(epoch: Epoch) -> None:
        epochs.append(epoch)
        if killed_in == "between epochs":
            raise KeyboardInterrupt

    def on_step(n_rows: int, loss: torch.Tensor) -> None:
        if epochs:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(training_set, noise, config=CONFIG, folder=tmp_path, on_step=on_step, on_epoch=on_epoch)
    resumed = fit(training_set, noise, config=CONFIG, folder=tmp_path)
    assert resumed.history == trained.history
    assert_same_weights(resumed.flow, trained.flow)


def test_bfloat16_in_the_first_epochs_ends_at_the_same_loss(
    trained: TrainedFlow, training_set: TrainingSet, noise: NoiseModel, tmp_path: Path
) -> None:
    config = replace(CONFIG, bfloat16_epochs=1)
    coarse = fit(training_set, noise, config=config, folder=tmp_path)
    first, last = (e.validation_loss for e in coarse.history)
    exact_first, exact_last = (e.validation_loss for e in trained.history)
    assert first != exact_first
    assert last == pytest.approx(exact_last, abs=0.1 * (exact_first - exact_last))
    assert all(weight.dtype == torch.float32 for weight in coarse.flow.parameters())


def test_threads_that_share_a_batch_take_its_steps(
    trained: TrainedFlow, training_set: TrainingSet, noise: NoiseModel, tmp_path: Path
) -> None:
    with torch_threads(3):  # batches of 64, and a last one that may be smaller, in unequal parts
        shared = fit(training_set, noise, config=CONFIG, folder=tmp_path)
    for ours, alone in zip(shared.history, trained.history, strict=True):
        assert ours.train_loss == pytest.approx(alone.train_loss, abs=1e-3)
        assert ours.validation_loss == pytest.approx(alone.validation_loss, abs=1e-3)


def test_a_row_far_outside_takes_its_batch_out(
    training_set: TrainingSet, noise: NoiseModel, tmp_path: Path
) -> None:
    runs = []
    for value in (1e6, -1e6, math.nan):
        u = training_set.u.clone()
        u[0, 0] = value
        folder = tmp_path / str(value)
        runs.append(fit(training_set._replace(u=u), noise, config=CONFIG, folder=folder))
    first, *others = runs
    for other in others:
        assert_same_weights(first.flow, other.flow)
        assert other.history == first.history
    assert all(epoch.train_loss < PRIOR_LOSS for epoch in first.history)


def test_a_finished_run_is_not_trained_again(trained, training_set, noise, folder: Path) -> None:
    def on_step(n_rows: int, loss: torch.Tensor) -> None:
        pytest.fail("trained a step")

    again = fit(training_set, noise, config=CONFIG, folder=folder, on_step=on_step)
    assert_same_weights(again.flow, trained.flow)


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"learning_rate": 1e-4}, {"flow": FlowConfig(2, 25, "silu")}], ids=str
)
def test_a_checkpoint_of_another_configuration_is_refused(
    trained, training_set, noise, folder: Path, change: dict
) -> None:
    with pytest.raises(TrainingError, match=r"checkpoint\.pt: expected a checkpoint of the conf"):
        fit(training_set, noise, config=replace(CONFIG, **change), folder=folder)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda rows: rows.map(lambda t: t[:9_000]), "n_rows 9000, got 10000"),
        (lambda rows: rows._replace(config=rows.config | {"seed": 5}), "seed 5, got 4"),
        (lambda rows: rows._replace(config=rows.config | {"ssp": {"sha256": "f"}}), "ssp .*'f'"),
    ],
    ids=["fewer", "others", "other populations"],
)
def test_a_checkpoint_of_other_rows_is_refused(
    trained, training_set, noise, folder: Path, change: Callable, name: str
) -> None:
    with pytest.raises(TrainingError, match=f"expected a checkpoint of rows with {name}"):
        fit(change(training_set), noise, config=CONFIG, folder=folder)


def test_a_checkpoint_of_another_noise_is_refused(
    trained, training_set, noise: NoiseModel, folder: Path
) -> None:
    with pytest.raises(TrainingError, match="expected a checkpoint of the same noise"):
        fit(training_set, noise._replace(width=2 * noise.width), config=CONFIG, folder=folder)


def test_fewer_bands_make_a_smaller_context(
    training_set: TrainingSet, noise: NoiseModel, tmp_path: Path
) -> None:
    without_u = slice(1, None)
    griz = training_set._replace(flux=training_set.flux[:, without_u])
    few = NoiseModel(*(t[without_u] for t in noise))
    trained = fit(griz, few, config=replace(CONFIG, max_epochs=1), folder=tmp_path)
    assert trained.flow.embedding.input_layer.in_features == 2 * 4 + 1
    assert load_run(tmp_path).flow_config.n_context == 9


def test_training_stops_when_the_validation_loss_stops_falling(
    training_set: TrainingSet, noise: NoiseModel, tmp_path: Path
) -> None:
    config = replace(CONFIG, learning_rate=0.0, hidden_learning_rate=0.0, max_epochs=50, patience=2)
    history = fit(training_set, noise, config=config, folder=tmp_path).history
    assert len(history) == 3
    assert len({epoch.validation_loss for epoch in history}) == 1


def test_the_best_epoch_is_kept_not_the_last(
    training_set: TrainingSet, noise: NoiseModel, tmp_path: Path
) -> None:
    flows = []
    # The rate grows without end, so that the loss falls first and rises later.
    config = replace(
        CONFIG,
        learning_rate=0.6,
        hidden_learning_rate=None,
        warm_up_steps=10_000,
        max_epochs=5,
        cosine=False,
    )
    result = fit(
        training_set,
        noise,
        config=config,
        folder=tmp_path,
        on_epoch=lambda epoch: flows.append(torch.load(tmp_path / "checkpoint.pt")["flow"]),
    )
    losses = [epoch.validation_loss for epoch in result.history]
    best = losses.index(min(losses))
    assert 0 < best < 4, losses
    state = result.flow.state_dict()
    assert all(torch.equal(state[key], value) for key, value in flows[best].items())


def test_a_loss_that_is_never_finite_is_an_error(
    training_set: TrainingSet, noise: NoiseModel, tmp_path: Path
) -> None:
    config = replace(
        CONFIG, learning_rate=1e30, hidden_learning_rate=None, max_epochs=1, warm_up_steps=0
    )
    with pytest.raises(TrainingError, match=r"expected a finite validation loss, got \[nan\]"):
        fit(training_set, noise, config=config, folder=tmp_path)


def test_an_epoch_without_a_finite_loss_is_not_the_best(
    training_set: TrainingSet, noise: NoiseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([math.nan, 7.0, 8.0, 9.0])
    monkeypatch.setattr("sedflow_core.train._Run.validation_loss", lambda _: next(losses))
    flows = []
    result = fit(
        training_set,
        noise,
        config=replace(CONFIG, max_epochs=5, patience=2),
        folder=tmp_path,
        on_epoch=lambda epoch: flows.append(torch.load(tmp_path / "checkpoint.pt")["flow"]),
    )
    assert len(flows) == 4
    state = result.flow.state_dict()
    assert all(torch.equal(state[key], value) for key, value in flows[1].items())


def test_a_checkpoint_of_another_format_is_refused(
    trained, training_set, noise, folder: Path, tmp_path: Path
) -> None:
    state = torch.load(folder / "checkpoint.pt")
    del state["format"]
    torch.save(state, tmp_path / "checkpoint.pt")
    told = "expected a checkpoint of format 3, got None"
    with pytest.raises(TrainingError, match=told):
        load_run(tmp_path)
    with pytest.raises(TrainingError, match=told):
        fit(training_set, noise, config=CONFIG, folder=tmp_path)


def test_rows_outside_the_magnitudes_are_too_few_to_train_on(
    training_set: TrainingSet, noise: NoiseModel, tmp_path: Path
) -> None:
    bright = training_set._replace(flux=1e9 * training_set.flux)
    with pytest.raises(TrainingError, match="at least 12 rows inside the magnitude range, got 0"):
        fit(bright, noise, config=CONFIG, folder=tmp_path)


def test_an_unknown_library_is_named() -> None:
    with pytest.raises(TrainingError, match="library: expected sedflow or sbi, got 'SBI'"):
        build_flow(replace(CONFIG, library="SBI"))


@pytest.mark.parametrize("config", [CONFIG.flow, FlowConfig(2, 20, "tanh")], ids=["ours", "sbi"])
def test_a_batch_may_have_fewer_rows_than_there_are_threads(config: FlowConfig) -> None:
    flow = SbiFlow(config) if config.activation == "tanh" else MaskedAutoregressiveFlow(config)
    u, context = torch.randn((2, 1, 11), generator=torch.Generator().manual_seed(3))
    with torch_threads(3):
        gradients = Gradients(flow, torch.device("cpu"))
    loss = gradients.set_for(Batch(u, context), is_coarse=False)
    with torch.no_grad():
        torch.testing.assert_close(loss, -flow(u, context)[0])


def test_a_run_can_be_loaded_with_what_it_was_trained_on(
    trained: TrainedFlow, folder: Path, tmp_path: Path
) -> None:
    run = load_run(folder)
    assert_same_weights(run.flow, trained.flow)
    assert run.flow_config == CONFIG.flow
    assert run.provenance["training_set"]["n_rows"] == 10_000
    assert run.provenance["training_set"]["forward_model"]["ssp"] == "synthetic"
    assert len(run.provenance["losses"]) == 2
    for ours, expected in zip(run.scale, trained.scale, strict=True):
        assert torch.equal(ours, expected)
    with pytest.raises(TrainingError, match=r"expected a training run with checkpoint\.pt"):
        load_run(tmp_path)


def test_the_papers_configuration() -> None:
    """Hahn & Melchior (2022), Sec. 3.3."""
    paper = PRESETS["paper"]
    assert paper.flow == FlowConfig(n_block=15, n_hidden=500, activation="tanh")
    assert (paper.library, paper.cosine, paper.warm_up_steps) == ("sbi", False, 0)
    assert (paper.learning_rate, paper.batch_size) == (5e-4, 50)
    assert (paper.validation_fraction, paper.patience) == (0.1, 20)
    assert paper.hidden_learning_rate is None
    assert schedule(paper, 0, 1000) == schedule(paper, 999, 1000) == 1.0


def test_the_papers_network_trains_through_sbi(
    training_set: TrainingSet, noise: NoiseModel, tmp_path: Path
) -> None:
    small = PRESETS["paper"].flow._replace(n_block=2, n_hidden=20)
    config = replace(PRESETS["paper"], flow=small, max_epochs=2)
    rows = training_set._replace(**{k: getattr(training_set, k)[:2_000] for k in TENSORS})
    result = fit(rows, noise, config=config, folder=tmp_path)
    first, second = result.history
    assert second.validation_loss < first.validation_loss
    u, context = torch.randn(2, 50, 11)
    with torch.no_grad():
        torch.testing.assert_close(load_run(tmp_path).flow(u, context), result.flow(u, context))


TENSORS = ("u", "redshift", "flux")


def test_learning_rate_warms_up_and_decays_to_zero() -> None:
    config = replace(CONFIG, warm_up_steps=100)
    rates = [schedule(config, step, 10_000) for step in range(10_000)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == pytest.approx(1.0, abs=1e-3)
    assert 95 <= rates.index(max(rates)) <= 105
    assert rates[5_000] == pytest.approx(0.5, abs=1e-3)
    assert rates[-1] == pytest.approx(0.0, abs=1e-6)


def test_every_row_is_trained_or_held_out(training_set: TrainingSet) -> None:
    training, validation = split_rows(training_set, 0.1, seed=0)
    assert len(validation.u) == 1_000
    together = torch.cat([training.redshift, validation.redshift])
    assert torch.equal(together.sort().values, training_set.redshift.sort().values)
    with pytest.raises(TrainingError, match="expected at least one of 10000 rows, got 1e-05"):
        split_rows(training_set, 1e-5, seed=0)


def photometry(training_set: TrainingSet, noise: NoiseModel, seed: int) -> list[Tensor]:
    """Noisy flux, error and redshift of every row, and the parameters that belong to them."""
    seen = []

    def encode(flux: Tensor, flux_err: Tensor, redshift: Tensor) -> Tensor:
        seen.append((flux, flux_err, redshift))
        return flux.float()

    generator = torch.Generator().manual_seed(seed)
    batches = list(noisy_batches(training_set, noise, generator, encode, 300))
    assert {len(batch.u) for batch in batches[:-1]} == {300}
    flux, flux_err, redshift = map(torch.cat, zip(*seen, strict=True))
    assert torch.equal(torch.cat([b.context for b in batches]), flux.float())
    return [flux, flux_err, redshift, torch.cat([b.u for b in batches])]


@pytest.mark.parametrize("chunk", [65_536, 1_024])
def test_every_epoch_draws_noise_anew_and_cuts_on_it(
    training_set: TrainingSet, noise: NoiseModel, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sedflow_core.batches._CHUNK", chunk)
    flux, flux_err, redshift, u = photometry(training_set, noise, 1)
    assert in_mag_range(flux, noise).all()
    assert 0.5 * len(training_set.u) < len(flux) < 0.95 * len(training_set.u)
    row = {tuple(point): i for i, point in enumerate(training_set.u.tolist())}
    index = [row[tuple(point)] for point in u.tolist()]
    assert torch.equal(training_set.redshift[index].double(), redshift)
    pull = (flux - training_set.flux[index].double()) / flux_err
    assert 0.9 < pull.std() < 1.05
    same, other = (photometry(training_set, noise, seed)[0] for seed in (1, 2))
    assert torch.equal(same, flux)
    assert not torch.equal(other[:100], flux[:100])
