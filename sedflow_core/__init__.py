"""SEDflow core: from galaxy model to posterior summaries.

>>> from sedflow_core import Observation, load_artifact, estimate
"""

from sedflow_core.artifact import Artifact
from sedflow_core.estimation import estimate, load_artifact, log_prob, sample
from sedflow_core.fresh_simulations import Simulations, simulate
from sedflow_core.observation import Observation
from sedflow_core.summary import Summary
from sedflow_core.version import __version__

__all__ = [
    "Artifact",
    "Observation",
    "Simulations",
    "Summary",
    "__version__",
    "estimate",
    "load_artifact",
    "log_prob",
    "sample",
    "simulate",
]
