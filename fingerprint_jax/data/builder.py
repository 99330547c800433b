"""The one TFDS builder: records of raw pixels in ArrayRecord files, in the order they are given. No TensorFlow."""

import contextlib
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fingerprint_jax.data.tasks import TASKS
from fingerprint_jax.runtime import files

VERSION = "1.0.0"
REMEDY = "pack the data again"
NAME, TEMPLATE = "fingerprint", "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
SPLIT_FIELDS = {"name", "filepathTemplate", "numBytes", "shardLengths"}
CLASSES = {  # of the features, by their names; "" is all of them
    "": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
    "id": "tensorflow_datasets.core.features.text_feature.Text",
    "image": "tensorflow_datasets.core.features.tensor_feature.Tensor",
    "label": "tensorflow_datasets.core.features.scalar.Scalar",
    "group": "tensorflow_datasets.core.features.text_feature.Text",
}


def dataset_dir(data_dir: str | Path, task: str) -> Path:
    """Where the data set of a task lies below `data_dir`."""
    return Path(data_dir) / NAME / task / VERSION


def remedy(data_dir: str | Path, task: str) -> str:
    """What to do where no data set of a task lies below `data_dir`: the folder that was meant, the task that is there, or pack."""

    def packed(folder: Path, task: str) -> bool:
        return (dataset_dir(folder, task) / "summary.json").exists()

    root = Path(data_dir).expanduser()
    if not root.is_dir():
        return "there is no such folder" + ("" if root.is_absolute() else f" in {Path.cwd()}") + "; run fingerprint_jax.pack"
    below = sorted(root.glob(f"*/fingerprint/{task}/{VERSION}/summary.json"))
    near = [*root.absolute().parents[:4], *(path.parents[3] for path in below)]
    if found := [folder for folder in near if packed(folder, task)]:
        return f"did you mean {found[0]}?"
    if there := [other for other in TASKS if packed(root, other)]:
        return f"it has {' and '.join(there)}: give a config of that task, or run fingerprint_jax.pack"
    return "run fingerprint_jax.pack"


class _Info(tfds.core.DatasetInfo):
    def initialize_from_bucket(self) -> None:
        """Google's servers know nothing of this data set; TFDS would ask them, and leave an empty folder in the temporary one."""


class Fingerprint(tfds.core.GeneratorBasedBuilder):
    """Records `{id, image, label, group}`.

    `id`: path below the split's folder without extension. `image`: uint8 [H,W,1]. `label`: int64, -1 where unknown.
    `group`: patient or near-duplicate cluster, the id where unknown.
    """

    VERSION = tfds.core.Version(VERSION)
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=task) for task in TASKS]

    def __init__(
        self, *, splits: dict[str, Callable[[], Iterator[dict]]], image_shape: tuple[int, int, int], **kwargs: Any
    ) -> None:
        self._splits, self._image_shape = splits, image_shape
        super().__init__(**kwargs, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return _Info(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Tensor(shape=self._image_shape, dtype=np.uint8, encoding="bytes"),
                    "label": tfds.features.Scalar(np.int64),
                    "group": tfds.features.Text(),
                }
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: object) -> dict[str, Iterator[tuple[int, dict]]]:
        return {name: enumerate(records()) for name, records in self._splits.items()}

    def _generate_examples(self) -> Iterator[tuple[int, dict]]:
        raise NotImplementedError("splits bring their own generators")


def opened(path: Path, task: str, image_shape: tuple[int, int, int]) -> Any:
    """The builder of a data set that `write` wrote to `path`, to read from.

    Its features are those of this file. TFDS would otherwise import the classes that the data set's features.json names, and open
    the files that its dataset_info.json describes: so both are compared with what `write` writes first.

    Raises ValueError that names file and field where they say anything else.
    """
    info = files.read_json(path / "dataset_info.json", {"splits": list}, REMEDY)
    known = {"configName": task, "disableShuffling": True, "fileFormat": "array_record", "name": NAME, "version": VERSION}
    for field, value in info.items():
        if field not in (*known, "splits", "moduleName") or value != known.get(field, value):
            raise ValueError(f"{path / 'dataset_info.json'}: {field} is {str(value)[:80]!r}: {REMEDY}")
    for split in info["splits"]:
        name = str(split.get("name")) if isinstance(split, dict) else ""
        # Fields have a second name each, filepath_template, by which protobuf would take them too.
        known = isinstance(split, dict) and split.keys() <= SPLIT_FIELDS and split.get("filepathTemplate") == TEMPLATE
        if not known or not re.fullmatch(r"[a-z0-9_]{1,64}", name):
            raise ValueError(f"{path / 'dataset_info.json'}: split {str(split)[:80]!r} is not ours: {REMEDY}")
        shards = list(path.glob(f"{NAME}-{name}.*"))
        for file in shards:
            if not file.is_file():
                raise ValueError(f"{file}: no file: {REMEDY}")
        lengths = split.get("shardLengths", [])
        if not isinstance(lengths, list) or not all(re.fullmatch("[0-9]{1,15}", str(length)) for length in lengths):
            raise ValueError(f"{path / 'dataset_info.json'}: shardLengths of {name} is {str(lengths)[:80]!r}: {REMEDY}")
        if len(lengths) > len(shards):  # TFDS would make as many paths as it says
            raise ValueError(f"{path / 'dataset_info.json'}: {name} has more shards than files: {REMEDY}")
        if sum(map(int, lengths)) > sum(file.stat().st_size for file in shards):  # as many numbers would fill the memory
            raise ValueError(f"{path / 'dataset_info.json'}: {name} has more records than bytes: {REMEDY}")
    features = files.read_json(path / "features.json", {"featuresDict": dict}, REMEDY)
    for field, value in _classes(features):
        if field not in CLASSES or value != CLASSES[field]:
            raise ValueError(f"{path / 'features.json'}: unexpected feature {field[:40]!r} of class {str(value)[:120]!r}: {REMEDY}")
    return Fingerprint(data_dir=str(path.parents[2]), config=task, splits={}, image_shape=image_shape)


def _classes(features: dict, name: str = "") -> Iterator[tuple[str, object]]:
    """(name, class) of a feature and of those in it, wherever a class is named."""
    for key, value in features.items():
        if key == "pythonClassName":
            yield name, value
        elif isinstance(value, dict):
            yield from _classes(value, name if key in ("featuresDict", "features") else key)


def write(root: Path, task: str, splits: dict[str, Callable[[], Iterator[dict]]], image_shape: tuple[int, int, int]) -> None:
    """Writes the data set of a task to `dataset_dir(root, task)`.

    Args:
        root: an existing folder.
        task: one of TASKS.
        splits: name -> a function that yields records `{id, image uint8 [H,W,1], label, group}` in the order to keep.
        image_shape: H, W, 1.

    Raises OSError where the files cannot be written.
    """
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS praises itself there
            Fingerprint(data_dir=str(root), config=task, splits=splits, image_shape=image_shape).download_and_prepare()
    except RuntimeError as error:  # ArrayRecord's, for example on a full disk
        raise OSError(f"cannot write to {root}: {error}") from None
