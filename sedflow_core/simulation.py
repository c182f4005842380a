"""Prior -> galaxy -> noiseless fluxes, in resumable shards; and noisy simulations of any number.

Training sets keep noiseless rows somewhat beyond the observed magnitude range: the noise is drawn
anew in every epoch, and the cut is made on the noisy photometry, which leaves the posterior as it
is. Every block of proposals has a seed of its own, so the same seed gives the same rows whatever
the chunking.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sedflow_core.bands import BandSet, parse_band_set
from sedflow_core.errors import SimulationError
from sedflow_core.galaxy import COSMOLOGY, GalaxyModel, build_galaxy_model, calc_band_flux
from sedflow_core.new_prior import Factor, accept, parse_factors
from sedflow_core.noise import NoiseModel, draw_noise, in_mag_range, load_noise, mag_from_flux
from sedflow_core.prior import draw_u, from_u, prior_digest
from sedflow_core.version import __version__
from sedflow_core.whole_file import written_whole

BLOCK = 16_384
"""Proposals that share one seed."""
BRIGHT_MARGIN_MAG = 0.5
FAINT_MARGIN_MAG = 1.5
"""How far beyond the limits noiseless magnitudes are kept: bright errors are 0.08 mag at most."""
_CONFIG_FILE = "training-set.json"
_GOLDEN_RATIO = 0x9E3779B1
_FRESH = 1 << 31
MAX_EMPTY_BLOCKS = 16
"""Blocks in a row of which nothing is kept: nothing ever would be."""


class ForwardModel(NamedTuple):
    """What a simulation needs: the galaxy model, the noise model, the redshift range, the prior.

    `prior` holds the factors by which it departs from that of the parameter table.
    """

    galaxy: GalaxyModel
    noise: NoiseModel
    redshift_range: tuple[float, float]
    prior: tuple[Factor, ...] = ()


class ForwardConfig(NamedTuple):
    """The choices that define a forward model; stored in training sets and artifacts.

    `prior` is a document of `sedflow_core.new_prior`, or None for the prior of the table.
    """

    bands: str = "sdss2010-ugriz"
    ssp: str = "bc03-miles"
    noise: str = "nsa-wide"
    redshift_low: float = 0.001
    redshift_high: float = 0.2
    birth_cloud_age_gyr: float = 0.1
    nmf_dir: str | None = None
    prior: list[dict[str, Any]] | None = None

    def build(self) -> ForwardModel:
        """The forward model of these choices.

        Raises:
            SimulationError: the redshifts have no range.
        """
        if not self.redshift_high > self.redshift_low:
            raise SimulationError(
                f"redshift_high: expected more than {self.redshift_low}, got {self.redshift_high}"
            )
        bands = parse_band_set(self.bands)
        galaxy = build_galaxy_model(
            bands,
            ssp=self.ssp,
            redshift_max=self.redshift_high,
            birth_cloud_age_gyr=self.birth_cloud_age_gyr,
            nmf_dir=self.nmf_dir,
        )
        noise = load_noise(bands.names, self.noise)
        redshift_range = (self.redshift_low, self.redshift_high)
        return ForwardModel(galaxy, noise, redshift_range, parse_factors(self.prior))

    def document(self) -> dict[str, Any]:
        """The choices as plain values; a prior only where it is not the table's."""
        return {k: v for k, v in self._asdict().items() if k != "prior" or v is not None}


class Proposals(NamedTuple):
    """Draws from the prior: u (n, n_u), redshift (n,), noiseless flux (n, n_band); float64."""

    u: Tensor
    redshift: Tensor
    flux: Tensor


class NoisySimulations(NamedTuple):
    """Accepted simulations: parameters and noiseless flux beside what an observer sees."""

    u: Tensor
    redshift: Tensor
    noiseless_flux: Tensor
    flux: Tensor
    flux_err: Tensor


class TrainingSet(NamedTuple):
    """Noiseless simulations, float32: u (n, n_u), redshift (n,), flux (n, n_band) nanomaggies.

    Rows count by `weight` (n,), float64; None where they count alike.
    """

    u: Tensor
    redshift: Tensor
    flux: Tensor
    bands: BandSet
    config: dict[str, Any]
    weight: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> "TrainingSet":
        """The set with every column changed alike, such as to some of the rows."""
        weight = None if self.weight is None else change(self.weight)
        u, redshift, flux = map(change, (self.u, self.redshift, self.flux))
        return self._replace(u=u, redshift=redshift, flux=flux, weight=weight)


def stream_generator(seed: int, stream: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The random generator of one numbered stream of a seed, such as a block of proposals."""
    # torch's CPU generator keeps the low 32 bits of its seed: multiples of the golden ratio set
    # the streams of different seeds far apart in them.
    return torch.Generator(device).manual_seed((seed * _GOLDEN_RATIO + stream) % 2**32)


def draw_redshift(
    n: int, redshift_range: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """Half uniform, half log-uniform redshifts (n,), so that the nearest galaxies are covered."""
    low, high = redshift_range
    uniform, choice = torch.rand((2, n), generator=generator, dtype=torch.float64)
    return torch.where(choice < 0.5, low + (high - low) * uniform, low * (high / low) ** uniform)


def draw_params(model: ForwardModel, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """u and redshift of n draws from the prior; fewer where a new prior rejects some."""
    u = draw_u(n, generator)
    redshift = draw_redshift(n, model.redshift_range, generator)
    if not model.prior:
        return u, redshift
    keep = accept(model.prior, from_u(u), redshift, model.galaxy.tables, generator)
    return u[keep], redshift[keep]


def draw_prior(model: ForwardModel, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """u (n, n_u) and redshift (n,) of draws from the prior, however few of them it accepts."""
    parts = [draw_params(model, n, generator)]
    while sum(len(redshift) for _, redshift in parts) < n:
        parts.append(draw_params(model, n, generator))
    u, redshift = map(torch.cat, zip(*parts, strict=True))
    return u[:n], redshift[:n]


def draw_proposals(model: ForwardModel, n: int, generator: torch.Generator) -> Proposals:
    """n draws from the prior with their noiseless fluxes; fewer under a new prior."""
    u, redshift = draw_params(model, n, generator)
    return Proposals(u, redshift, calc_band_flux(model.galaxy, from_u(u), redshift))


def draw_noisy(model: ForwardModel, seed: int) -> Iterator[NoisySimulations]:
    """Accepted noisy simulations, block by block; never rows of a training set.

    Raises SimulationError where block after block lies outside the magnitude range.
    """
    block, n_empty = _FRESH, 0
    while n_empty < MAX_EMPTY_BLOCKS:
        generator = stream_generator(seed, block)
        proposals = draw_proposals(model, BLOCK, generator)
        flux, flux_err = draw_noise(proposals.flux, model.noise, generator)
        keep = in_mag_range(flux, model.noise)
        yield NoisySimulations(*(t[keep] for t in (*proposals, flux, flux_err)))
        block += 1
        n_empty = 0 if keep.any() else n_empty + 1
    raise _nothing_visible(n_empty)


def simulate_noisy(model: ForwardModel, n: int, *, seed: int) -> NoisySimulations:
    """The first n accepted noisy simulations of a seed."""
    blocks: list[NoisySimulations] = []
    source = draw_noisy(model, seed)
    while not blocks or sum(len(block.u) for block in blocks) < n:
        blocks.append(next(source))
    return NoisySimulations(*(torch.cat(parts)[:n] for parts in zip(*blocks, strict=True)))


def near_mag_range(flux: Tensor, noise: NoiseModel) -> Tensor:
    """Whether noiseless flux (n, n_band) lies within the margins of the magnitude range; (n,)."""
    mag = mag_from_flux(flux)
    bright = mag >= noise.mag_range[:, 0] - BRIGHT_MARGIN_MAG
    faint = mag <= noise.mag_range[:, 1] + FAINT_MARGIN_MAG
    return (bright & faint).all(dim=-1)


def write_training_set(
    folder: Path,
    config: ForwardConfig,
    *,
    n_rows: int,
    seed: int,
    blocks_per_shard: int = 16,
) -> Iterator[int]:
    """Write shards until they hold n_rows noiseless simulations; yields the rows so far.

    A shard already there is kept, so a killed run goes on where it stopped, and ends with the same
    bytes as an unbroken one.

    Raises:
        SimulationError: the folder holds shards of another configuration, or a whole shard lies
            outside the magnitude range.
    """
    model = config.build()
    ssp = model.galaxy.ssp_provenance
    _write_config(folder, config, ssp=ssp, seed=seed, blocks_per_shard=blocks_per_shard)
    rows, shard = 0, 0
    while rows < n_rows:
        path = folder / f"shard-{shard:05d}.safetensors"
        if not path.exists():
            tensors = _draw_shard(model, seed, shard, blocks_per_shard)
            with written_whole(path) as partial:
                save_file(tensors, partial)
        rows += len(load_file(path)["redshift"])
        shard += 1
        yield rows


def _write_config(folder: Path, config: ForwardConfig, **settings: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "forward_model": config.document(),
        **settings,
        "block": BLOCK,
        "margins_mag": [BRIGHT_MARGIN_MAG, FAINT_MARGIN_MAG],
        "prior_sha256": prior_digest(),
        "cosmology": COSMOLOGY,
        "version": __version__,
    }
    path, text = folder / _CONFIG_FILE, json.dumps(document, indent=2) + "\n"
    is_new = not path.exists()
    is_foreign = is_new and any(folder.glob("shard-*.safetensors"))
    if is_foreign or not (is_new or json.loads(path.read_text()) == json.loads(text)):
        got = f"shards without {path.name}" if is_foreign else f"another one in {path.name}"
        raise SimulationError(
            f"{folder}: expected an empty folder or a training set of the same configuration, "
            f"stellar populations and version {__version__}, got {got}"
        )
    if is_new:
        with written_whole(path) as partial:
            partial.write_text(text)


def _draw_shard(
    model: ForwardModel, seed: int, shard: int, blocks_per_shard: int
) -> dict[str, Tensor]:
    blocks = range(shard * blocks_per_shard, (shard + 1) * blocks_per_shard)
    kept = []
    for block in blocks:
        proposals = draw_proposals(model, BLOCK, stream_generator(seed, block))
        keep = near_mag_range(proposals.flux, model.noise)
        kept.append([t[keep].float() for t in proposals])
    if not sum(len(u) for u, *_ in kept):
        raise _nothing_visible(blocks_per_shard)
    columns = (torch.cat(parts) for parts in zip(*kept, strict=True))
    return dict(zip(Proposals._fields, columns, strict=True))


def _nothing_visible(n_blocks: int) -> SimulationError:
    return SimulationError(
        f"simulations: expected some within the magnitude range, got none of {n_blocks} blocks of "
        f"{BLOCK}; are the spectra in Lsun/A per solar mass formed?"
    )


def load_training_set(folder: Path, n_rows: int | None = None) -> TrainingSet:
    """The rows of every shard, or the first n_rows.

    Raises:
        SimulationError: the folder holds no training set, one of other parameters, or fewer rows
            than asked for.
    """
    path = folder / _CONFIG_FILE
    if not path.exists():
        raise SimulationError(f"{folder}: expected a training set with {path.name}, got none")
    config = json.loads(path.read_text())
    shards = [load_file(p) for p in sorted(folder.glob("shard-*.safetensors"))]
    if not shards:
        raise SimulationError(f"{folder}: expected shards of a training set, got none")
    if config.get("prior_sha256") != prior_digest():
        raise SimulationError(
            f"{folder}: expected rows of the parameters {prior_digest()}, "
            f"got {config.get('prior_sha256')}"
        )
    u, redshift, flux = (torch.cat([s[k] for s in shards]) for k in Proposals._fields)
    if n_rows is not None and len(u) < n_rows:
        raise SimulationError(f"{folder}: expected {n_rows} rows, got {len(u)}")
    bands = parse_band_set(config["forward_model"]["bands"])
    return TrainingSet(u[:n_rows], redshift[:n_rows], flux[:n_rows], bands, config)
