"""One score a patient: the figures of the panel and of its controls are of patients, however many images each of them has."""

import dataclasses

import numpy as np

from fingerprint_jax.stats import bootstrap

SCORES = ("mean", "max")
# The label goes by patient, and so did the training. A maximum rises with the number of a patient's images, a mean does not, and
# single images that were kept are what the search for copies is for.
DEFAULT = "mean"


@dataclasses.dataclass(frozen=True)
class Patients:
    """The P patients of N images, in the order of their first images; a patient with both labels is two of them.

    Where each image is a patient of its own they are the images, in their order.
    """

    labels: np.ndarray  # int [P]
    groups: np.ndarray  # [P], the same for both of a patient with both labels
    of_image: np.ndarray  # int [N], the position of an image's patient

    @staticmethod
    def of(labels: np.ndarray, groups: np.ndarray) -> "Patients":
        """Of images with labels int [N] and groups [N]."""
        of_image = bootstrap.as_they_come(2 * bootstrap.as_they_come(groups) + labels)
        _, first = np.unique(of_image, return_index=True)
        return Patients(labels[first], groups[first], of_image)

    def scores(self, of_images: np.ndarray, score: str) -> np.ndarray:
        """The mean or the largest (`SCORES`) of the scores of a patient's images: [N] or [N,M] -> float64 [P] or [P,M]."""
        order = np.argsort(self.of_image, kind="stable")
        starts = np.searchsorted(self.of_image[order], np.arange(len(self.labels)))
        values = np.asarray(of_images, np.float64)[order]
        if score == "max":
            return np.maximum.reduceat(values, starts, axis=0)
        images = np.bincount(self.of_image)
        return np.add.reduceat(values, starts, axis=0) / (images if values.ndim == 1 else images[:, None])


def known(counts: dict) -> bool:
    """Whether the patient of any real image is known, by the counts of an audit."""
    return counts["without_patient"] < counts["real"]


def unit(counts: dict) -> str:
    """What the figures of an audit are of: `patient`, or `image` where no patient is known."""
    return "patient" if known(counts) else "image"


def counted(images: int, patients: int, counts: dict, what: str = "image") -> str:
    """`3 images of 2 patients`, or `3 images` where no patient is known."""
    text = plural(images, what)
    return f"{text} of {plural(patients, 'patient')}" if known(counts) else text


def plural(n: int, word: str) -> str:
    """`1 image`, `2 images`."""
    return f"{n:,} {word}{'' if n == 1 else 's'}"
