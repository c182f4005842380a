"""The validation of an artifact as one HTML page that needs nothing else."""

import base64
import html
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sedflow_core.artifact import Artifact
from sedflow_core.estimation import find_flags
from sedflow_core.figures import pp_plot
from sedflow_core.fresh_simulations import forward_model
from sedflow_core.observation import Observation
from sedflow_core.paper_figures import learning_figure, p_value_figure, slice_map
from sedflow_core.report_figures import coverage_curves, rank_histograms
from sedflow_core.report_galaxies import (
    examine,
    figure_of_fit,
    figure_of_posterior,
    figure_of_prior,
    figure_of_support,
    figure_of_training,
)
from sedflow_core.report_tables import tables, verdict
from sedflow_core.simulation import ForwardModel
from sedflow_core.validate import Report

_STYLE = """
body { font: 16px/1.5 sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
img { max-width: 100%; } table { border-collapse: collapse; margin: 1rem 0; }
td, th { border-bottom: 1px solid #ccc; padding: .2rem .7rem; text-align: right; }
td:first-child, th:first-child { text-align: left; }
div { overflow-x: auto; } p { max-width: 45rem; }
"""


def render_report(
    artifact: Artifact,
    report: Report,
    *,
    galaxies: Observation | None = None,
    learning_curve: dict[str, Any] | None = None,
) -> str:
    """The page: verdict, tables and figures of a validation.

    Args:
        artifact: see `load_artifact`.
        report: of `sedflow_core.validate.validate`.
        galaxies: real ones, to be shown beside the simulations.
        learning_curve: a document of `sedflow_core.learning_curve`.
    """
    name = html.escape(f"{artifact.name} {artifact.version}")
    parts = [
        f"<h1>Validation of {name}</h1><p>{verdict(report.document)}</p>",
        *tables(report.document),
        *(
            f"<h2>{title}</h2><p>{text}</p>{_embed(figure, title)}"
            for title, text, figure in _figures(artifact, report, galaxies, learning_curve)
        ),
    ]
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width'>"
        f"<title>Validation of {name}</title><style>{_STYLE}</style></head>"
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _embed(figure: Figure, title: str) -> str:
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    data = base64.b64encode(stream.getvalue()).decode()
    return f"<img alt='{html.escape(title)}' src='data:image/png;base64,{data}'>"


def _figures(
    artifact: Artifact,
    report: Report,
    galaxies: Observation | None,
    learning_curve: dict[str, Any] | None,
) -> Iterator[tuple[str, str, Figure]]:
    """Title, caption and figure, in the order of the page."""
    model, simulations = forward_model(artifact), report.simulations
    row = None if galaxies is None else _first_supported(artifact, galaxies)
    yield (
        "Training set and galaxies",
        "What the flow was trained on, in some parameters and observables; blue where real "
        "galaxies were given. They must lie inside.",
        figure_of_training(artifact, simulations, galaxies, row),
    )
    yield (
        "Prior on derived quantities",
        "What the prior on the parameters implies, and how the magnitude cuts change it. Where a "
        "posterior is as wide as this, nothing was measured.",
        figure_of_prior(artifact, model, simulations),
    )
    yield from _posteriors(artifact, model, report, galaxies, row)
    yield from _calibration_figures(report)
    of = "simulations" if galaxies is None else "real galaxies"
    yield (
        "Support",
        f"Simulations in grey; {of} that a rule finds outside the support. Such a galaxy gets a "
        "status and no posterior.",
        figure_of_support(artifact, simulations, galaxies),
    )
    if learning_curve is not None:
        yield (
            "Number of simulations",
            "A small network, trained with as many steps on nested subsets of one training set, "
            "with fresh noise in each epoch; all measured on the same rows.",
            learning_figure(learning_curve),
        )


def _first_supported(artifact: Artifact, galaxies: Observation) -> int | None:
    supported = np.flatnonzero(find_flags(artifact, galaxies) == 0)
    return int(supported[0]) if len(supported) else None


def _posteriors(
    artifact: Artifact,
    model: ForwardModel,
    report: Report,
    galaxies: Observation | None,
    row: int | None,
) -> Iterator[tuple[str, str, Figure]]:
    simulations = report.simulations
    with_mcmc = "MCMC" in report.exact_ranks
    if galaxies is not None and row is not None:
        one = galaxies.rows(slice(row, row + 1))
        galaxy = examine(artifact, model, one, None, with_mcmc=with_mcmc)
        yield (
            "One real galaxy: the flow and the exact posterior",
            "The first of the real galaxies inside the support.",
            figure_of_posterior(artifact, galaxy),
        )
        yield (
            "The same galaxy: best fits",
            "Spectra of the samples that fit the photometry best.",
            figure_of_fit(artifact, model, galaxy),
        )
    one = simulations.observation.rows(slice(0, 1))
    truth = np.concatenate([simulations.theta[0], simulations.derived[0]])
    galaxy = examine(artifact, model, one, truth, with_mcmc=with_mcmc)
    yield (
        "One simulation: the flow and the exact posterior",
        "The first of the simulations, whose truth is known.",
        figure_of_posterior(artifact, galaxy),
    )
    yield (
        "The same simulation: best fits",
        "Spectra of the samples that fit the photometry best.",
        figure_of_fit(artifact, model, galaxy),
    )


def _calibration_figures(report: Report) -> Iterator[tuple[str, str, Figure]]:
    calibration, document = report.calibration, report.document
    names = calibration.names
    yield (
        "P-P plot",
        "Where the truth lies in its posterior; on the diagonal for a perfect one. Dotted: the "
        "exact posterior of fewer simulations, one line per quantity, which strays by chance.",
        pp_plot(calibration.ranks, names, report.exact_ranks),
    )
    yield (
        "Simulation-based calibration",
        "The same as histograms: a cup says too narrow, a cap too wide, a slope biased. Grey: 99 % "
        "of the bins of a perfect posterior.",
        rank_histograms(calibration.ranks, names, report.exact_ranks),
    )
    yield (
        "Coverage",
        "How often the truth lies in a region of given credibility: about random points (TARP), "
        "and of highest density, in all 11 parameters together.",
        coverage_curves({"TARP": calibration.tarp[:, -1], "highest density": calibration.density}),
    )
    yield (
        "Slices",
        "KS distance of the ranks, in units of what 1 % of perfect posteriors exceed.",
        slice_map(document["slices"]),
    )
    together = document["pooled"]
    yield (
        "All ranks pooled",
        "The figure of the paper's notebooks: the p-value of all ranks of "
        f"{together['n_per_set']:,} galaxies. Ranks of one galaxy depend on each other, so a "
        "perfect posterior strays as well.",
        p_value_figure(
            np.array(together["p_values_of_sets"]), together["perfect"]["p_values_16_84"]
        ),
    )
