"""What is wrong with a config file, or a field of it, is one line."""

import collections
import pathlib
import re

import pytest
from absl import flags
from ml_collections import ConfigDict

from fingerprint_jax import main
from fingerprint_jax.audit.__main__ import define_flags as audit_flags
from fingerprint_jax.runs import config_file
from fingerprint_jax.runs.config import walk
from launch import sweep
from tests.conftest import CONFIGS, ROOT, load_config

FILES = {
    "syntax.py": "x = 1\ndef get_config(variant=''):\n    retrun 3\n",
    "raises.py": "def get_config(variant=''):\n    return {}['x']\n",
    "value.py": "def get_config(variant=''):\n    raise ValueError('no\\nway')\n",
    "imports.py": "import nothing_there\n",
    "names.py": "def config():\n    pass\n",
    "nothing.py": "def get_config(variant=''):\n    pass\n",
    "plain.py": "from configs import quickstart\ndef get_config():\n    return quickstart.get_config()\n",
    "text.txt": "seed: 3",
}


def test_the_docs_have_a_line_for_each_config():
    text = (ROOT / "docs" / "configs.md").read_text().partition("## Which there are")[2].partition("\n## ")[0]
    missing = [path for path in CONFIGS if not re.search(rf"[`/]{pathlib.Path(path).stem}`", text)]
    assert not missing, f"{', '.join(missing)}: say in docs/configs.md what it is"


@pytest.mark.parametrize("variant", ["", "smoke"])
def test_no_section_stands_in_two_places(variant):
    """Else a flag for a field of one variant would change that of another."""
    for path in CONFIGS:
        sections = [(name, id(value)) for name, value in walk(load_config(path, variant)) if isinstance(value, ConfigDict)]
        places = collections.defaultdict(list)
        for name, section in sections:
            places[section].append(name)
        assert sections and not [names for names in places.values() if len(names) > 1], path


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("configs/subtask1/locl_match.py", "there is no such file: did you mean configs/subtask1/local_match.py?"),
        ("quickstrat", "there is no such file: did you mean configs/quickstart.py?"),
        ("subtask1/domias.py", "there is no such file: did you mean configs/subtask1/domias.py?"),
        ("config/quickstart.py", "there is no such file: did you mean configs/quickstart.py?"),
        ("{}/sintax.py", "there is no such file: did you mean {}/syntax.py?"),
        ("configs", "this is a folder: name a config in it, such as quickstart.py"),
        ("", "it is empty: name a config, such as quickstart"),
        ("{}/text.txt", "not a config, which is a Python file with a function get_config(variant)"),
        ("{}/names.py", "not a config: the file has no function get_config(variant)"),
        ("{}/nothing.py", "get_config() returns NoneType: a config is an ml_collections.ConfigDict"),
        ("{}/syntax.py", "{}/syntax.py, line 3: invalid syntax"),
        ("{}/raises.py", "{}/raises.py, line 2: KeyError: 'x'"),
        ("{}/value.py", "{}/value.py, line 2: ValueError: no"),
        ("{}/imports.py", "{}/imports.py, line 1: ModuleNotFoundError: No module named 'nothing_there'"),
        ("{}/plain.py:smoke", "the config has no variants, 'smoke' is one too many"),
        ("configs/quickstart.py:smok", "variant='smok' is unknown: did you mean 'smoke'? known: smoke"),
        (
            "configs/subtask1/local_match.py:offical",
            "variant='offical' is unknown: did you mean 'official'? known: smoke, official",
        ),
    ],
)
@pytest.mark.parametrize("binary", ["main", "audit", "sweep", "row"])
def test_a_file_that_is_no_config_is_one_line_in_each_binary(binary, config, message, files, monkeypatch):
    config, message = config.replace("{}", str(files)), message.replace("{}", str(files))
    flag = {"audit": "likelihood_ratio"}.get(binary, "config")
    if binary in ("sweep", "row") and config:
        with pytest.raises(ValueError) as error:
            sweep.rows(*((config, [{}]) if binary == "sweep" else ("", [{"config": config}])))
    else:
        values = flags.FlagValues()
        (audit_flags if binary == "audit" else main.define_flags)(values)
        with pytest.raises(flags.Error) as error:
            values([binary, f"--{flag}={config}"])
    assert str(error.value) == f"--{flag}={config}: {message}"


@pytest.mark.parametrize(
    ("config", "field", "meant"),
    [
        ("subtask1/aimm_siamese", "optimizer.learning_rate=1", "member.optimizer.learning_rate"),
        ("subtask1/aimm_siamese", "member.optimzer.learning_rate=1", "member.optimizer.learning_rate"),
        ("subtask1/aimm_siamese", "optimzer.learning_rate=1", "member.optimizer.learning_rate"),
        ("subtask1/combined", "backbone.name=mlp", "member.member.backbone.name"),
        ("quickstart", "learning_rate=1", "optimizer.learning_rate"),
        ("quickstart", "augment.flp=1", "augment.flip"),
        ("quickstart", "data.streams.genrated=1", "data.streams.generated"),
        ("quickstart", "seed.x=1", "seed"),
        ("quickstart", "dat=1", "data"),
    ],
)
def test_a_field_that_is_not_there_has_the_nearest_also_in_a_member(config, field, meant, monkeypatch):
    monkeypatch.chdir(ROOT)
    line = ["main", f"--config=configs/{config}.py", f"--config.{field}"]
    values, name = flags.FlagValues(), field.partition("=")[0]
    config_file.define_flag("config", "", values, line)
    with pytest.raises(flags.Error) as error:
        values(line)
    assert str(error.value) == f"--config.{name}: the config has no field {name}: did you mean --config.{meant}?"


def test_fields_that_are_there_are_taken_whatever_their_form(monkeypatch):
    monkeypatch.chdir(ROOT)
    line = ["main", "--config", "configs/quickstart.py", "--noconfig.data.balanced", "--config.seed", "3", "-config.num_steps=7"]
    values = flags.FlagValues()
    config_file.define_flag("config", "", values, line)
    values(line)
    assert (values.config.data.balanced, values.config.seed, values.config.num_steps) == (False, 3, 7)
    assert values.config.is_locked


def test_a_config_outside_of_the_checkout_says_where_to_run(files, monkeypatch):
    monkeypatch.chdir(files)
    with pytest.raises(ValueError, match="there is no such file"):
        config_file.read("configs/quickstart.py")


def test_a_sweep_file_that_raises_is_one_line(files):
    with pytest.raises(ValueError, match=r"^--file=.*syntax.py: .*syntax.py, line 3: invalid syntax$"):
        sweep.load_file(str(files / "syntax.py"))
    (files / "rows.py").write_text("def sweep():\n    return nothing\n")
    with pytest.raises(ValueError, match=r"^--file=.*rows.py: .*rows.py, line 2: NameError: name 'nothing' is not defined$"):
        sweep.load_file(str(files / "rows.py"))


@pytest.mark.parametrize("path", CONFIGS)
def test_a_published_config_has_a_name_everywhere(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = path.removeprefix("configs/").removesuffix(".py")
    assert config_file.read(f"{name}:smoke").to_dict() == load_config(path).to_dict()


def test_a_file_comes_before_a_published_config_and_the_defaults_are_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()
    assert config_file.read("quickstart").task == load_config("configs/quickstart.py").task
    (tmp_path / "quickstart").rmdir()
    (tmp_path / "quickstart").touch()
    with pytest.raises(ValueError, match="not a config, which is a Python file"):
        config_file.read("quickstart")
    with pytest.raises(ValueError, match="there is no such file"):
        config_file.read("base")


@pytest.mark.parametrize("field", ["member.seed=1", "member.data.valid=0.2", "member.data.folds=3"])
def test_a_field_that_a_member_has_from_the_run_around_it_is_refused(field, monkeypatch):
    monkeypatch.chdir(ROOT)
    values = flags.FlagValues()
    arguments = ["main", "--config=configs/subtask1/domias.py", f"--config.{field}"]
    config_file.define_flag("config", "", values, arguments)
    wanted = field.partition("=")[0].removeprefix("member.")
    with pytest.raises(flags.Error, match=f"a member has the value of the run around it: set {wanted}"):
        values(arguments)
