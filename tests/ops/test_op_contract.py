"""What holds for every operator, driven by the list of schemas: an operator without samples fails here by name."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from samples import SAMPLES, Sample
from secateur import Error, ops
from secateur.ops import calls, reference
from tensors import same_bits
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only, tree_unflatten
from torch.utils._pytree import tree_structure as structure_of

# The engine's operators run a program that is held elsewhere, so none of their calls stands alone:
# test_engine_program.py and test_engine_functions.py have them.
NAMES = sorted(
    name.removeprefix("secateur::")
    for name in torch._C._dispatch_get_all_op_names()
    if name.startswith("secateur::") and not name.startswith("secateur::engine_")
)
CALLS = [(name, sample) for name in NAMES for sample in SAMPLES.get(name, [])]
IDS = [f"{name}-{sample.name}" for name, sample in CALLS]
DIFFERENTIABLE = [(name, sample) for name, sample in CALLS if sample.differentiable]
DIFFERENTIABLE_IDS = [f"{name}-{sample.name}" for name, sample in DIFFERENTIABLE]
each_call = pytest.mark.parametrize(("name", "sample"), CALLS, ids=IDS)
each_differentiable = pytest.mark.parametrize(("name", "sample"), DIFFERENTIABLE, ids=DIFFERENTIABLE_IDS)


def overload(name: str) -> Any:
    return getattr(torch.ops.secateur, name).default


def tensors_of(result: Any) -> list[Tensor]:
    return [t for t in tree_leaves(result) if isinstance(t, Tensor)]


def arguments(sample: Sample, dtype: torch.dtype | None = None, grad: bool = False) -> list[Any]:
    args = list(sample.make(dtype or sample.dtypes[0]))
    if grad:
        for i in sample.differentiable:
            args[i].requires_grad_()
    return args


def test_the_list_of_operators_is_not_empty() -> None:
    assert {"mask_apply", "threshold_relu_", "mask_unpack"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_operator_has_samples(name: str) -> None:
    assert SAMPLES.get(name), f"secateur::{name} has no samples: add some to tests/support/samples.py"


def test_no_samples_without_an_operator() -> None:
    assert set(SAMPLES) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_operator_has_a_wrapper_and_a_twin_of_one_signature(name: str) -> None:
    wrapper, twin = getattr(ops, name), getattr(reference, name)
    assert inspect.signature(wrapper) == inspect.signature(twin)
    assert inspect.getdoc(wrapper), f"ops.{name} has no docstring"
    schema = [(a.name, a.default_value if a.has_default_value() else inspect.Parameter.empty)
              for a in overload(name)._schema.arguments]  # fmt: skip
    assert [(p.name, p.default) for p in inspect.signature(wrapper).parameters.values()] == schema


@pytest.mark.parametrize("name", NAMES)
def test_a_trailing_underscore_means_in_place(name: str) -> None:
    written = [a.alias_info is not None and a.alias_info.is_write for a in overload(name)._schema.arguments]
    assert written == [name.endswith("_"), *[False] * (len(written) - 1)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("key", ["CPU", "Meta"])
def test_every_operator_has_kernels(name: str, key: str) -> None:
    qualified = f"secateur::{name}"
    assert torch._C._dispatch_has_kernel_for_dispatch_key(qualified, key)


@each_call
def test_equals_its_twin(name: str, sample: Sample, isa: str) -> None:
    for dtype in sample.dtypes:
        state = torch.get_rng_state()
        args = arguments(sample, dtype)
        torch.set_rng_state(state)
        twin_args = arguments(sample, dtype)
        got, expected = getattr(ops, name)(*args), getattr(reference, name)(*twin_args)
        ours, theirs = [*tensors_of(got), *tensors_of(args)], [*tensors_of(expected), *tensors_of(twin_args)]
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, equal_nan=True)


# opcheck itself reads .grad of the tensors that it makes.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@each_call
def test_opcheck(name: str, sample: Sample) -> None:
    for dtype in {sample.dtypes[0], sample.dtypes[-1]}:
        torch.library.opcheck(overload(name), tuple(arguments(sample, dtype)))
    if sample.differentiable:
        torch.library.opcheck(overload(name), tuple(arguments(sample, grad=True)))


@each_call
def test_meta_tensors_give_the_shapes_of_real_ones(name: str, sample: Sample) -> None:
    args = arguments(sample)
    meta = tree_map_only(Tensor, lambda a: a.to("meta"), args)
    fake, real = tensors_of(getattr(ops, name)(*meta)), tensors_of(getattr(ops, name)(*args))
    assert len(fake) == len(real)
    for a, b in zip(fake, real, strict=True):
        assert a.is_meta
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w, m: ops.statistics_threshold(w, "a"), "statistics_threshold: k must be float, got str"),
        (lambda w, m: ops.statistics_threshold(w, w), "statistics_threshold: k must be float, got Tensor"),
        (lambda w, m: ops.statistics_threshold(w, 1.0, "no"), "statistics_threshold: signed must be bool, got str"),
        (lambda w, m: ops.threshold_relu(w, w[0], "x"), "threshold_relu: max must be Optional[float], got str"),
        (lambda w, m: ops.threshold_relu(w, None), "threshold_relu: theta must be a Tensor, got NoneType"),
        (lambda w, m: ops.mask_unpack(m, [3.5, 2]), "mask_unpack: shape must be List[int], got [3.5, 2]"),
        (lambda w, m: ops.sparse_values(w, m, 1.5), "sparse_values: nonzeros must be int, got float"),
        (lambda w, m: ops.sparse_values(w, m, 2**70), f"sparse_values: nonzeros must be int, got {2**70}"),
        (lambda w, m: ops.statistics_threshold_(w, None), "statistics_threshold_: k must be float, got NoneType"),
    ],
)
def test_what_the_dispatcher_cannot_take(call: Any, message: str, grad: bool) -> None:
    with torch.set_grad_enabled(grad), pytest.raises(Error) as caught:
        call(torch.ones(3, 3), torch.zeros(3, 1, dtype=torch.uint8))
    assert str(caught.value) == message


def test_every_type_of_the_schemas_is_known() -> None:
    kinds = {str(argument.type) for name in NAMES for argument in overload(name)._schema.arguments}
    plain = {kind.removeprefix("Optional[").removesuffix("]") if "Optional" in kind else kind for kind in kinds}
    assert plain == {"Tensor", "List[Tensor]", *calls._FITS}


def test_other_errors_go_through_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, mask = torch.ones(3, 3), torch.zeros(3, 1, dtype=torch.uint8)
    for error in (
        torch.OutOfMemoryError("mask_apply: no memory"),
        RuntimeError("somewhere else, mask_apply: it says"),
        NotImplementedError("mask_apply: not here"),
    ):

        def failing(*args: Any, error: RuntimeError = error) -> None:
            raise error

        failing.__name__ = "mask_apply.default"
        failing._schema = overload("mask_apply")._schema  # type: ignore[attr-defined]
        with pytest.raises(type(error)) as caught:
            calls._call(failing, weight, mask)
        assert caught.value is error


@pytest.mark.parametrize("name", NAMES)
def test_tensors_on_two_devices_and_what_is_no_tensor(name: str) -> None:
    """A meta tensor among real ones reaches the fake kernel, which would hand back memory as it was found."""
    args = arguments(SAMPLES[name][0])
    leaves, structure = tree_leaves(args), structure_of(args)
    tensors = [i for i, value in enumerate(leaves) if isinstance(value, Tensor)]
    for i in tensors:
        wrong: list[tuple[Any, str]] = [({}, "must be a Tensor, got dict"), (leaves[i].to_sparse(), "got sparse_coo")]
        if len(tensors) > 1:
            wrong.append((leaves[i].to("meta"), r"must be on (cpu, got meta|meta, got cpu)"))
        for value, message in wrong:
            with torch.no_grad(), pytest.raises(Error, match=f"{name}: .*{message}"):
                getattr(ops, name)(*tree_unflatten([*leaves[:i], value, *leaves[i + 1 :]], structure))


@each_call
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(name: str, sample: Sample, mode: Any) -> None:
    state = torch.get_rng_state()
    expected_args = arguments(sample)
    expected = getattr(ops, name)(*expected_args)
    torch.set_rng_state(state)
    with mode():  # inputs made inside are inference tensors, which have no version counter
        args = arguments(sample, grad=mode is torch.no_grad)
        got = getattr(ops, name)(*args)
        ours, theirs = [*tensors_of(got), *tensors_of(args)], [*tensors_of(expected), *tensors_of(expected_args)]
        for a, b in zip(ours, theirs, strict=True):
            assert same_bits(a, b)
    assert not any(t.requires_grad for t in tensors_of(got))


@each_differentiable
def test_gradcheck(name: str, sample: Sample) -> None:
    args = arguments(sample, torch.float64, grad=True)

    def call(*args: Any) -> tuple[Tensor, ...]:
        outputs = tensors_of(getattr(ops, name)(*args))
        return tuple(outputs[i] for i in sample.outputs)

    assert torch.autograd.gradcheck(call, args)
    assert torch.autograd.gradgradcheck(call, args, fast_mode=True)  # the full one takes a minute for a convolution


@each_differentiable
def test_what_carries_no_gradient_says_so(name: str, sample: Sample) -> None:
    for i, output in enumerate(tensors_of(getattr(ops, name)(*arguments(sample, grad=True)))):
        assert output.requires_grad == (i in sample.outputs)


@each_differentiable
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_dtypes_alone(name: str, sample: Sample, dtype: torch.dtype) -> None:
    """As for torch.relu: an operator that only selects values has nothing to gain from a cast."""
    args = arguments(sample, torch.float32, grad=True)
    expected = tensors_of(getattr(ops, name)(*args))
    with torch.autocast("cpu", dtype=dtype):
        got = tensors_of(getattr(ops, name)(*args))
    for a, b in zip(got, expected, strict=True):
        assert same_bits(a, b)
    torch.autograd.grad(got[sample.outputs[0]].sum(), [args[i] for i in sample.differentiable])


@each_call
def test_compiles_as_one_graph(name: str, sample: Sample) -> None:
    def call(*args: Any) -> list[Tensor]:
        # Arithmetic on both sides, so that there is a graph to be one of.
        doubled = [a * 2 if i in sample.differentiable else a for i, a in enumerate(args)]
        outputs = tensors_of(getattr(ops, name)(*doubled))
        return [o * 3 if o.is_floating_point() else o for o in outputs]

    torch.compiler.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    state = torch.get_rng_state()
    results = []
    for run in (call, compiled):
        torch.set_rng_state(state)
        args = arguments(sample, grad=True)
        outputs = run(*args)
        wanted = [args[i] for i in sample.differentiable]
        gradients = torch.autograd.grad([outputs[i].sum() for i in sample.outputs], wanted) if wanted else ()
        results.append([*outputs, *gradients, *tensors_of(args)])
    for a, b in zip(*results, strict=True):
        assert same_bits(a, b)


@each_call
def test_vmap_works_or_says_why_not(name: str, sample: Sample) -> None:
    args, again = arguments(sample), arguments(sample)
    stacked = tree_map(lambda a, b: torch.stack([a, b]) if isinstance(a, Tensor) else a, args, again)
    batched = tree_map(lambda a: 0 if isinstance(a, Tensor) else None, args)
    call = torch.vmap(getattr(ops, name), in_dims=tuple(batched))
    if name.endswith("_"):
        with pytest.raises(RuntimeError, match=f"Batching rule not implemented for secateur::{name}"):
            call(*stacked)
        return
    for row, inputs in enumerate((args, again)):
        for a, b in zip(tensors_of(call(*stacked)), tensors_of(getattr(ops, name)(*inputs)), strict=True):
            assert same_bits(a[row], b)
