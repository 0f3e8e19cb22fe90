"""The loss in torch's machinery: compiled graphs, torch.func's transforms, forward mode, batched gradients, DDP."""

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
import torch._dynamo.testing
import torch.autograd.forward_ad as forward_ad
from fastrank.kernels.tempered_ce import tempered_cross_entropy
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, vmap

from fastrank import TemperedCE

IMPLS = ("reference", "native")
Z, Y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    torch._dynamo.reset()


def batch(n=6, c=10, dtype=torch.float64, scale=3.0):
    return (scale * torch.randn(n, c)).to(dtype).requires_grad_(), torch.randint(c, (n,))


def grad_of(loss, *inputs, **options):
    return torch.autograd.grad(loss, inputs, **options)


# ---- torch.compile ----


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "reduction": "none", "return_stats": True}], ids=str)
def test_compiles_as_one_graph(options):
    z, y = batch(5, 7, torch.float32)
    compiled = torch.compile(tempered_cross_entropy, fullgraph=True, backend="aot_eager")

    def flat(result):
        loss, stats = result if isinstance(result, tuple) and not isinstance(result, torch.Tensor) else (result, ())
        return loss, grad_of(loss.sum(), z)[0], *stats

    for T in (2.0, torch.tensor(3.0), torch.rand(5) + 1):
        for got, want in zip(
            flat(compiled(z, y, T, **options)), flat(tempered_cross_entropy(z, y, T, **options)), strict=True
        ):
            assert torch.equal(got, want)


SCHEDULE = (1.0, 10.5, 100.0, 42.0, 7.25)


def compilations(of, inputs_of) -> int:
    """How often `of` is compiled for a whole schedule; its loss and gradient are the eager ones throughout."""
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(of, fullgraph=True, backend=counter)
    z, y = batch(5, 7, torch.float32)
    for T in SCHEDULE:
        got, want = compiled(z, y, *inputs_of(T)), tempered_cross_entropy(z, y, T)
        assert torch.equal(got, want)
        assert torch.equal(*grad_of(got, z), *grad_of(want, z))
    return counter.frame_count


def test_a_temperature_in_a_tensor_never_recompiles():
    T = torch.tensor(1.0)
    assert compilations(tempered_cross_entropy, lambda value: [T.fill_(value)]) == 1
    torch._dynamo.reset()
    assert compilations(tempered_cross_entropy, lambda value: [torch.tensor(value)]) == 1


def test_a_scheduled_module_never_recompiles():
    criterion = TemperedCE(T=torch.tensor(1.0))

    def schedule(T):
        criterion.T.fill_(T)
        return ()

    assert compilations(criterion, schedule) == 1


def test_a_number_that_changes_compiles_once_more():
    """As a constant first, then as an input of the graph, whatever its value; an int is another input."""
    assert compilations(tempered_cross_entropy, lambda T: [T]) == 2
    criterion = TemperedCE(T=1.0)

    def schedule(T):
        criterion.T = T
        return ()

    assert compilations(criterion, schedule) == 2


def test_a_number_that_stays_is_a_constant():
    """No tensor is made of it: the graph is the operator alone, after a conversion of labels that are int64 already."""
    graphs = []

    def keep(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    z, y = batch(5, 7, torch.float32)
    torch.compile(tempered_cross_entropy, fullgraph=True, backend=keep)(z, y, 2.0)
    calls = [str(node.target) for node in graphs[0].graph.nodes if node.op in ("call_function", "call_method")]
    assert [call for call in calls if "getitem" not in call] == ["long", "fastrank.tempered_ce"]


def test_a_bad_number_is_refused_while_compiling():
    compiled = torch.compile(tempered_cross_entropy, fullgraph=True, backend="eager")
    with pytest.raises(Exception, match="T: expected a finite temperature > 0"):
        compiled(*batch(), -1.0)


def test_a_compiled_reference_marks_bad_labels_with_nan():
    """Looking at labels would break the graph: the reference, like CUDA, then makes the row NaN."""
    compiled = torch.compile(
        lambda z, y: tempered_cross_entropy(z, y, reduction="none", impl="reference"), fullgraph=True, backend="eager"
    )
    rows = compiled(Z, torch.tensor([0, 7, -100, 2]))
    assert rows.isnan().tolist() == [False, True, False, False] and rows[2] == 0


# ---- torch.func and batched gradients ----


@pytest.mark.parametrize("T", [2.0, torch.tensor(2.0, dtype=torch.float64)], ids=["number", "tensor"])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "scale_gradient": "T2"}], ids=str)
def test_transforms_of_torch_func(T, options):
    z, y = batch()
    many, labels = torch.randn(5, 6, 10, dtype=torch.float64), torch.randint(10, (5, 6))

    def loss(z, y):
        return tempered_cross_entropy(z, y, T, **options)

    def eager(z, y):
        z = z.detach().requires_grad_()
        return grad_of(loss(z, y), z)[0]

    close = torch.testing.assert_close
    close(grad(loss)(z.detach(), y), eager(z, y))
    close(vmap(loss)(many, labels), torch.stack([loss(*pair) for pair in zip(many, labels, strict=True)]))
    expected = torch.stack([eager(*pair) for pair in zip(many, labels, strict=True)])
    close(vmap(grad(loss))(many, labels), expected)
    tangent = torch.randn_like(many[0])
    close(jvp(lambda z: loss(z, y), (z.detach(),), (tangent,))[1], (eager(z, y) * tangent).sum())
    close(jacfwd(lambda z: loss(z, y))(z.detach()), eager(z, y))
    with forward_ad.dual_level():
        dual = loss(forward_ad.make_dual(z.detach(), tangent), y)
        close(forward_ad.unpack_dual(dual).tangent, (eager(z, y) * tangent).sum())


def test_gradients_of_each_sample():
    """The recipe of torch.func: per-sample gradients of a model's parameters."""
    model = torch.nn.Linear(7, 10)
    x, y = torch.randn(6, 7), torch.randint(10, (6,))
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters, x, y):
        return tempered_cross_entropy(functional_call(model, parameters, (x[None],)), y[None], 3.0)

    each = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, x, y)
    for i in range(6):
        model.zero_grad()
        tempered_cross_entropy(model(x[i : i + 1]), y[i : i + 1], 3.0).backward()
        for name, p in model.named_parameters():
            torch.testing.assert_close(each[name][i], p.grad)


def test_a_temperature_under_vmap():
    z, y = batch()
    T = torch.rand(8, dtype=torch.float64) + 0.5
    swept = vmap(lambda T: tempered_cross_entropy(z.detach(), y, T))(T)
    torch.testing.assert_close(swept, torch.stack([tempered_cross_entropy(z.detach(), y, float(t)) for t in T]))


def test_kernels_say_that_they_know_no_transforms():
    for transform in (grad, vmap, jacrev):
        with pytest.raises(RuntimeError, match=r"impl='native' does not run in torch.func's transforms"):
            transform(lambda row: tempered_cross_entropy(row.flatten()[:1], Y[0], impl="native"))(Z[:, :1])


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_batched_gradients(impl, reduction):
    """autograd.grad(is_grads_batched=True), and what it is for: vectorised Jacobians and Hessians."""
    z, y = batch(4, 3)
    T = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    loss = tempered_cross_entropy(z, y, T, reduction=reduction, impl=impl)
    vectors = torch.randn(5, *loss.shape, dtype=torch.float64)
    together = grad_of(loss, z, T, grad_outputs=vectors, is_grads_batched=True, retain_graph=True)
    for i, vector in enumerate(vectors):
        for got, want in zip(together, grad_of(loss, z, T, grad_outputs=vector, retain_graph=True), strict=True):
            torch.testing.assert_close(got[i], want)

    def of(z):
        return tempered_cross_entropy(z, y, 2.0, reduction=reduction, impl=impl)

    for derivative, f in ((jacobian, of), (hessian, lambda z: of(z).sum())):
        torch.testing.assert_close(derivative(f, z.detach(), vectorize=True), derivative(f, z.detach()))


# ---- copies and processes ----


@pytest.mark.parametrize(
    "T", [3.0, torch.tensor(3.0), torch.nn.Parameter(torch.tensor(3.0))], ids=["number", "buffer", "parameter"]
)
def test_a_module_survives_copies(T):
    criterion = TemperedCE(T=T, weight=torch.rand(3), label_smoothing=0.1, scale_gradient="T", reduction="none")
    saved = io.BytesIO()
    torch.save(criterion, saved)
    saved.seek(0)
    copies = [copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion)), torch.load(saved, weights_only=False)]
    for other in copies:
        assert torch.equal(other(Z, Y), criterion(Z, Y)) and repr(other) == repr(criterion)
        if isinstance(T, torch.Tensor):
            other.T.data.fill_(50.0)
            assert criterion.T == 3.0


WORKERS = """
import os, sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from fastrank import TemperedCE

torch.manual_seed(0)
torch.set_num_threads(1)
data, labels = torch.randn(12, 5, dtype=torch.float64), torch.randint(4, (12,))
model = torch.nn.Linear(5, 4).double()


class WithLoss(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model = model
        self.loss = TemperedCE(T=torch.nn.Parameter(torch.tensor(20.0, dtype=torch.float64)), label_smoothing=0.1)

    def forward(self, x, y):
        return self.loss(self.model(x), y)


def steps(module, x, y):
    for _ in range(3):
        module.zero_grad()
        module(x, y).backward()
        with torch.no_grad():
            for p in module.parameters():
                p -= 0.5 * p.grad
    return torch.cat([p.detach().flatten() for p in module.parameters()])


start = WithLoss()
state = {name: x.clone() for name, x in start.state_dict().items()}
other = os.fork()  # with all that takes seconds to import
rank = 1 if other else 0
alone = steps(start, data, labels)
start.load_state_dict(state)
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=rank, world_size=2)
together = steps(DistributedDataParallel(start), data[rank::2], labels[rank::2])
torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
dist.destroy_process_group()
if other:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]))
"""


def test_two_processes_train_as_one(tmp_path):
    """Halves of a batch under DDP, with a learnt temperature: the steps of the whole batch."""
    command = [sys.executable, "-c", WORKERS, str(tmp_path / "rendezvous")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
