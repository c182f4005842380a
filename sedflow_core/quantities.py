"""Parameters and derived quantities as columns, for any number of draws."""

import torch
from torch import Tensor

from sedflow_core.prior import PARAM_NAMES, column
from sedflow_core.sfh import DERIVED_NAMES, PopulationTables, calc_derived

_CHUNK = 4096


def calc_quantities(
    theta: Tensor, redshift: Tensor, tables: PopulationTables, names: tuple[str, ...]
) -> Tensor:
    """Parameters and derived quantities (n, n_name), float64.

    Args:
        theta: (n, n_theta); redshift: (n,) or (1,).
        tables: of the galaxy model.
        names: of the quantities.
    """
    derived_names = tuple(name for name in DERIVED_NAMES if name in names)
    values = {name: column(theta, name).double() for name in names if name in PARAM_NAMES}
    if derived_names:
        derived = _derived(theta.float(), redshift, tables, derived_names).double()
        values |= dict(zip(derived_names, derived.T, strict=True))
    return torch.stack([values[name] for name in names], dim=-1)


def _derived(
    theta: Tensor, redshift: Tensor, tables: PopulationTables, names: tuple[str, ...]
) -> Tensor:
    if len(redshift) == 1:
        return calc_derived(theta[None], redshift, tables, names)[0]
    parts = [
        calc_derived(t[:, None], z, tables, names)[:, 0]
        for t, z in zip(theta.split(_CHUNK), redshift.split(_CHUNK), strict=True)
    ]
    return torch.cat(parts)
