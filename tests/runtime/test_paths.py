"""A leading `~` is the home directory in every flag and every field that is a path, and in nothing else."""

import importlib
import json
from pathlib import Path

import pytest
from absl import flags
from ml_collections import ConfigDict

from fingerprint_jax.runs.run import Run
from fingerprint_jax.runtime import paths
from tests.conftest import CONFIGS, load_config

# The flags of each binary that are paths; of all others that are texts `TEXTS` has the names.
PATHS = {
    "fingerprint_jax.main": ["workdir"],
    "fingerprint_jax.evaluate": ["workdir", "data_dir", "submission", "compare", "predictions", "truth", "validate", "output"],
    "fingerprint_jax.generate": ["workdir", "output_dir"],
    "fingerprint_jax.pack": ["train_dir", "test_dir", "reference_dir", "data_dir", "groups", "labels", "salt"],
    "fingerprint_jax.audit.__main__": [
        "generated",
        "used",
        "not_used",
        "unknown",
        "reference",
        "groups",
        "output",
        "real",
        "salt",
        "config",
        "junit",
        "release",
    ],
    "fingerprint_jax.data.phantom": ["output_dir"],
    "fingerprint_jax.data.controls": ["data_dir", "output_dir"],
    "launch.sweep": ["config", "data_dir", "output", "file"],
    "launch.local": ["sweep"],
    "launch.slurm": ["sweep"],
    "launch.kubernetes": ["sweep", "output"],  # not --path, which the pods see
    "launch.collect": ["sweep"],
    "launch.table": ["file", "controls", "output"],
    "launch.power": ["file", "output"],
    "launch.benchmark": ["real_dir", "groups", "output", "config", "network", "file"],
    "benchmarks.__main__": ["peer_python", "output"],
    "benchmarks.backbones": ["peer_python", "output"],
    "benchmarks.candidates": ["workdir"],
    "benchmarks.similarity": ["peer_python"],
}
PAIRS = {"fingerprint_jax.pack": "map", "launch.table": "data"}
TEXTS = {
    "trackers",
    "split",
    "step",
    "extension",
    "coordinator",
    "allow_change",
    "set",
    "zip",
    "rows",
    "through",
    "partition",
    "account",
}
TEXTS |= {"generator_name", "requester", "institution"}
TEXTS |= {"gpus", "sbatch", "path", "image", "claim", "mount", "namespace", "accelerator", "cpus", "memory", "env", "baseline"}
TEXTS |= {
    "time",
    "one_seed",
    "datasets",
    "leaks",
    "names",
    "sizes",
    "steps",
    "candidates",
    "plugins",
    "target",
    "label",
    "window",
    "fail_on",
    "slices",
    "solver",
    "images",
    "seeds",
}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def _flags(module):
    values = flags.FlagValues()
    importlib.import_module(module).define_flags(values)
    return values


@pytest.mark.parametrize("module", PATHS)
def test_every_path_of_a_binary_is_written_out_and_no_other_text(module, home):
    values = _flags(module)
    texts = {name for name in values if isinstance(values[name].parser.parse("x") if _is_text(values[name]) else 0, str | list)}
    assert texts - TEXTS == {*PATHS[module], *([PAIRS[module]] if module in PAIRS else [])}
    for name in PATHS[module]:
        for given, found in (("~/a~b", f"{home}/a~b"), ("~", str(home)), ("a/~", "a/~"), ("./~", "./~"), ("", "")):
            parsed = values[name].parser.parse(given)
            assert parsed == ([found] if found else []) if isinstance(parsed, list) else parsed == found, name
    if pair := PAIRS.get(module):
        values[pair].parse(f"{pair}=~/a")
        assert values[pair].value == [f"{pair}={home}/a"]


def _is_text(flag):
    numbers = (flags.BooleanParser, flags.IntegerParser, flags.FloatParser, flags.EnumParser)
    return not isinstance(flag.parser, numbers) and "config" not in type(flag).__name__.lower()


@pytest.mark.parametrize(
    ("module", "flag"), [("fingerprint_jax.main", "config"), ("fingerprint_jax.audit.__main__", "likelihood_ratio")]
)
def test_the_file_of_a_config_is_a_path(module, flag, home):
    (home / "c.py").write_text(
        "from ml_collections import ConfigDict\n\ndef get_config(variant=''):\n    return ConfigDict({'v': variant})\n"
    )
    values = _flags(module)
    values[flag].parse("~/c.py:a~")
    assert values[flag].value.v == "a~"
    with pytest.raises(flags.Error, match="no home directory of nobody-here is known"):
        values[flag].parse("~nobody-here/c.py")


def test_a_home_that_is_not_known_is_one_line(monkeypatch):
    values = _flags("fingerprint_jax.evaluate")
    with pytest.raises(flags.Error, match="'~nobody-here/a': no home directory of nobody-here is known; ./~nobody-here is"):
        values(["evaluate", "--workdir=~nobody-here/a"])
    config = ConfigDict({"data_dir": "~nobody-here/d"})
    with pytest.raises(ValueError, match="^config.data_dir='~nobody-here/d': '~nobody-here/d': no home directory"):
        paths.expand_fields(config)


def test_the_paths_of_a_config_are_written_out_at_any_depth(home):
    config = ConfigDict({"data_dir": "~/d", "init_from": "", "name": "~", "n": 1, "ensemble": {"runs": ("~/a", "b~", "/c")}})
    config.member = ConfigDict({"backbone": {"weights": "~/a.safetensors++hf://~/x"}, "features": {"run": "~", "cache_dir": None}})
    config.data = ConfigDict({"extra_labels": "~/e.csv"})
    paths.expand_fields(config)
    assert config.to_dict() == {
        "data_dir": f"{home}/d",
        "init_from": "",
        "name": "~",
        "n": 1,
        "ensemble": {"runs": (f"{home}/a", "b~", "/c")},
        "member": {
            "backbone": {"weights": f"{home}/a.safetensors++hf://~/x"},
            "features": {"run": str(home), "cache_dir": None},
        },
        "data": {"extra_labels": f"{home}/e.csv"},
    }


@pytest.mark.parametrize("path", CONFIGS)
def test_every_field_of_a_config_that_is_a_path_is_known(path):
    """By its name, or by a value with a slash in it."""

    def fields(config):
        for name, value in config.items():
            if isinstance(value, ConfigDict):
                yield from fields(value)
            elif name.endswith(("_dir", "_from", "path", "file")) or (isinstance(value, str) and "/" in value):
                yield name

    assert set(fields(load_config(path, ""))) <= paths.FIELDS


def test_a_run_and_its_file_have_the_same_paths(data_dir, home):
    config = load_config("configs/quickstart.py")
    (home / "data").symlink_to(data_dir)
    config.data_dir, config.backbone.weights = "~/data", "~/w.safetensors"
    run = Run(config, home / "run")
    assert run.source.image_shape == (48, 48, 1) and run.config.backbone.weights == f"{home}/w.safetensors"
    (home / "run").mkdir()
    old = config.to_dict() | {"data_dir": "~/data"}  # of a version that kept them as they were given
    (home / "run" / "config.json").write_text(json.dumps(old))
    assert Run.load(home / "run").config.to_dict() == run.config.to_dict()
    assert not Path("~").exists()
