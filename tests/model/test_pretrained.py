from __future__ import annotations

import hashlib
import http.client
import io
import socket
import urllib.error
import urllib.request
from email.message import Message
from pathlib import Path

import huggingface_hub
import pytest
import torch
from torchvision import models

from infra.storage.failures import FailureClass, failure_class
from model.pretrained import PretrainedError, named_weights, package_file, timm_name

NAME = "efficientnet_v2_s-dd5fe13b.pth"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where PyTorch keeps what it has fetched: empty, and no network."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))

    def offline(url: str, timeout: float) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, name: None)
    return tmp_path / "checkpoints"


def test_a_package_carries_the_weights_of_lite0_and_of_a_u_net_with_it_as_its_encoder() -> None:
    assert named_weights("lite0", "efficientnet_lite0") == package_file()
    assert named_weights("lite0", "unet_efficientnet_lite0") == package_file()
    with pytest.raises(PretrainedError, match=r"not of resnet50: set --model\.name efficientnet_lite0"):
        named_weights("lite0", "resnet50")


@pytest.mark.parametrize(
    ("source", "model", "name"),
    [
        ("torchvision", "efficientnet_v2_s", NAME),
        ("torchvision", "unet_efficientnet_v2_s", NAME),
        ("timm", "efficientnet_v2_b0", "tf_efficientnetv2_b0.in1k.safetensors"),
        ("timm", "timm/resnet18", "resnet18.a1_in1k.safetensors"),
    ],
)
def test_what_is_cached_needs_no_network_and_what_is_not_says_where_to_put_it(
    source: str, model: str, name: str, cache: Path
) -> None:
    with pytest.raises(PretrainedError, match=rf"no route to host.*: put it at {cache / name}, or take --init-from"):
        named_weights(source, model)
    assert [*cache.iterdir()] == []
    (cache / name).write_bytes(b"weights")
    assert named_weights(source, model) == cache / name


class Answer(io.BytesIO):
    """What a server sends, and how many bytes it says that this is."""

    def __init__(self, data: bytes, length: int | None = None) -> None:
        super().__init__(data)
        self.headers = {"Content-Length": str(length or len(data))}


def test_weights_are_fetched_once_and_checked_by_the_digest_in_their_name(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def answer(url: str, timeout: float) -> Answer:
        asked.append(url)
        return Answer(b"something")

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    with pytest.raises(PretrainedError, match="another SHA-256 than its name says"):
        named_weights("torchvision", "efficientnet_v2_s")
    assert [*cache.iterdir()] == []
    digest = hashlib.sha256(b"something").hexdigest()[:8]
    weights = models.get_model_weights("efficientnet_v2_s").DEFAULT
    monkeypatch.setattr(models, "get_model_weights", lambda name: type("Own", (), {"DEFAULT": weights_at(digest)}))
    assert weights.url == asked[0]
    for _ in range(2):
        assert named_weights("torchvision", "efficientnet_v2_s").read_bytes() == b"something"
    assert len(asked) == 2


@pytest.mark.parametrize("fault", [None, http.client.BadStatusLine("nonsense")])
def test_a_download_that_breaks_off_is_no_file(
    fault: Exception | None, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(url: str, timeout: float) -> Answer:
        if fault:
            raise fault
        return Answer(b"some", length=1000)

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    with pytest.raises(PretrainedError, match="nonsense" if fault else "4 of 1000 bytes came"):
        named_weights("timm", "timm/resnet18")
    assert [*cache.iterdir()] == []


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (urllib.error.URLError(ConnectionRefusedError(111, "refused")), FailureClass.TRANSIENT),
        (urllib.error.URLError(TimeoutError("timed out")), FailureClass.TRANSIENT),
        (TimeoutError("read timed out"), FailureClass.TRANSIENT),
        (ConnectionResetError(104, "reset"), FailureClass.TRANSIENT),
        (http.client.IncompleteRead(b""), FailureClass.TRANSIENT),
        (urllib.error.HTTPError("https://a", 503, "busy", Message(), None), FailureClass.TRANSIENT),
        (urllib.error.HTTPError("https://a", 404, "none", Message(), None), FailureClass.OPERATOR),
        (urllib.error.URLError(socket.gaierror(-2, "unknown name")), FailureClass.OPERATOR),
        (PermissionError(13, "denied"), FailureClass.OPERATOR),
    ],
)
def test_a_fault_of_the_network_is_tried_again_and_a_refusal_is_not(
    fault: Exception, expected: FailureClass, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(url: str, timeout: float) -> Answer:
        raise fault

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    with pytest.raises(PretrainedError, match="can't be fetched from here") as error:
        named_weights("timm", "timm/resnet18")
    assert failure_class(error.value) is expected
    assert "\n" not in str(error.value)


def weights_at(digest: str) -> object:
    return type("Weights", (), {"url": f"https://example.org/efficientnet_v2_s-{digest}.pth"})


def test_a_model_without_published_weights_is_one_line(cache: Path) -> None:
    for source, model in (("torchvision", "efficientnet_v2_tiny"), ("timm", "swin_mini_16"), ("timm", "timm/nope")):
        with pytest.raises(PretrainedError, match=f"^{source} has no weights of {model}; --init-from"):
            named_weights(source, model)


def test_the_authors_weights_have_names_of_timm() -> None:
    names = {"efficientnet_b3": "tf_efficientnet_b3", "efficientnet_v2_b0": "tf_efficientnetv2_b0"}
    names |= {"efficientnet_lite0": "tf_efficientnet_lite0", "timm/resnet18": "resnet18"}
    assert {name: timm_name(name) for name in names} == names
