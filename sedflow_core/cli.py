"""The `sedflow` command: from simulations to an artifact, and what can be asked of one."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sedflow_core.argument_types import non_negative_int, positive_float, positive_int
from sedflow_core.errors import (
    ArtifactError,
    SedflowError,
    TrainingError,
    check_installed,
)
from sedflow_core.progress import progress_bar
from sedflow_core.version import __version__

Command = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; errors of ours become one line on stderr and exit status 2."""
    args = _parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    run: Command = args.run
    try:
        return run(args)
    except SedflowError as error:
        print(f"sedflow: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    from sedflow_core.compare_command import add_compare_arguments, run_compare
    from sedflow_core.fit import add_fit_arguments, run_fit
    from sedflow_core.learning_curve import add_learning_curve_arguments, run_learning_curve
    from sedflow_core.one_galaxy import (
        add_mcmc_arguments,
        add_plot_arguments,
        run_mcmc,
        run_plot,
    )
    from sedflow_core.support_report import add_support_table_arguments, run_support_table

    parser = argparse.ArgumentParser(
        prog="sedflow", description="Train, validate and apply posteriors of galaxy SED models."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Command, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        n_threads = torch.get_num_threads()
        sub.add_argument("--threads", type=positive_int, default=n_threads, help="of torch")
        sub.set_defaults(run=run)
        return sub

    _add_simulate(command("simulate", run_simulate, "write a training set of noiseless galaxies"))
    _add_train(command("train", run_train, "train a flow on a training set; resumes"))
    _add_build(command("build", run_build, "turn a training run into an artifact"))
    _add_validate(command("validate", run_validate, "measure an artifact's calibration"))
    add_fit_arguments(command("fit", run_fit, "summarise the posteriors of a catalogue"))
    add_plot_arguments(command("plot", run_plot, "draw the posterior of one galaxy"))
    add_mcmc_arguments(command("mcmc", run_mcmc, "sample the exact posterior of one galaxy"))
    text = "measure how far the flow is from the exact posterior"
    add_compare_arguments(command("compare", run_compare, text))
    text = "measure the loss against the number of simulations; resumes"
    add_learning_curve_arguments(command("learning-curve", run_learning_curve, text))
    text = "measure support rules and verdict against the exact posterior"
    add_support_table_arguments(command("support-table", run_support_table, text))
    return parser


def _add_simulate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, help="folder of the training set; resumed if it exists")
    text = "at least: shards of some 130,000 are written whole; default: 1000000"
    parser.add_argument("--n-rows", type=positive_int, default=1_000_000, help=text)
    parser.add_argument("--seed", type=non_negative_int, default=0)
    parser.add_argument("--bands", default="sdss2010-ugriz", help="<filter group>-<bands>")
    parser.add_argument("--ssp", default="bc03-miles", help="bc03-miles, popstar, fsps or a path")
    parser.add_argument("--birth-cloud-age", type=positive_float, default=0.1, metavar="GYR")
    parser.add_argument("--redshift-max", type=positive_float, default=0.2)
    parser.add_argument("--nmf-dir", help="folder with the original PROVABGS NMF files")


def run_simulate(args: argparse.Namespace) -> int:
    """`sedflow simulate`."""
    from sedflow_core.simulation import ForwardConfig, write_training_set

    config = ForwardConfig(
        bands=args.bands,
        ssp=args.ssp,
        redshift_high=args.redshift_max,
        birth_cloud_age_gyr=args.birth_cloud_age,
        nmf_dir=args.nmf_dir,
    )
    with progress_bar(args.n_rows, "simulations") as bar:
        for rows in write_training_set(args.out, config, n_rows=args.n_rows, seed=args.seed):
            bar.update(rows - bar.n)
    print(f"{args.out}: {rows:,} simulations")
    return 0


def _add_train(parser: argparse.ArgumentParser) -> None:
    from sedflow_core.train_config import PRESETS

    parser.add_argument("training_set", type=Path)
    parser.add_argument("out", type=Path, help="folder of the run; resumed if it exists")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="streaming")
    parser.add_argument("--epochs", type=positive_int, help="default: the preset's")
    parser.add_argument(
        "--bfloat16-epochs",
        type=non_negative_int,
        default=0,
        metavar="N",
        help="of them the first N in bfloat16: half the time where the processor has units for it, "
        "else more",
    )
    parser.add_argument(
        "--learning-rate", type=positive_float, help="of Adam; default: the preset's"
    )
    parser.add_argument("--n-rows", type=positive_int, help="use the first rows only")
    parser.add_argument(
        "--prior", type=Path, metavar="FILE.toml", help="train for another prior on the same rows"
    )
    parser.add_argument(
        "--seed",
        type=non_negative_int,
        default=0,
        help="of the weights, the split, the order and the noise",
    )


def run_train(args: argparse.Namespace) -> int:
    """`sedflow train`."""
    check_installed("matplotlib", "train")
    from sedflow_core.noise import load_noise
    from sedflow_core.reweighting import reweigh
    from sedflow_core.simulation import load_training_set
    from sedflow_core.train import Epoch, fit
    from sedflow_core.train_config import PRESETS

    training_set = load_training_set(args.training_set, args.n_rows)
    if args.prior is not None:
        training_set = reweigh(training_set, args.prior)
        print(f"{args.prior}: {training_set.config['n_effective_rows']:,} effective rows")
    preset = PRESETS[args.preset]
    config = replace(
        preset,
        flow=preset.flow._replace(seed=args.seed),
        seed=args.seed,
        max_epochs=args.epochs or preset.max_epochs,
        bfloat16_epochs=args.bfloat16_epochs,
        learning_rate=args.learning_rate or preset.learning_rate,
    )
    noise = load_noise(training_set.bands.names, training_set.config["forward_model"]["noise"])
    with progress_bar(None, "rows") as bar:

        def on_step(n_rows: int, loss: torch.Tensor) -> None:
            if bar.update(n_rows):
                bar.set_postfix(loss=f"{float(loss):.3f}")

        def on_epoch(epoch: Epoch) -> None:
            bar.write(
                f"epoch {epoch.epoch}: loss {epoch.train_loss:.4f}, "
                f"validation {epoch.validation_loss:.4f}"
            )

        trained = fit(
            training_set,
            noise,
            config=config,
            folder=args.out,
            on_step=on_step,
            on_epoch=on_epoch,
        )
    _save_loss_figure(trained.history, args.out / "loss.png")
    return 0


def _save_loss_figure(history: Sequence[Any], path: Path) -> None:
    from sedflow_core.figures import loss_curve

    train_loss = [e.train_loss for e in history]
    validation_loss = [e.validation_loss for e in history]
    loss_curve(train_loss, validation_loss).savefig(path)


def _add_build(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("training_run", type=Path, help="folder of `sedflow train`")
    parser.add_argument("out", type=Path, help="folder of the artifact")
    parser.add_argument("--name", required=True)
    parser.add_argument("--version", required=True, dest="artifact_version")
    parser.add_argument("--n-samples", type=positive_int, default=1024)
    parser.add_argument(
        "--n-support",
        type=positive_int,
        default=400_000,
        help="simulations behind the support limits",
    )


def run_build(args: argparse.Namespace) -> int:
    """`sedflow build`."""
    from sedflow_core.build import build_artifact
    from sedflow_core.simulation import ForwardConfig
    from sedflow_core.train import load_run

    run = load_run(args.training_run)
    forward = ForwardConfig(**run.provenance["training_set"]["forward_model"])
    artifact = build_artifact(
        args.out,
        name=args.name,
        version=args.artifact_version,
        flow=run.flow,
        flow_config=run.flow_config,
        scale=run.scale,
        forward=forward,
        n_samples=args.n_samples,
        training=run.provenance,
        n_support=args.n_support,
    )
    print(f"{args.out}: {artifact.name} {artifact.version}, sha256 {artifact.sha256}")
    return 0


def _add_validate(parser: argparse.ArgumentParser) -> None:
    from sedflow_core.columns import add_column_arguments
    from sedflow_core.validate import Sizes

    add, sizes = parser.add_argument, Sizes()
    add("artifact", help="name of a shipped artifact, or a folder")
    add("--out", type=Path, required=True, help="folder of the report; its ranks are resumed")
    of_sizes: dict[str, tuple[Callable[[str], int], str | None]] = {
        "--n-simulations": (positive_int, None),
        "--n-samples": (positive_int, None),
        "--n-published": (positive_int, "ranked in the Sobol sets too"),
        "--n-importance": (positive_int, "weighed, 10,000 draws each"),
        "--n-gap": (positive_int, "compared with the exact density"),
        "--n-classifier": (non_negative_int, "told from the exact posterior"),
        "--n-local": (non_negative_int, "each tested alone by classifiers"),
        "--n-mcmc": (non_negative_int, "sampled by MCMC, some 10 s each"),
    }
    for option, (kind, text) in of_sizes.items():
        name = option.removeprefix("--").replace("-", "_")
        add(option, type=kind, default=getattr(sizes, name), help=text)
    add("--record", action="store_true", help="write the result to the manifest")
    add("--galaxies", type=Path, metavar="CATALOG", help="real galaxies for the figures")
    add("--learning-curve", type=Path, metavar="JSON", help="of sedflow learning-curve")
    add_column_arguments(parser)


def run_validate(args: argparse.Namespace) -> int:
    """`sedflow validate`."""
    check_installed("matplotlib", "train")
    from sedflow_core.artifact import find_artifact, write_manifest
    from sedflow_core.columns import read_usable
    from sedflow_core.estimation import load_artifact
    from sedflow_core.figures import pp_plot
    from sedflow_core.report import render_report
    from sedflow_core.validate import Sizes, validate

    artifact = load_artifact(args.artifact)
    galaxies = read_usable(args, args.galaxies, artifact.bands)
    curve = _read_curve(args.learning_curve)
    sizes = Sizes(*(getattr(args, name) for name in Sizes._fields)).check()
    args.out.mkdir(parents=True, exist_ok=True)
    with progress_bar(sizes.n_simulations + sizes.n_published, "posteriors") as bar:
        report = validate(artifact, sizes, folder=args.out / "parts", progress=bar.update)
    (args.out / "validation.json").write_text(json.dumps(report.document, indent=2) + "\n")
    calibration = report.calibration
    pp_plot(calibration.ranks, calibration.names).savefig(args.out / "pp.png")
    page = render_report(artifact, report, galaxies=galaxies, learning_curve=curve)
    (args.out / "report.html").write_text(page)
    for reason in report.document["failures"]:
        print(reason)
    print(f"{'passed' if report.document['passed'] else 'failed'}: see {args.out / 'report.html'}")
    if args.record:
        folder = find_artifact(args.artifact)
        if load_artifact(folder).sha256 != artifact.sha256:
            raise ArtifactError(f"{folder}: expected what was validated, got another meanwhile")
        write_manifest(folder, {**artifact.manifest, "validation": report.document})
        recorded = load_artifact(folder)
        print(f"{args.artifact}: {recorded.name} {recorded.version}, sha256 {recorded.sha256}")
    return 0 if report.document["passed"] else 1


def _read_curve(path: Path | None) -> dict[str, Any] | None:
    """The document of `sedflow learning-curve` in a file, if one is named."""
    if path is None:
        return None
    try:
        curve = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise TrainingError(f"--learning-curve: expected a JSON file, got {error}") from None
    if not isinstance(curve, dict) or not curve.get("points"):
        raise TrainingError(f"--learning-curve: expected points of a learning curve in {path}")
    return curve


if __name__ == "__main__":
    sys.exit(main())
