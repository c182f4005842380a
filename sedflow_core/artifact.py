"""The artifact: a folder with manifest.json and arrays.safetensors, and no code.

The manifest holds parameters, priors, derived quantities, bands, assumptions, provenance and
validation; the arrays hold the flow's weights, the context constants, the support and serving
tables, golden vectors and the trust tables. Reading needs torch and numpy alone, verifies the
digest, and compiles the flow.
"""

import hashlib
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sedflow_core.bands import BandSet, parse_band_set
from sedflow_core.errors import ArtifactError
from sedflow_core.flow import FlowConfig, MaskedAutoregressiveFlow
from sedflow_core.new_prior import Factor, parse_factors
from sedflow_core.observation import ContextScale
from sedflow_core.prior import PARAM_NAMES, prior_digest, prior_table
from sedflow_core.sfh import DERIVED, DERIVED_NAMES, PopulationTables
from sedflow_core.support import SupportTables, flag_names
from sedflow_core.trust import TrustTables, flatten_tables, unflatten_tables
from sedflow_core.units import Array
from sedflow_core.whole_file import written_whole

FORMAT = 5
MANIFEST = "manifest.json"
ARRAYS = "arrays.safetensors"
SHIPPED = Path(__file__).parent / "artifacts"


@dataclass(frozen=True, slots=True, eq=False)
class Artifact:
    """A trained flow with everything that serving needs.

    Attributes:
        name, version, sha256: identity; the digest covers manifest and arrays.
        manifest: the parsed manifest.json.
        bands: the bands of every flux array.
        flow: the compiled flow.
        scale: constants of the context encoding.
        support: limits of the training support.
        tables: cosmology, histories and surviving mass.
        golden: input and output vectors that a load must reproduce.
        trust: what the trust in a posterior is judged by; None in artifacts built without it.
        prior: factors by which the prior departs from the parameter table, which the manifest
            holds as `parameters`; none by default.
    """

    name: str
    version: str
    sha256: str
    manifest: dict[str, Any]
    bands: BandSet
    flow: torch.jit.ScriptModule
    scale: ContextScale
    support: SupportTables
    tables: PopulationTables
    golden: dict[str, Tensor]
    trust: TrustTables | None
    prior: tuple[Factor, ...] = ()

    @property
    def param_names(self) -> tuple[str, ...]:
        """The 12 physical parameters."""
        return PARAM_NAMES

    @property
    def device(self) -> str:
        """Where flow and tables lie: "cpu" or "cuda"."""
        return self.scale.mean.device.type

    @property
    def derived_names(self) -> tuple[str, ...]:
        """The derived quantities this artifact publishes."""
        return tuple(d["name"] for d in self.manifest["derived"])

    @property
    def n_samples(self) -> int:
        """Default number of posterior samples."""
        return int(self.manifest["n_samples"])

    @property
    def flag_names(self) -> tuple[str, ...]:
        """Name of every support-flag bit."""
        return flag_names(self.bands)

    @property
    def assumptions(self) -> dict[str, str]:
        """What users must know of the model behind the posteriors; with the digest of the prior."""
        departures = {part["name"]: part["wanted"] for part in _factors(self.manifest) or []}
        assumptions: dict[str, str] = self.manifest["assumptions"]
        return assumptions | {"prior_sha256": prior_digest(departures)}

    def check_validated(self) -> None:
        """Raise ArtifactError unless a validation was recorded that did not fail."""
        validation = self.manifest["validation"]
        if validation is None:
            raise ArtifactError(
                f"{self.name}: expected a recorded validation, got none: run `sedflow validate "
                "ARTIFACT --out DIR --record`, or set artifact.allow_unvalidated"
            )
        if validation.get("passed") is not True:
            raise ArtifactError(
                f"{self.name}: expected a passed validation, got {validation.get('failures')}; "
                "artifact.allow_unvalidated serves it all the same"
            )

    @property
    def redshift_max(self) -> float:
        """Largest redshift of the tables, beyond which they know no age and no distance."""
        return float(self.tables.redshift[-1])

    def luminosity_distance_mpc(self, redshift: Array) -> Array:
        """Luminosity distance [Mpc] in the artifact's cosmology; redshift (n,). NaN outside it."""
        nodes = self.tables.redshift.cpu().numpy()
        distance = self.tables.luminosity_distance_mpc.cpu().numpy()
        return np.asarray(np.interp(redshift, nodes, distance, left=np.nan, right=np.nan))


def compile_flow(flow: MaskedAutoregressiveFlow) -> torch.jit.ScriptModule:
    """The flow compiled by TorchScript, with its masks applied."""
    flow.apply_masks()
    flow.eval().requires_grad_(False)
    with warnings.catch_warnings():
        # torch announces torch.export as the successor of TorchScript.
        warnings.filterwarnings("ignore", message=".*torch.jit.script.*")
        scripted: torch.jit.ScriptModule = torch.jit.script(flow)
    return scripted


def _derived_table(names: tuple[str, ...]) -> list[dict[str, str]]:
    return [
        {"name": d.name, "unit": d.unit, "meaning": d.meaning} for d in DERIVED if d.name in names
    ]


def write_artifact(
    folder: Path,
    *,
    name: str,
    version: str,
    bands: BandSet,
    flow: MaskedAutoregressiveFlow,
    flow_config: FlowConfig,
    scale: ContextScale,
    support: SupportTables,
    tables: PopulationTables,
    golden: dict[str, Tensor],
    n_samples: int,
    assumptions: dict[str, str],
    provenance: dict[str, Any],
    derived_names: tuple[str, ...] = DERIVED_NAMES,
    trust: TrustTables | None = None,
) -> None:
    """Write an artifact folder; see the module's docstring for its content.

    `golden` holds flux, flux_err, redshift and the quantiles they lead to, or is empty while these
    are being made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    flow.apply_masks()
    groups = {
        "flow": flow.state_dict(),
        "context": scale._asdict(),
        "support": support._asdict(),
        "tables": tables._asdict(),
        "golden": golden,
        "trust": {} if trust is None else flatten_tables(trust),
    }
    arrays = {
        f"{group}.{key}": value.detach().cpu().contiguous().clone()
        for group, values in groups.items()
        for key, value in values.items()
    }
    save_file(arrays, folder / ARRAYS)
    manifest = {
        "format": FORMAT,
        "name": name,
        "version": version,
        "bands": bands.name,
        "system": bands.system,
        "parameters": prior_table(),
        "parameters_sha256": prior_digest(),
        "derived": _derived_table(derived_names),
        "flow": flow_config._asdict(),
        "n_samples": n_samples,
        "support_flags": list(flag_names(bands)),
        "assumptions": assumptions,
        "provenance": provenance,
        "validation": None,
    }
    write_manifest(folder, manifest)


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write manifest.json with the digest of its content and of the arrays beside it."""
    document = {k: v for k, v in manifest.items() if k != "sha256"}
    document["sha256"] = artifact_digest(folder, document)
    with written_whole(folder / MANIFEST) as partial:
        partial.write_text(json.dumps(document, indent=2) + "\n")


def artifact_digest(folder: Path, manifest: dict[str, Any]) -> str:
    """sha256 over the arrays' bytes and the canonical manifest without its own digest."""
    document = {k: v for k, v in manifest.items() if k != "sha256"}
    digest = hashlib.sha256((folder / ARRAYS).read_bytes())
    digest.update(json.dumps(document, sort_keys=True).encode())
    return digest.hexdigest()


def read_artifact(path: str | Path, device: str = "cpu") -> Artifact:
    """Read and compile an artifact, without running its golden vectors.

    Args:
        path: a folder, or the name of an artifact shipped with the package.
        device: where flow and tables shall lie, "cpu" or "cuda".

    Raises:
        ArtifactError: a file is missing, the digest differs, or names are not those of this code;
            or there is no such device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ArtifactError("device: expected a GPU for 'cuda', got none that torch can use")
    folder = find_artifact(path)
    manifest = _read_manifest(folder)
    arrays = load_file(folder / ARRAYS, device=device)
    bands = parse_band_set(manifest["bands"])
    config = FlowConfig(**manifest["flow"])
    flow = MaskedAutoregressiveFlow(config).to(device)
    flow.load_state_dict(_group(arrays, "flow"))
    return Artifact(
        name=manifest["name"],
        version=manifest["version"],
        sha256=manifest["sha256"],
        manifest=manifest,
        bands=bands,
        flow=compile_flow(flow),
        scale=ContextScale(**_group(arrays, "context")),
        support=SupportTables(**_group(arrays, "support")),
        tables=PopulationTables(**_group(arrays, "tables")),
        golden={key: value.cpu() for key, value in _group(arrays, "golden").items()},
        trust=unflatten_tables(_group(arrays, "trust")),
        prior=parse_factors(_factors(manifest)),
    )


def _factors(manifest: dict[str, Any]) -> list[dict[str, Any]] | None:
    """By which the prior departs from the parameter table, see `tabulate_prior`."""
    factors: list[dict[str, Any]] | None
    factors = manifest["provenance"].get("forward_model", {}).get("prior")
    return factors


def find_artifact(path: str | Path) -> Path:
    """Folder of an artifact given by path or shipped name.

    Raises:
        ArtifactError: there is none.
    """
    for folder in (Path(path), SHIPPED / str(path)):
        if (folder / MANIFEST).is_file() and (folder / ARRAYS).is_file():
            return folder
    shipped = sorted(p.name for p in SHIPPED.glob("*") if p.is_dir())
    raise ArtifactError(
        f"artifact: expected a folder with {MANIFEST} and {ARRAYS}, or one of {shipped}, "
        f"got {str(path)!r}"
    )


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
        digest, layout = manifest["sha256"], manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{folder / MANIFEST}: expected a manifest, got {error!r}") from error
    if layout != FORMAT:
        raise ArtifactError(f"{folder}: expected format {FORMAT}, got {layout}")
    actual = artifact_digest(folder, manifest)
    if actual != digest:
        raise ArtifactError(f"{folder}: expected sha256 {digest}, got {actual}")
    if manifest["parameters_sha256"] != prior_digest():
        raise ArtifactError(
            f"{folder}: expected the parameters {prior_digest()}, "
            f"got {manifest['parameters_sha256']}"
        )
    unknown = {d["name"] for d in manifest["derived"]} - set(DERIVED_NAMES)
    if unknown:
        raise ArtifactError(
            f"{folder}: expected derived quantities among {DERIVED_NAMES}, got {sorted(unknown)}"
        )
    return manifest


def _group(arrays: dict[str, Tensor], group: str) -> dict[str, Tensor]:
    prefix = group + "."
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
