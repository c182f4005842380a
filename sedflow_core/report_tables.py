"""The tables of the validation report."""

import html
from collections.abc import Iterator, Sequence
from typing import Any

from sedflow_core.diagnostics import expected_ks_distance
from sedflow_core.exactness import POWER_NAME
from sedflow_core.prior import U_NAMES
from sedflow_core.validate import LIMITS, limit

Row = tuple[str, ...]


def verdict(document: dict[str, Any]) -> str:
    """Passed or failed, and on what."""
    of = f"on {document['n_simulations']:,} simulations, seed {document['seed']}"
    if document["passed"]:
        return f"<strong>Passed</strong> {of}."
    return f"<strong>Failed</strong> {of}: {html.escape('; '.join(document['failures']))}."


def tables(document: dict[str, Any]) -> Iterator[str]:
    """In short, the exact posterior, each quantity, slices."""
    yield "<h2>In short</h2>" + _table(("figure", "value", "limit", "perfect"), _short(document))
    noise = document["noise"]
    yield (
        f"<p>Each KS distance of a perfect posterior exceeds {noise:.4f} in 1 % of cases "
        f"(1.63 / √n, n = {document['n_simulations']:,}); the column <em>perfect</em> holds what "
        "one such posterior scores on the same galaxies.</p>"
    )
    yield "<h2>Against the exact posterior</h2>" + _table(
        ("figure", "median", "from", "to", "limit"), list(_exact_rows(document))
    )
    yield (
        "<p>From and to: 16 and 84 % of the simulations, or the range where there are few; of "
        "perfect posteriors, of classifiers that learned where there is nothing to tell. Weights "
        f"by the {document['importance_efficiency']['by']}, "
        f"{document['importance_efficiency']['n_samples']:,} independent draws each.</p>"
    )
    yield "<h2>Each quantity</h2>" + _table(_HEAD, list(_quantities(document)))
    yield (
        "<p>Bias, scatter and widths of the 11 network parameters are in sigmas of the table's "
        "prior (u); β2 and β3 there are sticks. Sobol: the published sets of points, on the first "
        f"{document['n_published']:,} simulations.</p>"
    )
    if published := document.get("published_bias_and_width"):
        yield "<h2>As published</h2>" + _table(_PUBLISHED_HEAD, list(_widths(published)))
        yield (
            "<p>The quantiles that a summary holds, against the truth of the first "
            f"{document['n_published']:,} simulations, each in the unit of its quantity.</p>"
        )
    yield "<h2>Slices</h2>" + _table(
        ("slice", "from", "to", "n", "1.63 / √n", "largest KS", "of", "TARP", "coverage"),
        list(_slices(document)),
    )


def _short(document: dict[str, Any]) -> list[Row]:
    n, together = document["n_simulations"], document["pooled"]
    perfect = together["perfect"]
    parameters, derived = _split(document["ks_distance_independent"])
    best = [max(part.values(), default=0.0) for part in _split(document["ks_distance_perfect"])]
    rows = [
        (
            "mean -ln q of the truth",
            f"{document['mean_negative_log_q']:.3f} ± {document['mean_negative_log_q_error']:.3f}",
            "",
            "",
        ),
        ("the same of the prior", f"{document['mean_negative_log_prior']:.3f}", "", ""),
        _largest(
            "largest KS distance, 11 network parameters",
            parameters,
            limit("ks_distance", n),
            best[0],
        ),
    ]
    if derived:
        text = f"largest KS distance, {len(derived)} derived quantities"
        rows.append(_largest(text, derived, limit("ks_distance_derived", n), best[1]))
    return [
        *rows,
        (
            "KS distance of all parameters' ranks together",
            f"{together['ks_distance']:.4f}",
            f"{limit('pooled', n):.3f}",
            f"{perfect['ks_distance']:.4f}",
        ),
        (
            f"its p-value, median of {len(together['p_values_of_sets'])} sets of "
            f"{together['n_per_set']:,}",
            f"{together['median_p_value_of_sets']:.3g}",
            "",
            f"{perfect['median_p_value_of_sets']:.3g}",
        ),
        (
            "TARP: distance from the diagonal",
            f"{document['tarp_distance']:.4f}",
            f"{limit('tarp', n):.3f}",
            f"{expected_ks_distance(n):.4f}",
        ),
        (
            "expected coverage: distance",
            f"{document['expected_coverage']['distance']:.4f}",
            "",
            f"{expected_ks_distance(n):.4f}",
        ),
    ]


def _split(values: dict[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """Of the 11 network parameters, and of derived quantities."""
    parameters = {name: value for name, value in values.items() if name in U_NAMES}
    return parameters, {name: v for name, v in values.items() if name not in U_NAMES}


def _largest(text: str, values: dict[str, float], largest: float, perfect: float) -> Row:
    name = max(values, key=lambda key: values[key])
    return (text, f"{values[name]:.4f} ({name})", f"{largest:.3f}", f"{perfect:.4f}")


def _exact_rows(document: dict[str, Any]) -> Iterator[Row]:
    weights = document["importance_efficiency"]
    of = f"({weights['n_simulations']:,} simulations)"
    for text, part, passes in (
        (f"importance efficiency {of}", weights, f"at least {LIMITS['efficiency']}"),
        ("KL divergence, exact from flow", weights["kl_exact_flow"], ""),
        ("total variation", weights["total_variation"], f"at most {LIMITS['total_variation']:.2f}"),
        ("Pareto k", weights["pareto_k"], ""),
    ):
        low, high = part["quantiles_16_84"]
        median = f"{part['median']:.3f} ± {part['median_error']:.3f}"
        yield (text, median, f"{low:.3f}", f"{high:.3f}", passes)
    if gap := document.get("gap"):
        text = f"mean ln p - ln q of the truth, p exact ({gap['n_simulations']:,} simulations)"
        yield (text, f"{gap['mean']:.3f} ± {gap['error']:.3f}", "", "", "")
        for quantity, parts in gap["slices"].items():
            for part in parts:
                low, high = part["range"]
                mean = f"{part['mean']:.3f} ± {part['error']:.3f}"
                yield (f"the same, {quantity} from {low:.4g} to {high:.4g}", mean, "", "", "")
    share = weights["pareto_k"]["above_0.7"]
    yield ("share with Pareto k above 0.7", f"{share:.1%}", "", "", "")
    if mcmc := document.get("mcmc"):
        n = mcmc["n_simulations"]
        yield (f"share converged of {n} by MCMC", f"{mcmc['n_converged'] / n:.1%}", "", "", "")
    if classified := document.get("c2st"):
        for name, text in _CLASSIFIERS.items():
            part = classified[name]
            low, high = part["range"]
            size = f" ({classified['n_simulations']} simulations)" if name == "exact" else ""
            yield (text + size, f"{part['median']:.3f}", f"{low:.3f}", f"{high:.3f}", "")
    if local := document.get("local_c2st"):
        n, level = local["n_simulations"], local["level"]
        alone = f"share of {n} galaxies that L-C2ST rejects at {level:.0%}"
        yield (alone, f"{local['flow']:.1%}", "", "", "")
        low, high = local["perfect_16_84"]
        yield ("the same of perfect posteriors", "", f"{low:.1%}", f"{high:.1%}", "")
        shift = f"the same, were every truth {local['power_shift']} sigma off in one direction"
        yield (shift, f"{local['power']:.1%}", "", "", "")


_CLASSIFIERS = {
    "exact": "C2ST accuracy in u, flow against exact, 5,000 each",
    "best": "its bound, (1 + total variation) / 2",
    "null": "C2ST, flow against flow",
    "power": f"C2ST, flow against flow with {POWER_NAME} shifted by half a sigma",
}


_WIDTH_HEAD = ("bias", "scatter", "half-width", "inside 68 %", "inside 95 %")
_HEAD = ("quantity", "KS", "perfect", "KS, Sobol", "TARP", "central coverage", *_WIDTH_HEAD)
_PUBLISHED_HEAD = ("quantity", *_WIDTH_HEAD)


def _quantities(document: dict[str, Any]) -> Iterator[Row]:
    columns = (
        document["ks_distance_independent"],
        document["ks_distance_perfect"],
        document["ks_distance_published_sobol"],
        document["tarp_distance_of_each"],
        document["expected_coverage"]["distance_of_each"],
    )
    for name in document["ks_distance_independent"]:
        widths = document["bias_and_width"][name]
        yield (name, *(f"{column[name]:.4f}" for column in columns), *_width_cells(widths))


def _widths(of_each: dict[str, dict[str, float]]) -> Iterator[Row]:
    for name, widths in of_each.items():
        yield (name, *_width_cells(widths))


def _width_cells(widths: dict[str, float]) -> Iterator[str]:
    return (f"{widths[key]:.3f}" for key in _WIDTHS)


_WIDTHS = ("median_bias", "scatter", "median_half_width", "inside_68", "inside_95")


def _slices(document: dict[str, Any]) -> Iterator[Row]:
    for quantity, parts in document["slices"].items():
        for part in parts:
            yield (
                quantity,
                *(f"{end:.4g}" for end in part["range"]),
                f"{part['n']:,}",
                f"{part['noise']:.4f}",
                f"{part['max_ks_distance']:.4f}",
                part["of"],
                f"{part['ks_distance']['TARP']:.4f}",
                f"{part['ks_distance']['expected coverage']:.4f}",
            )


def _table(head: Row, rows: Sequence[Row]) -> str:
    def line(cells: Row, tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f"<div><table>{line(head, 'th')}{body}</table></div>"
