"""The `sedflow` command, end to end on tiny sizes."""

import json
from pathlib import Path

import pytest

from sedflow_core import load_artifact
from sedflow_core.cli import main
from sedflow_core.flow import FlowConfig
from sedflow_core.simulation import load_training_set
from sedflow_core.version import __version__


def test_from_simulations_to_a_validated_artifact(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, run, artifact, report = (tmp_path / name for name in ("rows", "run", "tiny", "report"))
    simulate = [str(rows), "--n-rows", "5000", "--seed", "3", "--ssp", "synthetic"]
    simulate += ["--birth-cloud-age", "0.02"]
    assert main(["simulate", *simulate]) == 0
    n_rows = len(load_training_set(rows).u)
    assert capsys.readouterr().out == f"{rows}: {n_rows:,} simulations\n"
    train = [str(rows), str(run), "--n-rows", "5000", "--epochs", "1", "--threads", "1"]
    train += ["--seed", "5", "--bfloat16-epochs", "1", "--learning-rate", "0.001"]
    assert main(["train", *train]) == 0
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    build = ["--name", "small", "--version", "7", "--n-samples", "32", "--n-support", "5000"]
    assert main(["build", str(run), str(artifact), *build]) == 0
    built = load_artifact(artifact)
    assert (built.name, built.version, built.n_samples) == ("small", "7", 32)
    training = built.manifest["provenance"]["training"]
    assert training["training_set"]["seed"] == 3
    config = FlowConfig(*training["config"]["flow"])
    assert training["config"]["seed"] == config.seed == 5
    assert training["config"]["bfloat16_epochs"] == 1
    assert training["config"]["learning_rate"] == 0.001
    assert float(built.assumptions["birth_cloud_age_gyr"]) == 0.02
    assert config.is_whitened
    assert len(training["losses"]) == 1
    sizes = ["--n-simulations", "30", "--n-samples", "40", "--n-importance", "2"]
    sizes += ["--n-published", "20", "--n-classifier", "0", "--n-local", "0", "--n-gap", "3"]
    sizes += ["--record"]
    shown = ["--galaxies", str(real_galaxies(tmp_path)), "--flux-columns", "flux_{band}"]
    shown += ["--err-columns", "flux_err_{band}", "--redshift-column", "z"]
    shown += ["--learning-curve", str(learning_curve(rows, tmp_path / "curve"))]
    assert main(["validate", str(artifact), "--out", str(report), *sizes, *shown]) == 1
    assert (report / "pp.png").read_bytes().startswith(b"\x89PNG")
    page = (report / "report.html").read_text()
    assert page.count("data:image/png;base64") == 13
    assert "http" not in page
    document = json.loads((report / "validation.json").read_text())
    assert document["n_simulations"] == 30
    validated = load_artifact(artifact)
    assert validated.manifest["validation"] == document
    assert validated.sha256 != built.sha256
    *reasons, verdict, recorded = capsys.readouterr().out.splitlines()[
        -len(document["failures"]) - 2 :
    ]
    assert reasons == document["failures"]
    assert verdict == f"failed: see {report / 'report.html'}"
    assert recorded == f"{artifact}: small 7, sha256 {validated.sha256}"
    distances = document["ks_distance_independent"]
    assert len(distances) == 11 + len(built.derived_names)
    assert all(0 < distance < 1 for distance in distances.values())
    published = document["published_bias_and_width"]
    assert list(published) == list(built.param_names + built.derived_names)
    assert "As published" in page
    assert document["gap"]["n_simulations"] == 3
    assert document["gap"]["mean"] > 0


def test_numbers_out_of_range_are_named_at_the_start(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, told in (
        (
            ["validate", "sdss-ugriz", "--out", "x", "--n-published", "0"],
            "--n-published: expected 1",
        ),
        (["build", "run", "x", "--name", "x", "--version", "1", "--n-samples", "0"], "expected 1"),
        (["validate", "x", "--out", "y", "--n-mcmc", "-1"], "--n-mcmc: expected 0 or more, got -1"),
        (["compare", "--out", "x", "--seed", "-1"], "--seed: expected 0 or more, got -1"),
        (["simulate", "x", "--redshift-max", "-1"], "--redshift-max: expected a number above 0"),
        (["fit", "x.csv", "--out", "y.csv", "--threads", "many"], "--threads: expected a whole"),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert told in capsys.readouterr().err
    assert main(["simulate", "x", "--redshift-max", "0.001"]) == 2
    assert "redshift_high: expected more than 0.001, got 0.001" in capsys.readouterr().err
    missing = ["--out", "x", "--learning-curve", "none.json"]
    assert main(["validate", "sdss-ugriz", *missing]) == 2
    assert "--learning-curve: expected a JSON file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["validate", "{tiny}", "--out", "x", "--ebv-column", "E"], "--ebv-column: expected a cat"),
        (["compare", "--out", "x.csv", "--layout", "nsa"], "--layout: expected a catalogue"),
        (["support-table", "{tiny}", "--out", "x", "--error-floor"], "--error-floor: expected a"),
        (["support-table", "{tiny}", "--out", "x", "--group-column", "g"], "expected --catalog"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_columns_without_a_catalogue_are_refused(
    tiny_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main([a.format(tiny=tiny_path) for a in arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[1]", "{}", '{"points": []}'])
def test_a_file_that_is_no_learning_curve_is_told_before_anything_is_measured(
    tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (tmp_path / "curve.json").write_text(text)
    options = ["--out", str(tmp_path), "--learning-curve", str(tmp_path / "curve.json")]
    assert main(["validate", str(tiny_path), *options]) == 2
    assert "--learning-curve: expected points of a learning curve" in capsys.readouterr().err


def real_galaxies(folder: Path) -> Path:
    """A catalogue of galaxies inside the support, one of them with errors too large."""
    header = ",".join([*(f"flux_{b}" for b in "ugriz"), *(f"flux_err_{b}" for b in "ugriz"), "z"])
    row = "57.3,253.8,549.0,792.3,1060.8,{},4.9,10.3,14.9,30.3,0.0366"
    path = folder / "galaxies.csv"
    path.write_text("\n".join([header, row.format(3.2), row.format(33.0), row.format(3.4)]) + "\n")
    return path


def learning_curve(rows: Path, folder: Path) -> Path:
    """The document of a learning curve in two sizes, interrupted once."""
    for sizes in (["2000"], ["1000", "2000"]):
        options = ["--sizes", *sizes, "--passes", "1", "--n-test", "1000"]
        assert main(["learning-curve", str(rows), str(folder), *options]) == 0
    for sizes in (["3", "8"], ["1000000000"]):
        options = ["--sizes", *sizes, "--passes", "1", "--n-test", "1000"]
        assert main(["learning-curve", str(rows), str(folder / "other"), *options]) == 2
    path = folder / "learning-curve.json"
    points = json.loads(path.read_text())["points"]
    assert [(p["n_rows"], p["epochs"]) for p in points] == [(1_000, 2), (2_000, 1)]
    assert all(5.0 < p["test_loss"] < 20.0 for p in points)
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "{folder}/none", "{folder}/run"], "none: expected a training set"),
        (["build", "{folder}", "{folder}/a", "--name", "a", "--version", "1"], "training run"),
        (["validate", "{folder}/none", "--out", "{folder}"], "none'"),
        (["learning-curve", "{folder}/none", "{folder}/x"], "none: expected a training set"),
        (["simulate", "{folder}/rows", "--bands", "sdss-ugriz"], "got 'sdss-ugriz'"),
        (["simulate", "{folder}/rows", "--ssp", "stars.npz"], "got 'stars.npz'"),
        (["fit", "{folder}/none.csv", "--artifact", "{tiny}", "--out", "{folder}/b.csv"], "none"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_errors_are_one_line_on_stderr_and_status_2(
    tmp_path: Path,
    tiny_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    assert main([a.format(folder=tmp_path, tiny=tiny_path) for a in arguments]) == 2
    *progress, error = capsys.readouterr().err.splitlines()
    assert error.startswith("sedflow: ")
    assert message in error
    assert all("0%" in line or not line.strip() for line in progress)


@pytest.mark.parametrize("arguments", [[], ["simulate"], ["train", "--preset", "none", "a", "b"]])
def test_wrong_usage_is_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
    assert "usage: sedflow" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["--version"])
    assert exit_info.value.code == 0
    assert capsys.readouterr().out.strip() == __version__
