"""The errors of the core, all in one tree.

SedflowError
├── MissingExtraError    an optional dependency is not installed
├── ObservationError     photometry of the wrong shape, or that cannot be sampled
├── BandError            unknown filters, or a set of bands that cannot be used
├── GridError            an SSP grid or NMF basis that cannot be read or built, or is too narrow
├── PriorError           a file of a new prior that cannot be used
├── SimulationError      a simulation outside the model's range, or an unusable training set
├── TrainingError        a training run, or a learning curve, that cannot be made or gone on with
├── ArtifactError        an artifact whose content does not match its manifest
└── CatalogError         a catalogue column, unit or value that cannot be used
"""

from importlib.util import find_spec


class SedflowError(Exception):
    """Root of every error that `sedflow_core` raises on purpose."""


class MissingExtraError(SedflowError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"expected the package {package!r} to be installed, got none: "
            f"pip install 'sedflow-streaming[{extra}]'"
        )


def check_installed(package: str, extra: str) -> None:
    """Raise MissingExtraError where a package is not installed."""
    if find_spec(package) is None:
        raise MissingExtraError(package, extra)


class ObservationError(SedflowError):
    """Photometry has the wrong shape, or cannot be sampled."""


class BandError(SedflowError):
    """Filters are unknown, or a set of bands cannot be used."""


class GridError(SedflowError):
    """An SSP grid or NMF basis cannot be read or built, or is too narrow."""


class PriorError(SedflowError):
    """A file of a new prior cannot be used."""


class SimulationError(SedflowError):
    """A simulation lies outside the model's range, or a training set cannot be used."""


class TrainingError(SedflowError):
    """A training run or a learning curve cannot be made or gone on with."""


class ArtifactError(SedflowError):
    """An artifact's content does not match its manifest."""


class CatalogError(SedflowError):
    """A catalogue column, unit or value cannot be used."""
