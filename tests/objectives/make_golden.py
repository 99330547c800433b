"""The training steps of the published systems in PyTorch, for test_parity.py: run where torch and timm are installed, without JAX.

    python -m tests.objectives.make_golden    # writes tests/objectives/golden.json

Each network and its loss are written from the description of its team, and where that is silent from the docstring of ours. The
file holds losses, and of each gradient its norm and two projections, all in float64. Made with torch 2.14.1, timm 1.0.31.
"""

import copy
import json
import math
import re

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tests.backbones.make_golden import tiny
from tests.objectives import drawn

BACKBONES = tiny()


def backbone(name):
    """A tiny network of timm's."""
    return copy.deepcopy(BACKBONES[name])


def tensor(array):
    """[N,H,W,C] -> float64 [N,C,H,W]."""
    return torch.tensor(np.asarray(array, np.float64)).permute(0, 3, 1, 2)


def images(batch, view="image"):
    return torch.cat([tensor(stream[view]) for stream in batch.values()])


def filled(net):
    """The network with drawn weights, in float64 and training."""
    state = net.double().state_dict()
    net.load_state_dict(
        {name: torch.tensor(drawn.draw(name, x.shape)) if x.is_floating_point() else x for name, x in state.items()}
    )
    return net.train()


def rows(x):
    """A map [N,C,H,W] as features in our order, place by place."""
    return x.permute(0, 2, 3, 1).flatten(1)


def entry(net, loss, **parts):
    """What the golden file says of a step, after `backward`."""
    gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in net.named_parameters() if p.requires_grad}
    return {
        "loss": loss.item(),
        "parts": {name: part.item() for name, part in parts.items()},
        "gradients": {name: drawn.digest(name, gradient.numpy()) for name, gradient in gradients.items()},
    }


def step(net, loss, **parts):
    """The only step of a network."""
    loss.backward()
    return [entry(net, loss, **parts)]


# AI Multimedia Lab


class Siamese(nn.Module):
    """Convolutions 3x3 without padding, each with ReLU and max-pool, a dense layer, unit length."""

    def __init__(self):
        super().__init__()
        widths = (1, 4, 8, 16, 32)
        self.backbone = nn.Module()
        self.backbone.convs = nn.ModuleList([nn.Conv2d(a, b, 3) for a, b in zip(widths, widths[1:], strict=False)])
        self.backbone.dense = nn.Linear(32, 16)

    def forward(self, x):
        for conv in self.backbone.convs:
            x = F.max_pool2d(F.relu(conv(x)), 2)
        return F.normalize(self.backbone.dense(rows(x)))


def hadsell(a, b, same):
    """Hadsell's loss of one pair, margin 1."""
    distance = torch.linalg.vector_norm(a - b)
    return distance**2 if same else torch.clamp(1.0 - distance, min=0) ** 2


def pairs(batch):
    """All pairs of a real and a synthetic image, and whether their labels are the same."""
    real, generated = (batch[name]["label"] for name in ("real", "generated"))
    return [(i, j, bool(a == b)) for j, b in enumerate(generated) for i, a in enumerate(real)]


def half(batch, count):
    """As many positive pairs as negative ones, the first of each kind."""
    return [pair for kind in (True, False) for pair in [p for p in pairs(batch) if p[2] == kind][: count // 2]]


def contrastive_sampled(batch):
    net = filled(Siamese())
    real, generated = net(tensor(batch["real"]["image"])), net(tensor(batch["generated"]["image"]))
    return step(net, torch.stack([hadsell(real[i], generated[j], same) for i, j, same in half(batch, 8)]).mean())


def contrastive_all(batch):
    net = filled(Siamese())
    real, generated = net(tensor(batch["real"]["image"])), net(tensor(batch["generated"]["image"]))
    kinds = [[hadsell(real[i], generated[j], same) for i, j, same in pairs(batch) if same == kind] for kind in (True, False)]
    return step(net, sum(torch.stack(kind).mean() for kind in kinds) / 2)


# SCOPE


class CrossAttention(nn.Module):
    """Multi-head attention of tokens [N,T,D] to others, added and normalised."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.width = heads, width
        self.qkv, self.proj, self.norm = nn.Linear(width, 3 * width), nn.Linear(width, width), nn.LayerNorm(width, 1e-6)

    def forward(self, a, b):
        query, key = a.transpose(0, 1), b.transpose(0, 1)
        found, _ = F.multi_head_attention_forward(
            query, key, key, self.width, self.heads, self.qkv.weight, self.qkv.bias, None, None, False, 0.0, self.proj.weight,
            self.proj.bias, need_weights=False,
        )  # fmt: skip
        return self.norm(a + found.transpose(0, 1))


class Scope(nn.Module):
    """A twin ResNet, cross-attention in both directions, |a - b| and a * b through a perceptron."""

    def __init__(self):
        super().__init__()
        self.backbone, self.attention = backbone("resnet_tiny"), CrossAttention(16, 8)
        self.fc1, self.fc2 = nn.Linear(32, 24), nn.Linear(24, 1)

    def tokens(self, x):
        return self.backbone.forward_features(x).flatten(2).transpose(1, 2)

    def forward(self, a, b):
        a, b = self.attention(a, b).mean(1), self.attention(b, a).mean(1)
        return a, b, self.fc2(F.relu(self.fc1(torch.cat([(a - b).abs(), a * b], 1))))[:, 0]


def cross_attention(batch):
    net = filled(Scope())
    tokens = net.tokens(torch.cat([tensor(batch[name]["image"]) for name in ("real", "generated")]))
    real, generated, same = zip(*half(batch, 8), strict=True)
    same = torch.tensor(same, dtype=torch.float64)
    count = len(batch["real"]["label"])
    a, b, logits = net(tokens[:count][list(real)], tokens[count:][list(generated)])
    entropy = F.binary_cross_entropy_with_logits(logits, same)
    angle = torch.acos(F.cosine_similarity(a, b))
    angular = (same * angle + (1 - same) * torch.clamp(0.5 - angle, min=0)).mean()
    return step(net, entropy + 0.3 * angular, cross_entropy=entropy, angular=angular)


# zhouyijiang1


class Fusion(nn.Module):
    """The tokens after several layers, weighted by a gate of their class tokens."""

    def __init__(self, layers, width):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width, 1e-6) for _ in range(layers)])
        self.gate = nn.Linear(layers * width, layers)

    def forward(self, layers):
        layers = [norm(x) for norm, x in zip(self.norms, layers, strict=True)]
        weights = self.gate(torch.cat([x[:, 0] for x in layers], 1)).softmax(1)
        return sum(weights[:, i, None, None] * x for i, x in enumerate(layers))


class Canet(nn.Module):
    """A ViT whose layers are fused, attention between the images of a pair, a learned temperature of the logit."""

    def __init__(self):
        super().__init__()
        self.backbone, self.fusion, self.map = backbone("vit_tiny"), Fusion(2, 16), nn.Linear(16, 16)
        self.norm, self.attention, self.head = nn.BatchNorm1d(16), CrossAttention(16, 8), nn.Linear(16, 1)
        self.heat = nn.Parameter(torch.zeros(()))

    def tokens(self, x):
        found = []
        hooks = [block.register_forward_hook(lambda *call: found.append(call[2])) for block in self.backbone.blocks]
        self.backbone.forward_features(x)
        for hook in hooks:
            hook.remove()
        return self.norm(self.map(self.fusion(found)).transpose(1, 2)).transpose(1, 2)


def supervised_contrastive(x, labels, temperature):
    """Khosla et al. 2020, equation 2, one anchor and one positive at a time."""
    x, anchors = F.normalize(x), []
    for i in range(len(x)):
        others = [a for a in range(len(x)) if a != i]
        positives = [p for p in others if labels[p] == labels[i]]
        bottom = torch.logsumexp(torch.stack([x[i] @ x[a] / temperature for a in others]), 0)
        if positives:
            anchors.append(-torch.stack([x[i] @ x[p] / temperature - bottom for p in positives]).mean())
    return torch.stack(anchors).mean()


def canet(batch):
    net = filled(Canet())
    real, generated = batch["real"], batch["generated"]
    tokens = net.tokens(torch.cat([tensor(real["image"]), tensor(generated["image"])]))
    count = len(real["label"])
    temperature = 10 ** torch.tanh(net.heat)
    logits = net.head(net.attention(tokens[:count], tokens[count:]).mean(1))[:, 0] / temperature
    entropy = F.binary_cross_entropy(torch.sigmoid(logits), torch.tensor(real["label"], dtype=torch.float64))
    contrast = supervised_contrastive(tokens.mean(1), [*real["label"], *generated["label"]], 0.1)
    return step(net, entropy + contrast, cross_entropy=entropy, contrast=contrast, temperature=temperature)


# Packhäuser et al.


class Reidentification(nn.Module):
    """Two branches of 12 features: sigmoids whose absolute difference goes to a logit, and an embedding of unit length."""

    def __init__(self):
        super().__init__()
        self.backbone = backbone("resnet_tiny")
        self.verification, self.retrieval, self.head = nn.Linear(16, 12), nn.Linear(16, 12), nn.Linear(12, 1)

    def forward(self, x):
        x = self.backbone(x)
        return torch.sigmoid(self.verification(x)), F.normalize(self.retrieval(x))


def reidentification(batch):
    """The first image of each patient with the second ones of all: as much of one patient as of two."""
    net, patient = filled(Reidentification()), batch["reference"]["label"]
    features, embedding = net(images(batch))
    entropy, contrast = {True: [], False: []}, {True: [], False: []}
    for i in range(0, len(patient), 2):
        for j in range(1, len(patient), 2):
            same = bool(patient[i] == patient[j])
            probability = torch.sigmoid(net.head((features[i] - features[j]).abs()))[0]
            entropy[same].append(F.binary_cross_entropy(probability, torch.tensor(float(same), dtype=torch.float64)))
            contrast[same].append(hadsell(embedding[i], embedding[j], same))
    entropy, contrast = (sum(torch.stack(kind).mean() for kind in loss.values()) / 2 for loss in (entropy, contrast))
    return step(net, entropy + 0.5 * contrast, cross_entropy=entropy, contrastive=contrast)


# taozi


class Projection(nn.Module):
    """The dynamic head: an embedding of unit length, and a temperature of each image."""

    def __init__(self, *sizes):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False)])
        self.temperature = nn.Linear(sizes[-2], 1)

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return F.normalize(self.layers[-1](x)), 0.05 + 0.15 * torch.sigmoid(self.temperature(x))[:, 0]


class Encoder(nn.Module):
    """One backbone."""

    def __init__(self):
        super().__init__()
        self.backbone, self.features = backbone("resnet_tiny"), nn.Linear(16, 32)
        self.projection = Projection(32, 16, 16, 16)

    def forward(self, x):
        return self.projection(self.features(self.backbone(x)))


class Experts(nn.Module):
    """Three backbones, their normalised features through a gate of two layers and attention with 8 heads."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.ModuleList([backbone(name) for name in ("resnet_tiny", "efficientnet_tiny", "vit_tiny")])
        self.features = nn.ModuleList([nn.Linear(width, 32) for width in (16, 24, 16)])
        self.gate1, self.gate2 = nn.Linear(96, 12), nn.Linear(12, 3)
        self.attention, self.projection = CrossAttention(32, 8), Projection(32, 16, 16, 16)

    def forward(self, x):
        experts = [F.normalize(layer(net(x))) for net, layer in zip(self.backbone, self.features, strict=True)]
        weights = self.gate2(F.relu(self.gate1(torch.cat(experts, 1)))).softmax(1)
        total = sum(weights[:, i, None] * expert for i, expert in enumerate(experts))
        return self.projection(self.attention(total[:, None], torch.stack(experts, 1))[:, 0])


def info_nce(query, positive, queue, temperature, others_too, left_out):
    """One query at a time: its positives are its own and those of the queue, what is left out is in no sum."""
    found = []
    for i in range(len(query)):
        own = (query[i] @ positive[i] / temperature[i])[None]
        others = queue[~left_out[i]] @ query[i] / temperature[i]
        logits = torch.cat([own, others])
        wanted = torch.cat([torch.tensor([True]), others_too[i][~left_out[i]]])
        found.append((torch.logsumexp(logits, 0) - logits[wanted]).mean())
    return torch.stack(found).mean()


def momentum_contrast(online, positives, of_backbone=1.0):
    """Steps of MoCo v2 (He et al. 2020, algorithm 1): 0.7 of the queries' loss, 0.3 of the keys'."""
    online = filled(online)
    momentum = copy.deepcopy(online)
    first = {name: p.clone() for name, p in momentum.named_parameters()}
    groups = []
    for name, p in online.named_parameters():
        kernel, trunk = p.dim() in (2, 4), name.startswith("backbone.")  # biases, normalisation and tokens are not decayed
        groups.append({"params": [p], "lr": drawn.RATE * (of_backbone if trunk else 1), "weight_decay": drawn.DECAY * kernel})
    optimizer = torch.optim.AdamW(groups)
    queue, index, steps = list(torch.tensor(drawn.queue(), dtype=torch.float64)), [-1] * drawn.QUEUE, []
    for number in range(drawn.STEPS):
        batch = drawn.contrasted(number)
        with torch.no_grad():
            for p, q in zip(momentum.parameters(), online.parameters(), strict=True):
                p.mul_(drawn.MOMENTUM).add_((1 - drawn.MOMENTUM) * q)
            keys, key_temperature = momentum(images(batch, "second"))
        queries, temperature = online(images(batch))
        own = np.concatenate([stream["index"] for stream in batch.values()])
        left_out, others = torch.tensor(own[:, None] == np.array(index)[None]), torch.stack(queue)
        cosines = keys @ others.T
        assert (cosines - drawn.THRESHOLD).abs().min() > 1e-5  # float32 finds the same ones
        alike = cosines >= (drawn.THRESHOLD if positives == "pool" else math.inf)
        ours = info_nce(queries, keys, others, temperature, alike, left_out)
        theirs = info_nce(keys, queries, others, key_temperature, alike, left_out)
        loss = 0.7 * ours + 0.3 * theirs
        optimizer.zero_grad()
        loss.backward()
        steps.append(entry(online, loss, online=ours, momentum=theirs, temperature=temperature.mean()))
        optimizer.step()
        queue, index = [*queue[len(keys) :], *keys], [*index[len(keys) :], *own]
    if isinstance(online, Encoder):  # elsewhere Adam takes steps of the rounding that is the gradient of an attention's key biases
        steps[-1]["moved"] = {name: drawn.digest(name, (p - first[name]).detach()) for name, p in momentum.named_parameters()}
    steps[-1]["queue"] = drawn.digest("queue.keys", torch.stack(queue))
    return steps


# Neural Nexus


class Block(nn.Module):
    """Two convolutions and what they are added to."""

    def __init__(self, width, activation):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.activation = activation

    def forward(self, x):
        return self.activation(x + self.norm2(self.conv2(self.activation(self.norm1(self.conv1(x))))))


class Stage(nn.Module):
    """A convolution, transposed or not, of stride 2 and a residual block."""

    def __init__(self, conv, width, activation):
        super().__init__()
        self.conv, self.norm, self.block, self.activation = conv, nn.BatchNorm2d(width), Block(width, activation), activation

    def forward(self, x):
        return self.block(self.activation(self.norm(self.conv(x))))


class Decoder(nn.Module):
    """A dense layer to the first map, transposed convolutions of stride 2, tanh."""

    def __init__(self, features, width=8, steps=5):
        super().__init__()
        self.size = [math.ceil(side / 2**steps) for side in drawn.SIZE]
        self.dense, leaky = nn.Linear(features, math.prod(self.size) * width), nn.LeakyReLU(0.1)
        convs = [nn.ConvTranspose2d(width, width, 4, 2, 1, bias=False) for _ in range(steps)]
        self.steps = nn.ModuleList([Stage(conv, width, leaky) for conv in convs])
        self.last = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, x):
        x = self.dense(x).unflatten(1, (*self.size, -1)).permute(0, 3, 1, 2)
        for stage in self.steps:
            x = stage(x)
        height, width = drawn.SIZE
        return torch.tanh(self.last(x)[:, :, :height, :width])


class VitAutoencoder(nn.Module):
    """A ViT behind a 1x1 convolution to three channels, a latent, the decoder."""

    def __init__(self):
        super().__init__()
        self.backbone = backbone("vit_tiny")
        self.backbone.project = nn.Conv2d(1, 3, 1)
        self.latent, self.decoder = nn.Linear(16, 12), Decoder(12)

    def forward(self, x):
        return self.decoder(self.latent(self.backbone(self.backbone.project(x))))


class ResnetAutoencoder(nn.Module):
    """Convolutions of stride 2 with residual blocks, a dense layer to the latent, the decoder."""

    def __init__(self):
        super().__init__()
        relu, self.backbone, widths = nn.ReLU(), nn.Module(), (1, 4, 8)
        convs = [nn.Conv2d(a, b, 3, 2, 1, bias=False) for a, b in zip(widths, widths[1:], strict=False)]
        self.backbone.stages = nn.ModuleList([Stage(conv, conv.out_channels, relu) for conv in convs])
        self.backbone.dense = nn.Linear(8 * 8 * 10, 16)
        self.decoder = Decoder(16)

    def forward(self, x):
        for stage in self.backbone.stages:
            x = stage(x)
        return self.decoder(self.backbone.dense(rows(x)))


def autoencoder_vit(batch):
    net, x = filled(VitAutoencoder()), images(batch)
    return step(net, F.mse_loss(net(x), x))


def autoencoder_resnet(batch):
    net, x = filled(ResnetAutoencoder()), images(batch)
    return step(net, F.l1_loss(net(x), x))


class Generator(nn.Module):
    """CycleGAN's, of one halving and one block."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.stem = nn.Conv2d(1, 4, 7, padding=3, bias=False)
        self.backbone.downs = nn.ModuleList([nn.Conv2d(4, 8, 3, 2, 1, bias=False)])
        block = nn.Module()
        block.conv1, block.conv2 = (nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(2))
        self.backbone.blocks = nn.ModuleList([block])
        self.ups = nn.ModuleList([nn.ConvTranspose2d(8, 4, 4, 2, 1, bias=False)])
        self.last = nn.Conv2d(4, 1, 7, padding=3)

    def layers(self, x):
        """The map of the halving convolution, and that after the block."""
        x = F.relu(F.instance_norm(self.backbone.stem(x)))
        down = self.backbone.downs[0](x)
        x, block = F.relu(F.instance_norm(down)), self.backbone.blocks[0]
        return [down, x + F.instance_norm(block.conv2(F.relu(F.instance_norm(block.conv1(x)))))]

    def forward(self, x):
        return torch.tanh(self.last(F.relu(F.instance_norm(self.ups[0](self.layers(x)[-1])))))


class Patches(nn.Module):
    """A perceptron for the patches of each map: [N,P,C] -> [N,P,D] of unit length."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.ModuleList([nn.Linear(8, 6) for _ in range(2)])
        self.fc2 = nn.ModuleList([nn.Linear(6, 6) for _ in range(2)])

    def forward(self, maps):
        patches = [x.flatten(2).transpose(1, 2) for x in maps]
        return [F.normalize(b(F.relu(a(x))), dim=2) for a, b, x in zip(self.fc1, self.fc2, patches, strict=True)]


class Discriminator(nn.Module):
    """PatchGAN; an odd zero of padding stands at the bottom and right."""

    def __init__(self):
        super().__init__()
        widths = (1, 8, 8, 8, 8)
        self.convs = nn.ModuleList([nn.Conv2d(widths[i], widths[i + 1], 4, 2 if i < 3 else 1, bias=i == 0) for i in range(4)])
        self.head = nn.Conv2d(8, 1, 4)

    def forward(self, x):
        for i, conv in enumerate(self.convs):
            x = conv(F.pad(x, (1, 1, 1, 1) if i < 3 else (1, 2, 1, 2)))
            x = F.leaky_relu(F.instance_norm(x) if i else x, 0.2)
        return self.head(F.pad(x, (1, 2, 1, 2)))


def patch_nce(queries, keys):
    """Of every patch among those of its image, temperature 0.05; the mean over the maps."""
    found = []
    for q, k in zip(queries, keys, strict=True):
        logits = q @ k.transpose(1, 2) / 0.05
        found.append(F.cross_entropy(logits.flatten(0, 1), torch.arange(q.shape[1]).repeat(len(q))))
    return sum(found) / len(found)


def dclgan(batch):
    """First the generators, to whom the discriminators are fixed, then these, to whom the images are, as in DCLGAN's code."""
    parts = {"generator": Generator, "projection": Patches, "discriminator": Discriminator}
    domains = {domain: nn.ModuleDict({name: part() for name, part in parts.items()}) for domain in ("generated", "real")}
    net = filled(nn.ModuleDict(domains))
    given = {"generated": tensor(batch["generated"]["image"]), "real": tensor(batch["reference"]["image"])}
    fakes, sums, discriminators = {}, {"adversarial": 0, "nce": 0, "identity": 0}, [net[name].discriminator for name in given]
    for discriminator in discriminators:
        discriminator.requires_grad_(False)
    for source, target in (("generated", "real"), ("real", "generated")):
        generator, fakes[target] = net[source].generator, net[source].generator(given[source])
        score = net[target].discriminator(fakes[target])
        sums["adversarial"] += F.mse_loss(score, torch.ones_like(score)) / 2
        keys = [k.detach() for k in net[source].projection(generator.layers(given[source]))]
        sums["nce"] += patch_nce(net[target].projection(net[target].generator.layers(fakes[target])), keys) / 2
        sums["identity"] += F.l1_loss(generator(given[target]), given[target]) / 2
    players = 1 * sums["adversarial"] + 2 * sums["nce"] + 1 * sums["identity"]
    players.backward()
    for discriminator in discriminators:
        discriminator.requires_grad_(True)
    judged = 0
    for domain, images in given.items():
        real, fake = net[domain].discriminator(images), net[domain].discriminator(fakes[domain].detach())
        judged += (F.mse_loss(real, torch.ones_like(real)) + F.mse_loss(fake, torch.zeros_like(fake))) / 2 / 2
    judged.backward()
    return [entry(net, players + judged, **sums, discriminator=judged)]


# Challengers and SDVA


class Classifier(nn.Module):
    """A backbone and a head, with a layer between where it is given."""

    def __init__(self, name, width, classes, hidden=0):
        super().__init__()
        self.backbone, self.head = backbone(name), nn.Linear(hidden or width, classes)
        self.hidden = nn.Linear(width, hidden) if hidden else None

    def forward(self, x):
        x = self.backbone(x)
        return self.head(x if self.hidden is None else F.relu(self.hidden(x)))


def challengers(batch):
    net = filled(Classifier("resnetv2_tiny", 64, 2, hidden=12))
    return step(net, F.cross_entropy(net(images(batch)), torch.tensor(batch["real"]["label"]).long()))


def sdva(batch):
    net = filled(Classifier("efficientnet_tiny", 24, 6))
    labels = torch.tensor([*batch["generated"]["label"], *[5] * len(batch["real"]["label"])])
    return step(net, F.cross_entropy(net(images(batch)), labels.long()))


def pseudo_labels():
    """Which images join, and their labels: nine tenths of the members vote for them, at most 5 a class."""
    probabilities = torch.tensor(drawn.votes(), dtype=torch.float64)[:, :, :5].softmax(2)
    votes = F.one_hot(probabilities.argmax(2), 5).sum(0)
    mean, joined = probabilities.mean(0), []
    for k in range(5):
        sure = [i for i in range(votes.shape[0]) if votes[i, k] >= 0.9 * drawn.MEMBERS]
        joined += [(i, k) for i in sorted(sure, key=lambda i: (-votes[i, k], -mean[i, k]))[:5]]
    return sorted(joined)


SINGLE = (
    contrastive_sampled,
    contrastive_all,
    cross_attention,
    canet,
    reidentification,
    autoencoder_vit,
    autoencoder_resnet,
    dclgan,
    challengers,
    sdva,
)


def rounded(found):
    """Floats to 8 digits."""
    if isinstance(found, dict):
        return {name: rounded(value) for name, value in found.items()}
    if isinstance(found, list | tuple):
        return [rounded(value) for value in found]
    return float(f"{found:.8g}") if isinstance(found, float) else int(found)


def main():
    found = {function.__name__: function(drawn.batch(function.__name__)) for function in SINGLE}
    found["moco"] = momentum_contrast(Encoder(), "none")
    found["taozi_experts"] = momentum_contrast(Experts(), "pool", of_backbone=0.1)
    found["pseudo_labels"] = pseudo_labels()
    text = json.dumps(rounded(found), indent=1, sort_keys=True)
    text = re.sub(r"\[[^][{}]*]", lambda numbers: " ".join(numbers[0].split()), text)  # a digest is a line
    drawn.GOLDEN.write_text(text + "\n")


if __name__ == "__main__":
    main()
