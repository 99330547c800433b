"""An unknown name is one line with the nearest of those that are known."""

import pytest

from fingerprint_jax.runtime import names


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet81", "backbone.name='resnet81' is unknown: did you mean 'resnet18'? known: mlp, resnet18"),
        ("MLP", "backbone.name='MLP' is unknown: did you mean 'mlp'? known: mlp, resnet18"),
        ("vgg", "backbone.name='vgg' is unknown; known: mlp, resnet18"),
        ("", "backbone.name='' is unknown; known: mlp, resnet18"),
        (3, "backbone.name=3 is unknown; known: mlp, resnet18"),
    ],
)
def test_an_unknown_name_has_the_nearest_and_all(name, message):
    with pytest.raises(ValueError) as error:
        names.check("backbone.name", name, ("mlp", "resnet18"))
    assert str(error.value) == message
    names.check("backbone.name", "mlp", iter(("mlp", "resnet18")))


def test_an_unknown_option_has_the_nearest_and_all():
    with pytest.raises(ValueError) as error:
        names.check_option("estimator", "tree", "random_forest", {"trees"})
    assert str(error.value) == "estimator.tree is no option of random_forest: did you mean 'trees'? known: trees"
    with pytest.raises(ValueError, match="^estimator.C is no option of mahalanobis; known: none$"):
        names.check_option("estimator", "C", "mahalanobis", ())


@pytest.mark.parametrize(
    "seconds, text",
    [(0.0123, "0.012 s"), (9.94, "9.9 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (3600, "1 h 0 min"), (11100, "3 h 5 min")]
    + [(86400, "1 day 0 h"), (370800, "4 days 7 h")],
)
def test_durations_are_as_people_say_them(seconds, text):
    assert names.duration(seconds) == text
