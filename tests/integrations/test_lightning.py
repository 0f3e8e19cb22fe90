"""The Lightning callback: the figures of a loop by hand, resumed by Lightning's checkpoints, no harm to training."""

import logging

import pytest
import torch
from torch import nn
from watched_loop import Records, assert_same, by_hand, run_example, small_batches, small_net

lightning = pytest.importorskip("lightning", reason="needs lightning: pip install 'fastrank[lightning]'")

import fastrank.integrations.lightning as adapter  # noqa: E402
from fastrank import InputError  # noqa: E402
from fastrank.integrations.lightning import WatchCallback  # noqa: E402
from fastrank.record import load_run  # noqa: E402

# Lightning's advice on workers, loggers and deprecated parts of torch is not about the callback.
pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore::FutureWarning")]
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Net(lightning.LightningModule):
    """Its figures carry the names of `small_net` below `net.`."""

    def __init__(self):
        super().__init__()
        self.net = small_net()

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch):
        self.log("val", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Parts(Net):
    """Calls its network, never itself."""

    forward = lightning.LightningModule.forward

    def training_step(self, batch):
        return {"loss": nn.functional.cross_entropy(self.net(batch[0]), batch[1])}

    validation_step = lightning.LightningModule.validation_step


class Manual(Parts):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch):
        self.optimizers().zero_grad()
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.manual_backward(loss)
        self.optimizers().step()
        return loss


def fit(module, batches, *callbacks, path, ckpt_path=None, **options):
    """Lightning over `batches` in their order; a DataLoader of whole batches, so that a resume knows where it was."""
    defaults = {"max_epochs": 1, "logger": False, "enable_checkpointing": False}
    trainer = lightning.Trainer(
        **defaults | options, default_root_dir=path, callbacks=list(callbacks), accelerator="cpu", devices=1,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    validation = (
        torch.utils.data.DataLoader(batches[:2], batch_size=None) if options.get("val_check_interval") else None
    )
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None), validation, ckpt_path=ckpt_path)
    return trainer


def named(records, prefix):
    """The records of a bare network under the names that it has as a child called `prefix`."""

    def name(key):
        kind, _, rest = key.partition("/")
        return f"{kind}/{prefix}.{rest}" if kind in ("act", "weight", "grad", "align") and rest != "mean_max" else key

    return [
        (step, {name(k): v for k, v in scalars.items()}, {name(k): v for k, v in arrays.items()})
        for step, scalars, arrays in records
    ]


APART = ("cost/", "train/epoch")


@pytest.mark.parametrize(("accumulate", "every"), [(1, 1), (2, 1), (1, 2)])
def test_figures_are_those_of_a_loop_by_hand_with_validation_in_between(tmp_path, accumulate, every):
    # Names seed the samples of a layer, but nothing is sampled at these sizes.
    batches, options = small_batches(6), {"every": every, "metrics": ["act", "logits", "weight", "grad"]}
    expected = named(by_hand(small_net(), batches, accumulate, **options), "net")
    found = Records()
    callback = WatchCallback(log=found, **options)
    fit(Net(), batches, callback, path=tmp_path, accumulate_grad_batches=accumulate, val_check_interval=2)
    assert_same(found, expected, but=APART)
    assert found[0][1]["train/epoch"] == 0 and callback.watcher is None


@pytest.mark.parametrize(("module", "option"), [(Net, {"module": "net"}), (Parts, {}), (Manual, {})])
def test_what_training_step_calls_is_watched(tmp_path, module, option):
    batches, found = small_batches(4), Records()
    fit(module(), batches, WatchCallback(log=found, **option), path=tmp_path)
    assert_same(found, by_hand(small_net(), batches), but=APART)


def test_a_resumed_training_goes_on_in_figures_and_run(tmp_path):
    # Whole epochs: of an epoch begun, Lightning gives a DataLoader's first batches again.
    batches = small_batches(3)
    expected = by_hand(small_net(), batches * 2)

    class Stop(lightning.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / "epoch.ckpt")

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 4:  # one step beyond the checkpoint: the resumed training replaces it
                raise RuntimeError("power")

    with pytest.raises(RuntimeError, match="power"):
        fit(Parts(), batches, WatchCallback(log=tmp_path / "run"), Stop(), path=tmp_path, max_epochs=2)
    run = load_run(tmp_path / "run")
    assert run.status == "interrupted" and run.steps.tolist() == [0, 1, 2, 3]
    tail = Records()
    callback = WatchCallback(log=[tmp_path / "run", tail])
    fit(Parts(), batches, callback, path=tmp_path, max_epochs=2, ckpt_path=tmp_path / "epoch.ckpt")
    assert_same(tail, expected[3:], but=APART)
    run = load_run(tmp_path / "run")
    assert run.status == "finished" and run.steps.tolist() == list(range(6))
    assert run.series("align/0/max")[1].tolist() == [scalars["align/0/max"] for _, scalars, _ in expected]


def test_a_new_training_never_overwrites_a_run(tmp_path):
    batches = small_batches(1)
    fit(Parts(), batches, WatchCallback(log=tmp_path / "run", metrics="light"), path=tmp_path)
    with pytest.raises(InputError, match=r"^path: expected a directory that holds no run"):
        fit(Parts(), batches, WatchCallback(log=tmp_path / "run", metrics="light"), path=tmp_path)
    assert load_run(tmp_path / "run").steps.tolist() == [0]


def test_the_trainers_loggers_get_the_scalars(tmp_path):
    logger = lightning.pytorch.loggers.CSVLogger(tmp_path, name="logs", version=0, flush_logs_every_n_steps=1)
    found = Records()
    callback = WatchCallback(log=found, metrics="light")
    fit(Parts(), small_batches(5), callback, path=tmp_path, logger=logger, log_every_n_steps=2)
    header, *rows = (tmp_path / "logs" / "version_0" / "metrics.csv").read_text().splitlines()
    column, step = header.split(",").index("logits/norm"), header.split(",").index("step")
    values = {int(row.split(",")[step]): float(row.split(",")[column]) for row in rows if row.split(",")[column]}
    assert values == {s: scalars["logits/norm"] for s, scalars, _ in found if s in (1, 3)}


def test_other_ranks_neither_watch_nor_write(tmp_path, monkeypatch):
    monkeypatch.setattr(lightning.Trainer, "is_global_zero", property(lambda self: False))
    module = Parts()
    callback = WatchCallback(log=tmp_path / "run")
    fit(module, small_batches(2), callback, path=tmp_path)
    assert not (tmp_path / "run").exists() and callback.state_dict() == {}


def test_training_is_the_same_with_the_callback_and_after_its_failure(tmp_path):
    def raises(batch):
        raise ValueError("mine")

    batches, plain, watched, broken = small_batches(4), Parts(), Parts(), Parts()
    fit(plain, batches, path=tmp_path)
    fit(watched, batches, WatchCallback(), path=tmp_path)
    with pytest.warns(RuntimeWarning, match="no longer watching: mine"):
        fit(
            broken,
            batches,
            WatchCallback(target=lambda batch: (_ for _ in ()).throw(ValueError("mine"))),
            path=tmp_path,
        )
    for a, b, c in zip(plain.parameters(), watched.parameters(), broken.parameters(), strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in [*watched.modules(), *broken.modules()])


def test_mistakes_are_named_before_training(tmp_path):
    class Two(Parts):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(2, 2)

    batches = small_batches(1)
    with pytest.raises(InputError, match=r"^module: expected a submodule such as net, got 'nets'"):
        fit(Parts(), batches, WatchCallback(module="nets"), path=tmp_path)
    with pytest.raises(InputError, match=r"^module: expected the one of net, head that training_step calls, got None"):
        fit(Two(), batches, WatchCallback(), path=tmp_path)
    with pytest.raises(InputError, match=r"^layers: "):
        fit(Parts(), batches, WatchCallback(layers="conv*"), path=tmp_path)


def test_a_forward_that_is_not_called_is_said_once(tmp_path):
    class Beside(Net):
        def training_step(self, batch):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    with pytest.warns(RuntimeWarning, match="one that did not run so; name the module") as warned:
        fit(Beside(), small_batches(3), WatchCallback(), path=tmp_path)
    assert len([w for w in warned if "no longer watching" in str(w.message)]) == 1


def test_the_state_is_tensors_and_plain_values(tmp_path):
    callback = WatchCallback(metrics=["align"])
    fit(Parts(), small_batches(2), callback, path=tmp_path)
    state = callback.state_dict()
    torch.save(state, tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True)["watcher"]["step"] == 2


def test_the_example_runs(tmp_path, monkeypatch):
    run_example(adapter, tmp_path, monkeypatch)
    run = load_run("runs/lightning")
    assert run.status == "finished" and len(run.steps) == 6 and "logits/rank" in run.keys
