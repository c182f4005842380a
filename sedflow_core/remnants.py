"""Mass of stellar remnants per unit mass formed, for grids that count living stars only.

Initial-final mass relation of Renzini & Ciotti (1993, ApJ 416, L49), as BC03 and FSPS use it: a
white dwarf of 0.077 m + 0.48 Msun below 8.5 Msun, a neutron star of 1.4 Msun up to 40 Msun, a black
hole of half the initial mass above. IMF of Kroupa (2001), 0.1 to 100 Msun.

The turn-off mass is inferred from the living fraction itself: every star below it is taken to live
with its initial mass and every star above it to have died. Mass lost in the winds of living stars
is thus read as deaths, which lowers the turn-off and overstates the remnants somewhat. For BC03,
solar, the turn-off comes out at 2.26 Msun at 1 Gyr and 1.09 Msun at 10 Gyr, and living stars plus
remnants at 0.683 and 0.597 of the mass formed.
"""

import numpy as np

from sedflow_core.units import Array

MASS_RANGE = (0.1, 100.0)
# (lower mass, upper mass, slope alpha of dN/dm ~ m^-alpha, factor that keeps dN/dm continuous)
KROUPA_SEGMENTS = ((0.1, 0.5, 1.3, 1.0), (0.5, 100.0, 2.3, 0.5))
# (lower mass, upper mass, a, b): remnant mass a m + b
REMNANT_SEGMENTS = ((0.0, 8.5, 0.077, 0.48), (8.5, 40.0, 0.0, 1.4), (40.0, 100.0, 0.5, 0.0))


def kroupa_integral(lower: Array, upper: Array, *, power: float) -> Array:
    """Integral of m^power dN/dm between two masses, per unit mass formed.

    lower, upper: broadcastable masses, Msun, cut to 0.1..100; zero where lower >= upper.
    """
    lowest, highest = np.asarray(MASS_RANGE)
    return _unnormalised(lower, upper, power) / _unnormalised(lowest, highest, 1.0)


def _unnormalised(lower: Array, upper: Array, power: float) -> Array:
    total = np.zeros(np.broadcast(lower, upper).shape)
    for segment_lower, segment_upper, alpha, factor in KROUPA_SEGMENTS:
        a = np.clip(lower, segment_lower, segment_upper)
        b = np.maximum(np.clip(upper, segment_lower, segment_upper), a)
        exponent = power + 1.0 - alpha
        total = total + factor * (b**exponent - a**exponent) / exponent
    return total


def turnoff_mass(living: Array) -> Array:
    """Initial mass, Msun, below which the stars hold the mass fraction `living` (any shape)."""
    mass = np.geomspace(*MASS_RANGE, 4001)
    below = kroupa_integral(np.asarray(MASS_RANGE[0]), mass, power=1.0)
    return np.exp(np.interp(living, below, np.log(mass)))


def remnant_fraction(living: Array) -> Array:
    """Mass in remnants per mass formed of a population with the living mass fraction `living`.

    living: any shape, 0..1. The sum living + remnants rises with `living` wherever the turn-off is
    above 0.52 Msun, since a star then leaves less than it had; none below 0.8 Msun has died yet.
    """
    turnoff = turnoff_mass(living)
    total = np.zeros_like(turnoff)
    for lower, upper, slope, offset in REMNANT_SEGMENTS:
        start = np.maximum(turnoff, lower)
        end = np.asarray(upper)
        total = total + slope * kroupa_integral(start, end, power=1.0)
        total = total + offset * kroupa_integral(start, end, power=0.0)
    return total
