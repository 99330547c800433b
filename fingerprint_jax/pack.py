"""Folders of images, of DICOM or of NIfTI -> a TFDS data set.

python -m fingerprint_jax.pack --task=subtask1 --train_dir=DIR --test_dir=DIR --data_dir=DATA
"""

import functools
import logging
import signal
import sys
import warnings

from absl import flags

from fingerprint_jax.data import images, packing
from fingerprint_jax.data.tasks import TASKS
from fingerprint_jax.runtime import cli, paths
from fingerprint_jax.runtime.names import printable


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this binary."""
    define = functools.partial(paths.define, flag_values=values)
    flags.DEFINE_enum("task", None, list(TASKS), "subtask1, subtask2, or images: any labelled set.", flag_values=values)
    define("train_dir", None, "The training folder in the official layout; task images: see --labels.")
    define("test_dir", "", "The test folder; without it the data has no unknowns.")
    define("reference_dir", "", "Real images known not to be used, of no patient of --train_dir or --test_dir.")
    define("data_dir", None, "The data set goes to DATA_DIR/fingerprint/TASK/1.0.0.")
    define("groups", "", "CSV with header id,group or split,id,group: the patient of each image.")
    define("labels", "", "Task images: CSV with header id,label or id,class for a flat folder; without it subfolders are classes.")
    paths.define_pairs(
        "map",
        "NAME=DIR, repeatable: where an official folder lies. Names: generated, real_used, real_not_used, test_generated,"
        " real_unknown; t1..t5, gen_t1..gen_t5, generated_unknown.",
        flag_values=values,
    )
    flags.DEFINE_integer("image_size", 0, "Resize to this square; 0 keeps the size.", lower_bound=0, flag_values=values)
    flags.DEFINE_integer("max_pixels", images.MAX_PIXELS, "Refuse larger images.", lower_bound=1, flag_values=values)
    packing.define_image_flags(values)
    flags.DEFINE_bool("strict", False, "Any rejected file is fatal.", flag_values=values)
    flags.DEFINE_bool("overwrite", False, "Replace a data set that is there.", flag_values=values)
    flags.mark_flags_as_required(["task", "train_dir", "data_dir"], flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Packs what the flags name."""
    logging.getLogger("absl").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # what matters of a strange file is in rejected.csv
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("pack: error: terminated, nothing was written"))
    if wrong := [entry for entry in values.map if not all(entry.partition("="))]:
        raise ValueError(f"--map={wrong[0]}: expected NAME=DIR")
    named = [entry.partition("=")[0] for entry in values.map]
    if twice := [name for name in named if named.count(name) > 1]:
        raise ValueError(f"--map names {twice[0]} twice: give one folder of each name")
    try:
        packing.pack(
            values.task,
            values.data_dir,
            values.train_dir,
            values.test_dir,
            values.reference_dir,
            values.groups,
            values.labels,
            dict(entry.split("=", 1) for entry in values.map),
            values.image_size,
            values.max_pixels,
            values.strict,
            values.overwrite,
            values.bits,
            values.max_rejected,
            packing.of_volumes(values),
        )
    except (ValueError, OSError) as error:
        raise ValueError(printable(str(error))) from None
    except KeyboardInterrupt:
        sys.exit("pack: error: interrupted, nothing was written")


def command() -> None:
    """The console script."""
    cli.run("pack", define_flags, main)


if __name__ == "__main__":
    command()
