"""The tasks, each a value: what is asked, of which images, in which folders they come and which figure counts."""

import dataclasses

from fingerprint_jax.runtime import names


@dataclasses.dataclass(frozen=True)
class Official:
    """An official folder of a task, whose images go to `split` with `label`.

    Args:
        name: in --map.
        split: one that begins with `test` lies below --test_dir, the others below --train_dir.
        label: -1 where unknown.
        places: where it lies below that directory; the first that is there counts.
        prefix: what the ids of its images begin with.
    """

    name: str
    split: str
    label: int
    places: tuple[str, ...]
    prefix: str = ""

    @property
    def in_test(self) -> bool:
        """Whether it is a folder of the test set."""
        return self.split.startswith("test")


@dataclasses.dataclass(frozen=True)
class Task:
    """What is asked of a system, and of which images.

    Args:
        name: as in `config.task`.
        question: in words.
        layout: of its folders, in words.
        target: the split of labelled images that it asks about; held-out and validation rows come from there.
        test: the split of unknown images that it asks about, which a submission is of.
        watched: the figure that a training chooses by, one of `score_metrics.quick`.
        headline: the figure of results.json that counts.
        membership: whether it asks if an image was used, which has one score: column 0. Labels are 1 used, 0 not used.
        attribution: whether it asks which set of real images the generator of a synthetic one was trained on.
        classes: their names by label; empty where the folders, or a table, name them.
        folders: the official ones; empty where the classes are folders.
    """

    name: str
    question: str
    layout: str
    target: str
    test: str
    watched: str = "accuracy"
    headline: str = "accuracy"
    membership: bool = False
    attribution: bool = False
    classes: tuple[str, ...] = ()
    folders: tuple[Official, ...] = ()

    @property
    def splits(self) -> tuple[str, ...]:
        """Those that a packed data set may have."""
        return tuple(dict.fromkeys([self.target, self.test, *(folder.split for folder in self.folders), "reference"]))


_SETS = ("t1", "t2", "t3", "t4", "t5")
_TASKS = (
    Task(
        name="subtask1",
        question="Given images from a generator and one real image: was that image used to train the generator?",
        layout="<train_dir>/{generated,real_used,real_not_used}, <test_dir>/{generated,real_unknown}; or --map NAME=DIR",
        target="train_real",
        test="test_real",
        watched="auc",
        headline="cohen_kappa",
        membership=True,
        classes=("not_used", "used"),
        folders=(
            # Every synthetic image counts as positive: it is what a used image is compared with.
            Official("generated", "train_generated", 1, ("generated",)),
            Official("real_used", "train_real", 1, ("real_used",), "real_used/"),
            Official("real_not_used", "train_real", 0, ("real_not_used",), "real_not_used/"),
            Official("test_generated", "test_generated", 1, ("generated",)),
            Official("real_unknown", "test_real", -1, ("real_unknown",)),
        ),
    ),
    Task(
        name="subtask2",
        question="Given a synthetic image and five sets of real images: which set was its generator trained on?",
        layout="<train_dir>/real/{t1..t5}, <train_dir>/generated/{gen_t1..gen_t5}, <test_dir>/generated_unknown; or --map NAME=DIR",
        target="train_generated",
        test="test_generated",
        attribution=True,
        classes=_SETS,
        folders=(
            *(
                folder
                for k, t in enumerate(_SETS)
                for folder in (
                    Official(t, "train_real", k, (f"real/{t}",), f"{t}/"),
                    Official(f"gen_{t}", "train_generated", k, (f"generated/gen_{t}", f"generated/{t}"), f"gen_{t}/"),
                )
            ),
            Official("generated_unknown", "test_generated", -1, ("generated_unknown",)),
        ),
    ),
    Task(
        name="images",
        question="Given an image: which class does it belong to?",
        layout="<train_dir>/<class>, or images in <train_dir> and --labels=CSV",
        target="train",
        test="test",
    ),
)
TASKS = {task.name: task for task in _TASKS}


def of(name: str) -> Task:
    """A task by its name; raises ValueError with the known names."""
    names.check("task", name, TASKS)
    return TASKS[name]
