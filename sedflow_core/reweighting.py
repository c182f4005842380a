"""A training set for another prior (Hahn & Melchior 2022, Sec. 6.2): the same rows, weighted.

In every epoch a row takes part as often as it weighs, each time with noise of its own.
"""

from pathlib import Path
from typing import Any

import torch

from sedflow_core.errors import PriorError
from sedflow_core.estimation import sobol_normal
from sedflow_core.new_prior import log_prior_weight, parse_factors, read_prior_file, tabulate_prior
from sedflow_core.prior import from_u
from sedflow_core.simulation import ForwardConfig, ForwardModel, TrainingSet, draw_redshift

_N_DRAW = 1 << 18
_SEED = 6_200
MIN_EFFECTIVE_ROWS = 1_000


def reweigh(rows: TrainingSet, path: Path) -> TrainingSet:
    """The rows with weights by which they follow the prior of a file.

    Args:
        rows: noiseless simulations from the prior of the parameter table.
        path: see `sedflow_core.new_prior.read_prior_file`.

    Returns:
        The rows of weight above zero. The forward model in `config` holds the new prior, and
        `n_effective_rows` is (sum of weights)^2 / sum of weights^2.

    Raises:
        PriorError: the file cannot be used, the rows already have another prior, or too few are
            left by the new one.
    """
    config = ForwardConfig(**rows.config["forward_model"])
    if config.prior is not None:
        wanted = [part["wanted"] for part in config.prior]
        raise PriorError(f"{path}: expected rows of the table's prior, got rows of {wanted}")
    model = config.build()
    config = config._replace(prior=new_prior(model, path))
    weight = torch.exp(
        log_prior_weight(
            parse_factors(config.prior),
            from_u(rows.u),
            rows.redshift.double(),
            model.galaxy.tables,
        )
    )
    n_effective = int(weight.sum().square() / weight.square().sum()) if weight.any() else 0
    if n_effective < MIN_EFFECTIVE_ROWS:
        raise PriorError(
            f"{path}: expected a prior that leaves {MIN_EFFECTIVE_ROWS} effective rows, "
            f"got {n_effective} of {len(weight)}"
        )
    document = {
        **rows.config,
        "forward_model": config.document(),
        "n_effective_rows": n_effective,
    }
    keep = weight > 0
    return rows._replace(config=document, weight=weight).map(lambda t: t[keep])


def new_prior(model: ForwardModel, path: Path) -> list[dict[str, Any]]:
    """The document of the new prior that a file asks for, under a forward model."""
    wanted = read_prior_file(path)
    theta = from_u(sobol_normal(_N_DRAW, _SEED).T)
    generator = torch.Generator().manual_seed(_SEED)
    redshift = draw_redshift(_N_DRAW, model.redshift_range, generator)
    return tabulate_prior(wanted, theta, redshift, model.galaxy.tables)
