"""Figures by name as a Markdown table and as JSON."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sedflow_core import Artifact


def format_value(value: float) -> str:
    """Three digits, or whole numbers with separators."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def markdown(figures: Mapping[str, float]) -> str:
    """The table."""
    rows = [f"| {name} | {format_value(value)} |" for name, value in figures.items()]
    return "\n".join(["| figure | value |", "|---|---|", *rows]) + "\n"


def identify(artifact: Artifact) -> dict[str, str | int]:
    """What names an artifact."""
    return {
        "name": artifact.name,
        "version": artifact.version,
        "sha256": artifact.sha256,
        "n_samples": artifact.n_samples,
    }


def write_report(folder: Path, name: str, figures: Mapping[str, float], **more: Any) -> None:
    """Print the table and write `<name>.md` and `<name>.json`; `more` goes to the JSON alone."""
    folder.mkdir(parents=True, exist_ok=True)
    table = markdown(figures)
    print(table)
    (folder / f"{name}.md").write_text(table)
    (folder / f"{name}.json").write_text(json.dumps({**more, "figures": figures}, indent=2) + "\n")
