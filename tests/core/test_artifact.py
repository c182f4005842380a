"""Artifacts: what a folder holds, and that nothing changed is ever loaded."""

import json
import pickletools
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.cosmology import Planck13
from safetensors.torch import load_file, save_file

from sedflow_core import Artifact, estimate, load_artifact, simulate
from sedflow_core.artifact import ARRAYS, MANIFEST, artifact_digest, write_manifest
from sedflow_core.errors import ArtifactError
from sedflow_core.prior import PARAM_NAMES
from sedflow_core.sfh import DERIVED_NAMES
from sedflow_core.ssp import load_ssp, save_ssp
from sedflow_core.testing import tiny_artifact


@pytest.fixture
def folder(tiny_path: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_path, tmp_path / "copy"))


def edit_manifest(folder: Path, *, signed: bool, **changes: object) -> None:
    manifest = json.loads((folder / MANIFEST).read_text()) | changes
    if signed:
        write_manifest(folder, manifest)
    else:
        (folder / MANIFEST).write_text(json.dumps(manifest))


def edit_array(folder: Path, key: str, factor: float) -> None:
    """Scale one array and sign the folder anew."""
    arrays = load_file(folder / ARRAYS)
    arrays[key] = arrays[key] * factor
    save_file(arrays, folder / ARRAYS)
    edit_manifest(folder, signed=True)


def test_the_public_attributes(tiny: Artifact) -> None:
    assert (tiny.name, tiny.version, tiny.n_samples) == ("tiny", "0", 64)
    assert tiny.bands.name == "sdss2010-ugriz"
    assert tiny.bands.system == "SDSS"
    assert tiny.param_names == PARAM_NAMES
    assert tiny.derived_names == DERIVED_NAMES
    assert len(tiny.sha256) == 64


def test_the_manifest_says_what_a_user_must_know(tiny: Artifact) -> None:
    manifest = tiny.manifest
    assert [p["name"] for p in manifest["parameters"]] == list(PARAM_NAMES)
    assert [d["name"] for d in manifest["derived"]] == list(DERIVED_NAMES)
    assert {"imf", "cosmology", "mass_definition", "birth_cloud_age_gyr"} <= set(
        manifest["assumptions"]
    )
    assert tiny.assumptions.items() > manifest["assumptions"].items()
    assert manifest["provenance"]["forward_model"]["ssp"] == "synthetic"
    assert 0 < manifest["provenance"]["support"]["flagged_fraction"] < 0.15


def test_artifacts_of_another_prior_have_another_digest_of_it(
    tiny: Artifact, shipped: Artifact
) -> None:
    assert tiny.manifest["parameters_sha256"] == shipped.manifest["parameters_sha256"]
    assert tiny.assumptions["prior_sha256"] == tiny.manifest["parameters_sha256"]
    assert shipped.prior
    assert shipped.assumptions["prior_sha256"] != tiny.assumptions["prior_sha256"]


def test_only_a_validated_artifact_may_serve(folder: Path) -> None:
    with pytest.raises(ArtifactError, match="expected a recorded validation, got none"):
        load_artifact(folder).check_validated()
    edit_manifest(folder, signed=True, validation={"passed": False, "failures": ["ks: got 0.5"]})
    with pytest.raises(ArtifactError, match=r"expected a passed validation, got \['ks: got 0.5'\]"):
        load_artifact(folder).check_validated()
    edit_manifest(folder, signed=True, validation={"passed": True})
    load_artifact(folder).check_validated()


def test_a_folder_holds_two_files_and_no_code(tiny_path: Path) -> None:
    assert sorted(path.name for path in tiny_path.iterdir()) == [ARRAYS, MANIFEST]
    data = (tiny_path / ARRAYS).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    assert {entry["dtype"] for entry in header.values()} <= {"F32", "F64", "I64"}
    with pytest.raises(ValueError, match="at position 0"):
        list(pickletools.genops(data))


def test_the_same_inputs_give_the_same_artifact(tiny: Artifact, tmp_path: Path) -> None:
    assert load_artifact(tiny_artifact(tmp_path / "again")).sha256 == tiny.sha256


def test_the_digest_covers_what_is_recorded_later(tiny: Artifact, folder: Path) -> None:
    edit_manifest(folder, signed=True)
    assert load_artifact(folder).sha256 == tiny.sha256
    edit_manifest(folder, signed=True, validation={"n": 1})
    recorded = load_artifact(folder)
    assert recorded.sha256 != tiny.sha256
    assert recorded.sha256 == artifact_digest(folder, recorded.manifest)


@pytest.mark.parametrize("name", [ARRAYS, MANIFEST])
def test_a_missing_file_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=rf"expected a folder with .*{name}.*got '{folder}'"):
        load_artifact(folder)


def test_an_unknown_name_is_refused_with_the_shipped_ones() -> None:
    with pytest.raises(ArtifactError, match=r"or one of \[.*\], got 'sdss-ugri'"):
        load_artifact("sdss-ugri")


@pytest.mark.parametrize("position", [100, -1])
def test_changed_arrays_are_refused(folder: Path, position: int) -> None:
    data = bytearray((folder / ARRAYS).read_bytes())
    data[position] ^= 1
    (folder / ARRAYS).write_bytes(data)
    with pytest.raises(ArtifactError, match="expected sha256"):
        load_artifact(folder)


@pytest.mark.parametrize(
    "change", [{"name": "other"}, {"bands": "lsst2023-ugriz"}, {"sha256": "0" * 64}], ids=str
)
def test_a_changed_manifest_is_refused(folder: Path, change: dict[str, str]) -> None:
    edit_manifest(folder, signed=False, **change)
    with pytest.raises(ArtifactError, match="expected sha256"):
        load_artifact(folder)


@pytest.mark.parametrize("text", ["", "no JSON", "[]", "{}"])
def test_a_manifest_that_is_none_is_refused(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text(text)
    with pytest.raises(ArtifactError, match=r"manifest\.json: expected a manifest"):
        load_artifact(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "expected format 5, got 2"),
        ({"parameters_sha256": "f00"}, "expected the parameters .*, got f00"),
        ({"derived": [{"name": "log_zest"}]}, r"expected derived .*, got \['log_zest'\]"),
    ],
    ids=["format", "prior", "derived"],
)
def test_content_of_another_code_is_refused(folder: Path, change: dict, message: str) -> None:
    edit_manifest(folder, signed=True, **change)
    with pytest.raises(ArtifactError, match=message):
        load_artifact(folder)


@pytest.mark.parametrize(
    "key", ["golden.quantiles", "flow.blocks.1.output_layer.bias", "context.mean", "tables.zh"]
)
def test_signed_changes_that_move_the_golden_quantiles_are_refused(folder: Path, key: str) -> None:
    edit_array(folder, key, 1.05)
    with pytest.raises(ArtifactError, match=r"expected the golden quantiles within 0\.001"):
        load_artifact(folder)


def test_an_artifact_without_golden_vectors_is_refused(folder: Path) -> None:
    arrays = load_file(folder / ARRAYS)
    save_file({k: v for k, v in arrays.items() if not k.startswith("golden")}, folder / ARRAYS)
    edit_manifest(folder, signed=True)
    with pytest.raises(ArtifactError, match="expected golden vectors, got none"):
        load_artifact(folder)


def test_an_artifact_may_publish_fewer_derived_quantities(folder: Path, tiny: Artifact) -> None:
    kept = [d for d in tiny.manifest["derived"] if d["name"] in ("z_mw", "a_v")]
    arrays = load_file(folder / ARRAYS)
    index = [*range(12), 12 + DERIVED_NAMES.index("z_mw"), 12 + DERIVED_NAMES.index("a_v")]
    arrays["golden.quantiles"] = arrays["golden.quantiles"][:, index].contiguous()
    save_file(arrays, folder / ARRAYS)
    edit_manifest(folder, signed=True, derived=kept)
    assert load_artifact(folder).derived_names == ("z_mw", "a_v")


def test_what_the_stars_do_not_tell_is_not_published(tmp_path: Path) -> None:
    grid = load_ssp("synthetic", wave_range=(1_000.0, 12_000.0))
    unknown = grid._replace(surviving=np.full_like(grid.surviving, np.nan))
    save_ssp(unknown, tmp_path / "stars.npz")
    artifact = load_artifact(tiny_artifact(tmp_path / "few", ssp=str(tmp_path / "stars.npz")))
    expected = [name for name in DERIVED_NAMES if "surviving" not in name and "ssfr" not in name]
    assert artifact.derived_names == tuple(expected)
    summary = estimate(artifact, simulate(artifact, 4, seed=1).observation)
    assert summary.probabilities == {}
    assert np.isfinite(summary.mean[summary.flags == 0]).all()


def test_distances_need_no_astropy_and_follow_planck13(tiny: Artifact) -> None:
    redshift = np.array([0.0013, 0.05, 0.1999])
    expected = Planck13.luminosity_distance(redshift).to_value("Mpc")
    np.testing.assert_allclose(tiny.luminosity_distance_mpc(redshift), expected, rtol=1e-4)
    assert np.isnan(tiny.luminosity_distance_mpc(np.array([-0.01, 0.3]))).all()


def test_weights_of_the_compiled_flow_are_frozen(tiny: Artifact) -> None:
    assert not any(p.requires_grad for p in tiny.flow.parameters())
    assert isinstance(tiny.flow, torch.jit.ScriptModule)
