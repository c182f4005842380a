"""The validation of an artifact as one HTML page that needs nothing else."""

import base64
import html
import io
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from sedflow_core.artifact import Artifact
from sedflow_core.figures import pp_plot
from sedflow_core.galaxy import calc_band_flux
from sedflow_core.noise import mag_error_model
from sedflow_core.prior import PARAM_NAMES
from sedflow_core.report_figures import (
    coverage_curves,
    flow_against_exact,
    rank_histograms,
    sed_fit,
    support_plane,
)
from sedflow_core.sfh import calc_derived
from sedflow_core.simulated import forward_model
from sedflow_core.support import N_SIGMA, check_support
from sedflow_core.units import mag_err_from_flux, mag_from_nanomaggy
from sedflow_core.validate import Report

_STYLE = """
body { font: 16px/1.5 sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
img { max-width: 100%; } table { border-collapse: collapse; margin: 1rem 0; }
td, th { border-bottom: 1px solid #ccc; padding: .2rem .7rem; text-align: right; }
td:first-child, th:first-child { text-align: left; }
"""
N_SUPPORT_POINTS = 4_000


def render_report(artifact: Artifact, report: Report) -> str:
    """The page: verdict, tables and figures of a validation."""
    parts = [
        f"<h1>{html.escape(artifact.name)} {html.escape(artifact.version)}</h1>",
        f"<p>{_verdict(report.document)}</p>",
        *_tables(report.document),
        *_figures(artifact, report),
    ]
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        f"<title>Validation of {html.escape(artifact.name)}</title><style>{_STYLE}</style></head>"
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _verdict(document: dict[str, Any]) -> str:
    of = f"on {document['n_simulations']:,} simulations, seed {document['seed']}"
    if document["passed"]:
        return f"<strong>Passed</strong> {of}."
    return f"<strong>Failed</strong> {of}: {html.escape('; '.join(document['failures']))}."


def _tables(document: dict[str, Any]) -> Iterator[str]:
    efficiency, together = document["importance_efficiency"], document["pooled"]
    noise = 1.358 / np.sqrt(document["n_simulations"])
    yield "<h2>In short</h2>" + _table(
        ("figure", "value"),
        [
            ("mean -ln q of the truth", f"{document['mean_negative_log_q']:.3f}"),
            ("the same of the prior", f"{document['mean_negative_log_prior']:.3f}"),
            ("median importance efficiency", f"{efficiency['median']:.1%}"),
            ("KS distance of all parameters' ranks together", f"{together['ks_distance']:.4f}"),
            ("its p-value, median of 10 sets", f"{together['median_p_value_of_sets']:.3g}"),
            ("TARP: distance from the diagonal", f"{document['tarp_distance']:.4f}"),
            ("expected coverage: distance", f"{document['expected_coverage']['distance']:.4f}"),
            ("distance that noise alone exceeds in 5 %", f"{noise:.4f}"),
        ],
    )
    published = document["ks_distance_published_sobol"]
    yield "<h2>Each quantity</h2>" + _table(
        ("quantity", "KS", "KS, Sobol set", "bias", "scatter", "half-width", "inside 68 %"),
        [
            (
                name,
                f"{distance:.4f}",
                f"{published[name]:.4f}",
                *(f"{document['bias_and_width'][name][key]:.3f}" for key in _WIDTHS),
            )
            for name, distance in document["ks_distance_independent"].items()
        ],
    )
    yield "<p>Bias, scatter and widths of the 11 network parameters are in prior sigmas (u).</p>"
    yield "<h2>Slices</h2>" + _table(
        ("slice", "from", "to", "n", "largest KS", "of"),
        [
            (
                quantity,
                *(f"{end:.4g}" for end in part["range"]),
                f"{part['n']:,}",
                f"{part['max_ks_distance']:.4f}",
                part["of"],
            )
            for quantity, parts in document["slices"].items()
            for part in parts
        ],
    )


_WIDTHS = ("median_bias", "scatter", "median_half_width", "inside_68")


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    def line(cells: tuple[str, ...], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    return f"<table>{line(head, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


def _figures(artifact: Artifact, report: Report) -> Iterator[str]:
    calibration = report.calibration
    figures: Mapping[str, Figure] = {
        "P-P plot": pp_plot(calibration.ranks, calibration.names),
        "Simulation-based calibration": rank_histograms(calibration.ranks, calibration.names),
        "Coverage": coverage_curves(
            {"TARP": calibration.tarp, "highest density": report.density_ranks}
        ),
        "One simulation: the flow and the exact posterior": _one_posterior(artifact, report),
        "The same simulation: photometry and posterior": _one_fit(artifact, report),
        "Support": _support(artifact, report),
    }
    for title, figure in figures.items():
        yield f"<h2>{title}</h2>{_embed(figure, title)}"


def _embed(figure: Figure, title: str) -> str:
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    data = base64.b64encode(stream.getvalue()).decode()
    return f"<img alt='{title}' src='data:image/png;base64,{data}'>"


def _one_posterior(artifact: Artifact, report: Report) -> Figure:
    theta = torch.tensor(report.weighted.theta[:, :1]).transpose(0, 1)
    redshift = torch.tensor(report.simulations.observation.redshift[:1])
    derived = calc_derived(theta, redshift, artifact.tables, artifact.derived_names)
    truth = np.concatenate([report.simulations.theta[0], report.simulations.derived[0]])
    samples = torch.cat([theta, derived], dim=-1)[0].double().numpy()
    names = PARAM_NAMES + artifact.derived_names
    return flow_against_exact(samples, report.weighted.weights[:, 0], truth, names)


def _one_fit(artifact: Artifact, report: Report) -> Figure:
    model, observation = forward_model(artifact), report.simulations.observation
    theta = torch.tensor(report.weighted.theta[:500, 0])
    redshift = torch.full((len(theta),), float(observation.redshift[0]), dtype=torch.float64)
    flux = calc_band_flux(model.galaxy, theta, redshift).numpy()
    response = model.galaxy.photometry[0].view(-1, flux.shape[1]).double()
    wave = (response * model.galaxy.wave[:, None]).sum(dim=0) / response.sum(dim=0)
    return sed_fit(
        wave.numpy(),
        mag_from_nanomaggy(observation.flux[0]),
        mag_err_from_flux(observation.flux[0], observation.flux_err[0]),
        mag_from_nanomaggy(flux),
        artifact.bands.names,
    )


def _support(artifact: Artifact, report: Report) -> Figure:
    observation = report.simulations.observation.rows(slice(0, N_SUPPORT_POINTS))
    tensors = (
        torch.tensor(observation.flux),
        torch.tensor(observation.flux_err),
        torch.tensor(observation.redshift),
    )
    flags = check_support(*tensors, artifact.support, artifact.bands)
    middle = len(artifact.bands.names) // 2
    mag = mag_from_nanomaggy(observation.flux)[:, middle]
    grid = torch.linspace(float(mag.min()), float(mag.max()), 200, dtype=torch.float64)
    error = mag_error_model(grid[:, None].expand(-1, len(artifact.bands.names)), artifact.support)
    limit = (error.mean + N_SIGMA * error.width)[:, middle]
    sigma = mag_err_from_flux(observation.flux, observation.flux_err)[:, middle]
    return support_plane(mag, sigma, (grid.numpy(), limit.numpy()), (flags != 0).numpy())
