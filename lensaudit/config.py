"""Configuration: one frozen dataclass per stage; a profile is a TOML file with the differences from the defaults.

The defaults are the `demo` profile, `make paper`. `load_config("smoke")` reads ``lensaudit/profiles/smoke.toml``;
`load_config("mine.toml")` any other file. Unknown sections and keys are errors.
"""

import dataclasses
import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from lensaudit.artifacts import UserError

PROFILES = Path(__file__).parent / "profiles"


@dataclass(frozen=True)
class SurveyConfig:
    """Where catalogues and pixels come from."""

    source: str = "simsky"  # "simsky" or "data_root"
    pixels: str = "simsky"  # "simsky", "bricks" or "viewer"
    layer: str = "ls-dr10"
    simulated: bool = True  # figures and tables say "simulated sky"


@dataclass(frozen=True)
class SkyConfig:
    """The simulated sky."""

    n_bricks: int = 1500
    blank_fraction: float = 0.1  # of the bricks, empty of known lenses
    n_lenses: int = 3000  # catalogued; 12 per cent fall in test, so that at least 180 there are Tier A
    tier_a_fraction: float = 0.6
    wrong_fraction: float = 0.10  # of Tier B
    galaxies_per_brick: tuple = (150, 200)  # with z < 20
    tail_fraction: float = 0.4  # of the bricks, the design tail of conditions
    workers: int = 2


@dataclass(frozen=True)
class CrossmatchConfig:
    """Lens catalogues to the survey."""

    search_radius: float = 11.0  # arcsec
    accept_radius: float = 2.0  # arcsec
    system_radius: float = 3.0  # arcsec, grouping entries into systems
    tier_b_weight: float = 0.5


@dataclass(frozen=True)
class SamplingConfig:
    """Negatives and splits."""

    dec_min: float = -18.0
    dec_max: float = 32.0
    z_max: float = 20.0  # mag
    nobs_min: int = 3
    types: tuple = ("SER", "DEV", "REX")
    exclusion: float = 11.0  # arcsec, 5 + 2 theta_E,max
    n_train: int = 12000
    n_val: int = 13000
    n_test: int = 13000
    n1_fraction: float = 0.85
    matched_fraction: float = 0.5  # of the training N1, shared among strata as positives are; the rest as the parent is
    category_cap: float = 0.35  # largest share of N2 one confuser category may take
    healpix_nside: int = 128
    split_names: tuple = ("train", "val", "test")
    split_fractions: tuple = (0.70, 0.15, 0.15)


@dataclass(frozen=True)
class CutoutsConfig:
    """Stamps."""

    size: int = 101
    shard_rows: int = 2048
    workers: int = 2
    n_bootstrap: int = 200
    viewer_url: str = "https://www.legacysurvey.org/viewer/fits-cutout"
    viewer_connections: int = 4  # at once; the service gives about one cutout per second
    viewer_retries: int = 5


@dataclass(frozen=True)
class TrainingConfig:
    """Detector."""

    architecture: str = "resnet18"
    preprocessing: str = "raw_robust"
    clip: float = 10.0
    crop: int = 64
    epochs: int = 6
    batch_size: int = 256
    learning_rate: float = 3e-4
    weight_decay: float = 1e-4
    cosine_epochs: int = 50  # T_max
    patience: int = 10
    positive_repeats: int = 2
    bfloat16: bool = True
    loss: str = "bce"  # or "focal" (0.25, 2)
    companion_clip: float = 20.0  # of the second detector: the same recipe, the next seed


@dataclass(frozen=True)
class EvaluationConfig:
    """Thresholds and metrics."""

    fprs: tuple = (1e-2, 1e-3, 1e-4)
    min_exceedances: int = 10
    headline_exceedances: int = 100
    fixed_thresholds: tuple = (0.3, 0.5)
    n_bins: int = 15
    n_bootstrap: int = 1000
    visibility_cut: float = 2.0  # arc_snr


@dataclass(frozen=True)
class InjectionConfig:
    """The injection engine and its proposal."""

    prior: str = "collett"
    panel_width: float = 2.5  # of the engine, in scale lengths of the brightness; 2.5 is right to 1e-3 of the peak
    batch_size: int = 0  # injections rendered together; 0 for what suits the device and its free memory
    psf_betas: tuple = (2.5, 3.5, 4.5)
    min_mu: float = 3.0
    min_arc_snr_true: float = 5.0
    max_per_host: int = 4  # injections per host and cell


@dataclass(frozen=True)
class CompletenessConfig:
    """The grid. Edges are half a step outside the centres."""

    theta_E: tuple = (0.50, 0.75, 1.00, 1.25, 1.50, 1.75, 2.00, 2.25, 2.50, 2.75, 3.00)
    seeing: tuple = (0.90, 1.05, 1.20, 1.35, 1.50, 1.65, 1.80)
    depth: tuple = (22.5, 23.0, 23.5, 24.0, 24.5, 25.0, 25.5)
    depth_385: tuple = (22.5, 23.0, 23.5, 24.0, 24.5)
    n_per_cell: int = 204  # a few more than min_injections, as some come to nothing
    min_injections: int = 200
    min_n_eff: float = 50.0
    min_bricks: int = 3
    # Band of the survey-averaged completeness over the named priors; wider is a NO-GO of the product.
    max_prior_width: float = 0.20  # as wide as the widest interval that closure accepts, twice 0.10
    max_prior_ratio: float = 2.0  # published densities of detectable lenses, 0.23 to 0.48 per deg^2, differ by as much


@dataclass(frozen=True)
class ClosureConfig:
    """Closure on the held-out lenses."""

    n_injections: int = 20000  # the pilot of realism as well
    tilt: tuple = (30.0, 1.5)  # reference and power in S/N; see `injection.priors.draw_closure`
    n_fair: int = 8000  # of the injections, drawn as the prior has them
    n_twins: int = 20  # per held-out lens
    n_control: int = 4000  # per negative control
    min_local_n_eff: float = 20.0
    min_lenses: int = 150
    max_half_width: float = 0.10
    n_bootstrap: int = 1000


@dataclass(frozen=True)
class LadderConfig:
    """The ablation ladder from the prior work's injections to the fiducial ones."""

    n_injections: int = 200  # per rung, paired with both ends
    ends_factor: int = 6  # times as many at either end
    n_bootstrap: int = 300
    min_n_eff: float = 20.0  # below, a weighted completeness is not reported


@dataclass(frozen=True)
class RealismConfig:
    """GO / NO-GO."""

    snr_ratio: tuple = (0.5, 2.0)
    colour_offset: float = 0.2  # mag
    noise_ratio: tuple = (0.98, 1.02)
    c2st_limit: float = 0.70
    n_bootstrap: int = 200


@dataclass(frozen=True)
class Config:
    """Everything a run depends on besides its inputs."""

    profile: str = "demo"
    seed: int = 20261
    device: str = "auto"  # "auto", "cpu" or "cuda"
    data_root: str = ""  # from the argument or LENSAUDIT_DATA; never written to an artifact
    survey: SurveyConfig = field(default_factory=SurveyConfig)
    sky: SkyConfig = field(default_factory=SkyConfig)
    crossmatch: CrossmatchConfig = field(default_factory=CrossmatchConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    cutouts: CutoutsConfig = field(default_factory=CutoutsConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    injection: InjectionConfig = field(default_factory=InjectionConfig)
    completeness: CompletenessConfig = field(default_factory=CompletenessConfig)
    closure: ClosureConfig = field(default_factory=ClosureConfig)
    ladder: LadderConfig = field(default_factory=LadderConfig)
    realism: RealismConfig = field(default_factory=RealismConfig)

    def section(self, name):
        """Return one section as a plain dict, for hashing."""
        return dataclasses.asdict(getattr(self, name))


def load_config(profile="demo", device="auto", data_root=""):
    """Read a profile.

    Parameters
    ----------
    profile : str
        Name of a shipped profile or path of a TOML file.
    device : str
        ``"auto"``, ``"cpu"`` or ``"cuda"``.
    data_root : str
        Folder of external data; falls back to the environment variable ``LENSAUDIT_DATA``.

    Returns
    -------
    Config

    Raises
    ------
    UserError
        For an unknown profile, section or key, or a value of the wrong type.
    """
    path = Path(profile) if str(profile).endswith(".toml") else PROFILES / f"{profile}.toml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PROFILES.glob("*.toml")))
        raise UserError(f"profile {profile!r} not found; known are {known}, or give the path of a .toml file")
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path.name}: not valid TOML ({error})") from None
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"device {device!r} unknown; use auto, cpu or cuda")
    root = data_root or os.environ.get("LENSAUDIT_DATA", "")
    config = Config(profile=path.stem, device=device, data_root=root)
    return _replace(config, given, path.name)


def _replace(value, given, where):
    fields = {f.name: f for f in dataclasses.fields(value)}
    changes = {}
    for key, new in given.items():
        if key not in fields or key in ("profile", "device", "data_root"):
            raise UserError(f"{where}: unknown key {key!r}; known are {', '.join(sorted(fields))}")
        old = getattr(value, key)
        if dataclasses.is_dataclass(old):
            if not isinstance(new, dict):
                raise UserError(f"{where}: {key} is a section; write [{key}]")
            changes[key] = _replace(old, new, f"{where} [{key}]")
            continue
        if isinstance(old, tuple) and isinstance(new, list):
            new = tuple(new)
        if isinstance(old, float) and type(new) is int:
            new = float(new)
        if type(new) is not type(old):
            raise UserError(f"{where}: {key} = {new!r} is not a {type(old).__name__}")
        changes[key] = new
    return dataclasses.replace(value, **changes)
