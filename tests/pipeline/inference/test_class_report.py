import torch

from pipeline.inference.class_report import class_rows


def test_class_rows_by_hand() -> None:
    confusion = torch.tensor([[3, 1, 0], [2, 4, 0], [0, 0, 0]])
    first, second, absent = class_rows(confusion, ("a", "b", "c"))
    assert (first.count, first.recall, first.precision) == (4, 3 / 4, 3 / 5)
    assert (second.f1, second.iou) == (8 / 11, 4 / 7)
    assert (absent.count, absent.recall, absent.precision, absent.f1, absent.iou) == (0, None, None, None, None)
