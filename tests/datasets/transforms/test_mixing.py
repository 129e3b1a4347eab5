from __future__ import annotations

import numpy as np
import pytest
import torch

from datasets.transforms.mixing import MixingRule, cutmix_boxes, lanes_with_cutmix, mixup_weights
from tests.support.mixing import cutmix, mix, mixup


def batch(lanes: int, per_lane: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    count = lanes * per_lane
    images = torch.arange(count, dtype=torch.float32).reshape(-1, 1, 1, 1).expand(-1, 3, 4, 4).contiguous()
    stream = torch.cat([torch.arange(per_lane) * 6 + lane for lane in range(lanes)])
    return images, torch.eye(count), stream


def test_mixup_blends_with_the_mirror_in_the_lane() -> None:
    images, targets, stream = batch(lanes=2, per_lane=4)
    mixed, labels = mixup(images, targets, alpha=0.5, seed=3, stream_index=stream, num_lanes_of_rank=2)
    own = mixup_weights(stream.numpy(), alpha=0.5, seed=3)
    partner = [3, 2, 1, 0, 7, 6, 5, 4]
    for row, other in enumerate(partner):
        assert mixed[row, 0, 0, 0].item() == pytest.approx(
            own[row].item() * row + (1 - own[row].item()) * other, abs=1e-5
        )
        assert labels[row, row].item() == pytest.approx(own[row].item(), abs=1e-6)
        assert labels[row, other].item() == pytest.approx(1 - own[row].item(), abs=1e-6)


def test_mixup_is_the_same_on_one_rank_and_on_two() -> None:
    images, targets, stream = batch(lanes=2, per_lane=4)
    whole = mixup(images, targets, alpha=0.3, seed=3, stream_index=stream, num_lanes_of_rank=2)[0]
    halves = [
        mixup(images[part], targets[part], alpha=0.3, seed=3, stream_index=stream[part], num_lanes_of_rank=1)[0]
        for part in (slice(0, 4), slice(4, 8))
    ]
    assert torch.equal(whole, torch.cat(halves))


def test_mixup_weights_are_betas_larger_half() -> None:
    weights = mixup_weights(np.arange(4000), alpha=1.0, seed=1)
    assert weights.min() >= 0.5
    assert weights.mean().item() == pytest.approx(0.75, abs=0.01)  # uniform on [0.5, 1]
    assert not torch.equal(weights, mixup_weights(np.arange(4000), alpha=1.0, seed=2))


def test_mixup_without_alpha_or_partner() -> None:
    images, targets, stream = batch(lanes=4, per_lane=1)
    assert mixup(images, targets, alpha=0, seed=3, stream_index=stream, num_lanes_of_rank=4)[0] is images
    with pytest.raises(ValueError, match="a lane has 1 sample"):
        mixup(images, targets, alpha=0.2, seed=3, stream_index=stream, num_lanes_of_rank=4)


def test_cutmix_fills_a_box_from_the_mirror_and_blends_targets_by_area() -> None:
    _, targets, stream = batch(lanes=2, per_lane=4)
    images = torch.arange(8.0).reshape(-1, 1, 1, 1).expand(-1, 3, 20, 30).contiguous()
    mixed, labels = cutmix(images, targets, alpha=1.0, seed=3, stream_index=stream, num_lanes_of_rank=2)
    boxes = cutmix_boxes(stream.numpy(), alpha=1.0, seed=3, shape=(20, 30))
    for row, other in enumerate([3, 2, 1, 0, 7, 6, 5, 4]):
        top, bottom, left, right = boxes[row].tolist()
        expected = images[row].clone()
        expected[:, top:bottom, left:right] = other
        assert torch.equal(mixed[row], expected)
        taken = (bottom - top) * (right - left) / 600
        assert labels[row, other].item() == pytest.approx(taken, abs=1e-6)
        assert labels[row, row].item() == pytest.approx(1 - taken, abs=1e-6)
    dense = cutmix(images, images[:, :1], alpha=1.0, seed=3, stream_index=stream, num_lanes_of_rank=2)[1]
    assert torch.equal(dense, mixed[:, :1])


def test_cutmix_is_the_same_on_one_rank_and_on_two_and_off_at_zero() -> None:
    images, targets, stream = batch(lanes=2, per_lane=4)
    whole = cutmix(images, targets, alpha=0.5, seed=3, stream_index=stream, num_lanes_of_rank=2)[0]
    halves = [
        cutmix(images[part], targets[part], alpha=0.5, seed=3, stream_index=stream[part], num_lanes_of_rank=1)[0]
        for part in (slice(0, 4), slice(4, 8))
    ]
    assert torch.equal(whole, torch.cat(halves))
    assert cutmix(images, targets, alpha=0, seed=3, stream_index=stream, num_lanes_of_rank=2)[0] is images
    with pytest.raises(ValueError, match=r"cutmix_alpha is 0\.5, but a lane has 1 sample"):
        cutmix(images, targets, alpha=0.5, seed=3, stream_index=stream, num_lanes_of_rank=8)
    areas = cutmix_boxes(np.arange(3000), alpha=1.0, seed=1, shape=(200, 200)).double()
    share = ((areas[:, 1] - areas[:, 0]) * (areas[:, 3] - areas[:, 2]) / 40000).mean()
    assert 0.2 < share < 0.5  # half of the image, less what is cut at the borders


def test_with_both_each_lane_of_a_batch_gets_one_of_them_whatever_the_ranks() -> None:
    _, targets, stream = batch(lanes=6, per_lane=4)
    images = torch.randn(24, 3, 20, 30)
    both = {"mixup_alpha": 0.7, "cutmix_alpha": 0.4, "seed": 3}
    mixed, labels = mix(images, targets, stream_index=stream, num_lanes_of_rank=6, **both)
    rest = {"seed": 3, "stream_index": stream, "num_lanes_of_rank": 6}
    one, two = mixup(images, targets, alpha=0.7, **rest), cutmix(images, targets, alpha=0.4, **rest)
    chosen = lanes_with_cutmix(stream.numpy(), seed=3, num_lanes=6)
    assert 0 < chosen.sum() < 24
    for row, is_cut in enumerate(chosen.tolist()):
        assert chosen[row] == chosen[row // 4 * 4]
        assert torch.equal(mixed[row], (two if is_cut else one)[0][row])
        assert torch.equal(labels[row], (two if is_cut else one)[1][row])
    ranks = [
        mix(images[part], targets[part], stream_index=stream[part], num_lanes_of_rank=2, **both)
        for part in (slice(0, 8), slice(8, 16), slice(16, 24))
    ]
    assert torch.equal(mixed, torch.cat([images for images, _ in ranks]))
    shares = [lanes_with_cutmix(np.arange(12) + step * 12, seed=3, num_lanes=12).float().mean() for step in range(100)]
    assert 0.45 < sum(shares) / 100 < 0.55


@pytest.mark.parametrize(("mixup_alpha", "cutmix_alpha"), [(0.5, 0.0), (0.0, 0.5), (0.0, 0.0)])
def test_with_one_of_them_every_lane_gets_it(mixup_alpha: float, cutmix_alpha: float) -> None:
    images, targets, stream = batch(lanes=2, per_lane=4)
    rest = {"seed": 3, "stream_index": stream, "num_lanes_of_rank": 2}
    mixed = mix(images, targets, mixup_alpha=mixup_alpha, cutmix_alpha=cutmix_alpha, **rest)
    expected = mixup(images, targets, alpha=mixup_alpha, **rest)
    if cutmix_alpha:
        expected = cutmix(images, targets, alpha=cutmix_alpha, **rest)
    assert torch.equal(mixed[0], expected[0])
    assert torch.equal(mixed[1], expected[1])


@pytest.mark.parametrize("alpha", [0.1, 0.5, 2.0])
def test_weights_have_the_betas_variance(alpha: float) -> None:
    weights = mixup_weights(np.arange(4000), alpha=alpha, seed=1)
    variance = ((weights - 0.5) ** 2).mean().item()
    assert variance == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)


def test_a_part_is_mixed_as_it_is_in_the_whole_batch() -> None:
    images, targets, stream = torch.randn(24, 3, 16, 16), torch.eye(24), torch.arange(24)
    both = {"mixup_alpha": 0.7, "cutmix_alpha": 0.4}
    whole = mix(images, targets, seed=3, stream_index=stream, num_lanes_of_rank=4, **both)
    drawn = MixingRule(num_lanes=4, **both).draw(stream.numpy(), seed=3, shape=(16, 16))
    assert drawn is not None
    for rows in (slice(0, 10), slice(10, 24)):  # across lanes
        part = drawn.each(lambda one, rows=rows: one[rows])  # type: ignore[misc]
        assert torch.equal(part.of_pixels(images[rows], images[part.partners]), whole[0][rows])
        assert torch.equal(part.of_targets(targets[rows], targets[part.partners]), whole[1][rows])


def test_the_draws_of_a_seed_stay_as_they_are() -> None:
    """Else a run that is resumed by a newer version would go on with other images."""
    stream = np.array([5, 70_000, 3_000_000_000, 17])
    drawn = MixingRule(mixup_alpha=0.7, cutmix_alpha=0.4, num_lanes=2).draw(stream, seed=11, shape=(300, 300))
    assert drawn is not None
    assert drawn.blend is not None
    assert drawn.boxes is not None
    assert drawn.partners.tolist() == [1, 0, 3, 2]
    weights = [0.7456302642822266, 0.9630179405212402]
    assert drawn.blend.tolist() == [1, 1, *weights]  # the first lane has CutMix
    assert drawn.boxes.tolist() == [[128, 300, 23, 300], [0, 218, 0, 195], [0] * 4, [0] * 4]
    kept = 1 - torch.tensor([172 * 277, 218 * 195]).float() / 90_000
    assert drawn.own.tolist() == [*kept.tolist(), *weights]
