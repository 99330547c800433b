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
