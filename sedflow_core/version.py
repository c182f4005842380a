"""The version that artifacts, training sets and summaries name."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("sedflow-streaming")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+unknown"
