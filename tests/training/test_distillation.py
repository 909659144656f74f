"""DistillationLoss: the formula and its gradient, hints, and that the teacher stays out of everything."""

import copy
import io
import pickle
import weakref

import pytest
import secateur
import torch
import torch.utils.checkpoint
from secateur import DistillationLoss, Error, Magnitude, prune
from secateur.nn import Quantize
from torch import nn

GENERATOR = torch.Generator().manual_seed(1)
X = torch.randn(6, 1, 8, 8, generator=GENERATOR)
LABELS = torch.tensor([0, 1, 2, 3, 4, 0])


def make(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(144, 5),
    )


class Fixed(nn.Module):
    """A network that answers the same to everything."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    def forward(self, x):
        return self.logits


def by_hand(z, t, labels, temperature, alpha):
    """The loss written out for ``[n, C]`` logits, and its gradient for z."""
    p, q = (torch.exp(v / temperature) / torch.exp(v / temperature).sum(1, keepdim=True) for v in (t, z))
    y = nn.functional.one_hot(labels, z.shape[1]).to(z)
    plain = torch.exp(z) / torch.exp(z).sum(1, keepdim=True)
    n = len(z)
    soft = (p * (p.log() - q.log())).sum() / n
    hard = -(y * plain.log()).sum() / n
    value = alpha * temperature**2 * soft + (1 - alpha) * hard
    gradient = (alpha * temperature * (q - p) + (1 - alpha) * (plain - y)) / n
    return value, gradient


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_value_and_gradient_are_those_of_the_formula(temperature, alpha):
    z, t = torch.randn(2, 6, 5, dtype=torch.float64, generator=GENERATOR)
    z.requires_grad_()
    loss = DistillationLoss(Fixed(t), temperature, alpha)(z, X, LABELS)
    loss.backward()
    value, gradient = by_hand(z.detach(), t, LABELS, temperature, alpha)
    torch.testing.assert_close(loss.detach(), value)
    torch.testing.assert_close(z.grad, gradient)


def test_gradcheck_with_positions_and_hints():
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Conv1d(2, 3, 1), nn.Tanh(), nn.Conv1d(3, 4, 1)).double()
    distill = DistillationLoss(teacher, 2.0, 0.4, hints=["0"], hint_weight=0.7)
    student = copy.deepcopy(teacher)
    for p in student.parameters():
        p.data += 0.1 * torch.randn_like(p)
    labels = torch.tensor([[0, 1, 2], [3, -100, 1]])
    x = torch.randn(2, 2, 3, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in student.named_parameters()]

    class With(nn.Module):
        def __init__(self, values):
            super().__init__()
            self.network, self.values = student, values
            self.add_module("0", student[0])

        def forward(self, given):
            return torch.func.functional_call(student, dict(zip(names, self.values, strict=True)), given)

    assert torch.autograd.gradcheck(
        lambda *values: distill(With(values), x.detach(), labels), tuple(student.parameters())
    )


def test_t_squared_keeps_the_size_of_the_gradient():
    z, t = 0.1 * torch.randn(2, 6, 5, dtype=torch.float64, generator=GENERATOR)
    norms = []
    for temperature in (4.0, 64.0):
        leaf = z.clone().requires_grad_()
        DistillationLoss(Fixed(t), temperature)(leaf, X).backward()
        norms.append(float(leaf.grad.norm()))
    assert norms[1] == pytest.approx(norms[0], rel=0.05)  # small logits: both are near the limit of T -> infinity


def test_without_labels_the_soft_part_counts_whole():
    z, t = torch.randn(2, 6, 5, generator=GENERATOR)
    distill = DistillationLoss(Fixed(t), 3.0, alpha=0.2)
    alone = DistillationLoss(Fixed(t), 3.0, alpha=1.0)(z, X, LABELS)
    torch.testing.assert_close(distill(z, X), alone)
    torch.testing.assert_close(distill(t, X), torch.tensor(0.0), atol=1e-6, rtol=0)  # float32 sums of terms below 1


def test_labels_hard_soft_and_of_every_integer_type():
    z, t = torch.randn(2, 6, 5, generator=GENERATOR)
    distill = DistillationLoss(Fixed(t))
    expected = distill(z, X, LABELS)
    for labels in (LABELS.to(torch.uint8), LABELS.int(), nn.functional.one_hot(LABELS, 5).double()):
        torch.testing.assert_close(distill(z, X, labels), expected)
    smooth = 0.9 * nn.functional.one_hot(LABELS, 5) + 0.02
    got = DistillationLoss(Fixed(t), alpha=0.0)(z, X, smooth)
    torch.testing.assert_close(got, nn.functional.cross_entropy(z, LABELS, label_smoothing=0.1))


def test_positions_are_samples():
    z, t = torch.randn(2, 3, 5, 2, 4, generator=GENERATOR)
    labels = torch.randint(0, 5, (3, 2, 4), generator=GENERATOR)

    def flat(v):
        return v.movedim(1, -1).reshape(-1, 5)

    got = DistillationLoss(Fixed(t), 2.0)(z, X, labels)
    expected, _ = by_hand(flat(z), flat(t), labels.reshape(-1), 2.0, 0.5)
    torch.testing.assert_close(got, expected)
    labels[1] = -100  # left out of both parts
    got = DistillationLoss(Fixed(t), 2.0)(z, X, labels)
    rows = torch.tensor([0, 2])
    torch.testing.assert_close(got, DistillationLoss(Fixed(t[rows]), 2.0)(z[rows], X, labels[rows]))
    assert float(DistillationLoss(Fixed(t))(z, X, torch.full_like(labels, -100))) == 0


@pytest.mark.parametrize("where", ["student", "teacher"])
def test_nan_comes_through(where):
    z, t = torch.randn(2, 6, 5, generator=GENERATOR)
    (z if where == "student" else t)[2, 3] = float("nan")
    assert DistillationLoss(Fixed(t))(z, X, LABELS).isnan()


def test_a_class_that_both_rule_out_gives_no_nan():
    z, t = torch.randn(2, 6, 5, generator=GENERATOR)
    z[:, 1] = t[:, 1] = -float("inf")
    z.requires_grad_()
    loss = DistillationLoss(Fixed(t))(z, X, torch.zeros(6, dtype=torch.int64))
    loss.backward()
    rest = [0, 2, 3, 4]
    expected, _ = by_hand(z.detach()[:, rest], t[:, rest], torch.zeros(6, dtype=torch.int64), 4.0, 0.5)
    torch.testing.assert_close(loss.detach(), expected)
    assert bool(z.grad.isfinite().all())


def test_a_part_without_weight_is_left_out():
    z, t = torch.randn(2, 6, 5, generator=GENERATOR)
    z[:, 4] = -float("inf")  # the divergence is infinite, and so is the cross entropy of label 4
    few = LABELS.clamp_max(3)
    torch.testing.assert_close(DistillationLoss(Fixed(t), alpha=0)(z, X, few), nn.functional.cross_entropy(z, few))
    assert bool(DistillationLoss(Fixed(z), alpha=1)(t, X, LABELS).isfinite())
    assert bool(DistillationLoss(Fixed(z), alpha=1)(z, X, LABELS) == 0)


def test_the_teacher_is_a_frozen_copy():
    model = make().train()
    state = copy.deepcopy(model.state_dict())
    distill = DistillationLoss(model)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    with torch.no_grad():
        expected = copy.deepcopy(model).eval()(X)
        for p in model.parameters():
            p.zero_()
    distill.train()  # reaches no teacher: its dropout and batch statistics stay off
    z = torch.randn(6, 5, requires_grad=True)
    loss = distill(z, X, LABELS)
    loss.backward()
    torch.testing.assert_close(loss.detach(), by_hand(z.detach(), expected, LABELS, 4.0, 0.5)[0])
    for name, value in distill.teacher.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert all(p.grad is None and not p.requires_grad for p in distill.teacher.parameters())
    assert not any(m.training for m in distill.teacher.modules())


def test_the_teacher_is_in_no_list():
    distill = DistillationLoss(make())
    distill.teacher = make(3)
    model = nn.Module()
    model.net, model.distill = make(), distill
    for holder in (distill, model):
        own = {id(p) for p in distill.teacher.parameters()}
        assert not own & {id(p) for p in holder.parameters()}
        assert not any(m is distill.teacher for m in holder.modules())
    assert not distill.state_dict()
    assert set(model.state_dict()) == {f"net.{key}" for key in make().state_dict()}
    model.train()
    assert not distill.teacher.training


def test_no_gradient_goes_through_the_teacher():
    x, z = X.clone().requires_grad_(), torch.randn(6, 5, requires_grad=True)
    DistillationLoss(make())(z, x, LABELS).backward()
    assert x.grad is None


def test_nothing_is_kept_from_a_call():
    distill = DistillationLoss(make(), hints=["0"])
    kept = []
    distill.teacher[0].register_forward_hook(lambda m, a, out: kept.append(weakref.ref(out)))
    student = make(1)
    student[5].register_forward_hook(lambda m, a, out: kept.append(weakref.ref(out)))
    before = set(vars(distill))
    loss = distill(student, X, LABELS)
    del loss
    assert [ref() for ref in kept] == [None, None]
    assert set(vars(distill)) == before


def test_devices_and_dtypes_follow():
    distill = DistillationLoss(make())
    z = torch.randn(6, 5)
    expected = distill(z, X, LABELS)
    assert expected.dtype == torch.float32
    torch.testing.assert_close(distill(z.double(), X.double(), LABELS).float(), expected)  # x is cast for the teacher
    assert distill.double() is distill
    assert {p.dtype for p in distill.teacher.parameters()} == {torch.float64}
    torch.testing.assert_close(distill(z, X, LABELS), expected)
    distill.to("meta")
    assert {p.device.type for p in distill.teacher.parameters()} == {"meta"}


def test_the_teacher_follows_x_to_its_device():
    distill = DistillationLoss(make())
    loss = distill(torch.empty(6, 5, device="meta"), X.to("meta"), LABELS.to("meta"))  # a device that all machines have
    assert loss.device.type == "meta"
    assert {p.device.type for p in distill.teacher.parameters()} == {"meta"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_sums_in_float32(dtype):
    z, t = (20 * torch.randn(2, 6, 5, generator=GENERATOR)).to(dtype)
    z.requires_grad_()
    loss = DistillationLoss(Fixed(t), temperature=300.0)(z, X, LABELS)  # T^2 is beyond float16
    loss.backward()
    assert loss.dtype == torch.float32
    value, gradient = by_hand(z.detach().float(), t.float(), LABELS, 300.0, 0.5)
    torch.testing.assert_close(loss.detach(), value, rtol=1e-3, atol=1e-3)  # T^2 = 9e4 times float32's 1e-7 a term
    torch.testing.assert_close(z.grad.float(), gradient, rtol=0.02, atol=2e-3)  # the gradient itself is half precision


def test_autocast():
    student, distill = make(1), DistillationLoss(make(), hints=["0"])
    student[3].p = 0.0
    plain = distill(student, X, LABELS)
    with torch.autocast("cpu", torch.bfloat16):
        loss = distill(student, X, LABELS)
    assert loss.dtype == torch.float32
    loss.backward()
    torch.testing.assert_close(loss, plain, rtol=0.03, atol=0)  # bfloat16 has 8 bits
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())


# ---- hints ----------------------------------------------------------------------------------------------------------


def test_hints_are_mean_squared_errors_before_what_works_in_place():
    teacher, student = make(), make(1)
    distill = DistillationLoss(teacher, hints={"0": "0", "1": "1"}, hint_weight=0.3)
    student.eval()
    got = distill(student, X, LABELS)
    got.backward()
    gradient = student[0].weight.grad.clone()
    student.zero_grad()
    teacher.eval()
    plain = DistillationLoss(teacher)(student, X, LABELS)
    terms = [nn.functional.mse_loss(student[:n](X), teacher[:n](X).detach()) for n in (1, 2)]
    expected = plain + 0.3 * (terms[0] + terms[1]) / 2
    torch.testing.assert_close(got, expected)
    expected.backward()
    torch.testing.assert_close(gradient, student[0].weight.grad, rtol=1e-4, atol=1e-7)  # another order of sums


def test_hints_between_layers_of_other_names():
    torch.manual_seed(0)
    student = nn.ModuleDict({"first": nn.Linear(4, 3), "last": nn.Linear(3, 2)})
    student.forward = lambda x: student["last"](student["first"](x))
    teacher = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    x = torch.randn(5, 4)
    distill = DistillationLoss(teacher, alpha=0.0, hints={"0": "first"}, hint_weight=1)
    labels = torch.zeros(5, dtype=torch.int64)
    expected = nn.functional.cross_entropy(student(x), labels)
    expected = expected + nn.functional.mse_loss(student["first"](x), teacher[0](x))
    torch.testing.assert_close(distill(student, x, labels), expected)


def hooks(*models):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for model in models for m in model.modules())


def test_hooks_are_gone_after_a_call_and_after_an_error():
    student, distill = make(1), DistillationLoss(make(), hints=["0", "5"])
    counted = []
    student[5].register_forward_hook(lambda m, a, out: counted.append(hooks(student)))
    distill(student, X, LABELS)
    assert counted == [3]  # this one, and the two of the call
    assert hooks(student, distill.teacher) == 1
    with pytest.raises(RuntimeError):
        distill(student, X[:, :, :3], LABELS)
    assert hooks(student, distill.teacher) == 1


def test_a_hint_of_weight_zero_is_nothing():
    student = make(1).eval()
    hinted = DistillationLoss(make(), hints=["0"], hint_weight=0)(student, X, LABELS)
    assert torch.equal(hinted, DistillationLoss(make())(student, X, LABELS))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.pair, self.last = nn.Linear(4, 4), Pair(), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.pair(self.layer(self.layer(x)))[0])


class Pair(nn.Module):
    def forward(self, x):
        return x, x


def test_refuses_hints_that_cannot_be_followed():
    x = torch.randn(2, 4)
    model = Twice()
    with pytest.raises(Error, match=r"hints must name layers that run once, the teacher's 'layer' ran 2 times"):
        DistillationLoss(model, hints=["layer"])(model, x)
    with pytest.raises(Error, match=r"one floating-point tensor, the teacher's 'pair' gave tuple"):
        DistillationLoss(model, hints=["pair"])(model, x)
    with pytest.raises(Error, match=r"layers of the student, got 'last'; it has 0, 1"):
        DistillationLoss(model, hints=["last"])(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)), x)
    narrow = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3))
    wide = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    message = r"layers of one output shape, the teacher's '0' gave \[2, 5\], the student's '0' \[2, 3\]"
    with pytest.raises(Error, match=message):
        DistillationLoss(wide, hints=["0"])(narrow, x)
    with pytest.raises(Error, match="student must be the network where there are hints, got Tensor"):
        DistillationLoss(wide, hints=["0"])(narrow(x), x)
    narrow[0].requires_grad_(False)
    with pytest.raises(Error, match="hints must name layers that learn, no gradient reaches the student's '0'"):
        DistillationLoss(narrow, hints=["0"])(narrow, x)
    with torch.no_grad():  # to look at, on validation data: nothing is to learn
        DistillationLoss(narrow, hints=["0"])(narrow, x)


# ---- bad input ------------------------------------------------------------------------------------------------------


class Uncopied(nn.Module):
    def __deepcopy__(self, memo):
        raise TypeError("not me")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((3,), r"teacher must be a torch\.nn\.Module, got int"),
        ((Uncopied(),), r"teacher must be a module that copy\.deepcopy copies, it says: not me"),
        ((make(), 0), "temperature must be a number from 1e-06 to 1e\\+06, got 0"),
        ((make(), -1), "temperature must be a number from 1e-06 to 1e\\+06, got -1"),
        ((make(), float("nan")), "temperature must be a number from 1e-06 to 1e\\+06, got nan"),
        ((make(), 4.0, 1.1), r"alpha must be a number from 0 to 1, got 1\.1"),
        ((make(), 4.0, 0.5, ["0", "conv2"]), "hints must name layers of the teacher, got 'conv2'; it has 0, 1, 2"),
        ((make(), 4.0, 0.5, [""]), "hints must name layers of the teacher, got ''"),
        ((make(), 4.0, 0.5, "0"), "hints must be a list of layers' names or a mapping between them, got '0'"),
        ((make(), 4.0, 0.5, [0]), r"hints must be a list of layers' names or a mapping between them, got \[0\]"),
        ((make(), 4.0, 0.5, {"0": 0}), "hints must be a list of layers' names or a mapping"),
        ((make(), 4.0, 0.5, 5), "hints must be a list of layers' names or a mapping between them, got 5"),
        ((make(), 4.0, 0.5, None, -1), "hint_weight must be a number from 0 to inf, got -1"),
    ],
)
def test_refuses(arguments, match):
    with pytest.raises(Error, match="DistillationLoss: " + match):
        DistillationLoss(*arguments)


@pytest.mark.parametrize(
    ("student", "labels", "match"),
    [
        (torch.zeros(6, 4), None, r"the student's logits must be \[6, 5\] like the teacher's, got \[6, 4\]"),
        (torch.zeros(1, 5), None, r"the student's logits must be \[6, 5\] like the teacher's, got \[1, 5\]"),
        (
            torch.zeros(6),
            None,
            r"logits must be floating point \[N, C, \.\.\.\], got torch\.float32 \[6\]",
        ),
        (torch.zeros(6, 5, dtype=torch.int64), None, r"floating point \[N, C, \.\.\.\], got torch\.int64 \[6, 5\]"),
        ([1], None, "the student's logits must be one tensor, got list"),
        (torch.zeros(6, 5), [0] * 6, "labels must be a tensor or None, got list"),
        (torch.zeros(6, 5), LABELS[:5], r"labels must be integers \[6\] or shares \[6, 5\], got torch\.int64 \[5\]"),
        (torch.zeros(6, 5), LABELS[:, None], r"labels must be integers \[6\] or shares .* got torch\.int64 \[6, 1\]"),
        (torch.zeros(6, 5), LABELS > 0, r"labels must be integers \[6\] or shares .* got torch\.bool \[6\]"),
        (torch.zeros(6, 5), LABELS.float(), r"labels in shares must be \[6, 5\] like the logits, got \[6\]"),
        (torch.zeros(6, 5), LABELS + 1, r"labels must be classes from 0 to 4 \(or -100\), got 5"),
        (torch.zeros(6, 5), LABELS - 1, r"labels must be classes from 0 to 4 \(or -100\), got -1"),
    ],
)
@pytest.mark.parametrize("alpha", [0.5, 1.0])  # labels that do not count are looked at, too
def test_refuses_in_a_call(student, labels, match, alpha):
    with pytest.raises(Error, match="DistillationLoss: .*" + match):
        DistillationLoss(make(), alpha=alpha)(student, X, labels)


def test_refuses_a_teacher_that_gives_no_logits():
    with pytest.raises(Error, match="the teacher's logits must be one tensor, got tuple"):
        DistillationLoss(Pair())(torch.zeros(6, 5), X)


# ---- with the rest of the library -----------------------------------------------------------------------------------


def test_a_compiled_teacher():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 5)).eval()
    student = make(1).eval()
    expected = DistillationLoss(model)(student, X, LABELS)
    loss = DistillationLoss(secateur.compile(model, X))(student, X, LABELS)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)  # another order of float32 sums
    loss.backward()
    assert all(p.grad is not None for p in student.parameters())


class Checkpointed(nn.Module):
    def __init__(self, network, reentrant):
        super().__init__()
        self.network, self.reentrant = network, reentrant

    def forward(self, x):
        x = torch.utils.checkpoint.checkpoint(self.network[:2], x, use_reentrant=self.reentrant)
        return self.network[2:](x)


def test_hints_and_checkpoints():
    student = make(1).eval()
    DistillationLoss(make(), hints=["0"])(student, X, LABELS).backward()
    expected = student[0].weight.grad.clone()
    student.zero_grad()
    distill = DistillationLoss(make(), hints={"0": "network.0"})
    distill(Checkpointed(student, False), X, LABELS).backward()
    torch.testing.assert_close(student[0].weight.grad, expected)
    with pytest.raises(Error, match=r"no gradient reaches the student's 'network\.0'"):  # its first pass records none
        distill(Checkpointed(student, True), X.clone().requires_grad_(), LABELS)


def test_copies_and_pickles_work_alike():
    distill = DistillationLoss(make(), 3.0, 0.7, ["0"], 0.2)
    student = make(1).eval()
    expected = distill(student, X, LABELS)
    file = io.BytesIO()
    torch.save(distill, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for other in (copy.deepcopy(distill), pickle.loads(pickle.dumps(distill)), loaded):
        assert torch.equal(other(student, X, LABELS), expected)
        assert other.teacher is not distill.teacher
        assert not list(other.modules())[1:]
        assert not any(p.requires_grad for p in other.teacher.parameters())
    assert "temperature=3, alpha=0.7, hints={'0': '0'}" in repr(distill)


class Fake(nn.Module):
    """A layer of 4-bit weights as training sees it: weights and outputs rounded, gradients straight through."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.output = layer, Quantize(0.05, 128)

    def forward(self, x):
        w = self.layer.weight
        scale = (w.detach().abs().amax() / 7).clamp_min(1e-8)
        rounded = torch.fake_quantize_per_tensor_affine(w, float(scale), 0, -7, 7)
        return self.output(nn.functional.linear(x, rounded, self.layer.bias))


@pytest.mark.parametrize("kind", ["pruned", "quantized"])
def test_a_student_comes_closer_to_its_teacher(kind):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4))
    model[2].weight.data *= 4
    x = torch.randn(256, 8)
    distill = DistillationLoss(model, temperature=2.0, hints=["0"], hint_weight=0.1)
    if kind == "pruned":
        prune(model, Magnitude(0.8))
        zeros = [m.weight == 0 for m in (model[0], model[2])]
    else:
        for index in (0, 2):  # so far off that rounding is not all that there is to learn
            model[index].weight.data += 0.3 * torch.randn_like(model[index].weight)
            model[index] = Fake(model[index])
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(40):
        loss = distill(model, x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    if kind == "pruned":
        assert not any(m.weight[was].any() for m, was in zip((model[0], model[2]), zeros, strict=True))
