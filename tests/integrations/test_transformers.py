"""The Hugging Face Trainer callback: figures of a loop by hand, resumed by the Trainer's checkpoints, any output."""

import pytest
import torch
from torch import nn
from watched_loop import Records, assert_same, by_hand, off_the_checkout, run_example, small_batches, small_net

transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'fastrank[transformers]'")
pytest.importorskip("accelerate", reason="needs accelerate: pip install 'fastrank[transformers]'")

import fastrank  # noqa: E402
import fastrank.integrations.transformers as adapter  # noqa: E402
from fastrank.integrations.transformers import WatchCallback  # noqa: E402
from fastrank.layers import select_layers  # noqa: E402
from fastrank.record import load_run  # noqa: E402

off_the_checkout(transformers.utils.is_kernels_available)

# The Trainer's advice on workers, memory and deprecated parts of torch is not about the callback.
pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore::FutureWarning")]

APART = ("cost/", "train/lr", "train/loss")


class Net(nn.Sequential):
    """`small_net` as the Trainer calls a model: keywords in, loss and logits out, under the same names of layers."""

    def __init__(self):
        super().__init__(*small_net())

    def forward(self, x, labels=None):
        logits = super().forward(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def train(model, batches, *callbacks, path, resume=None, epochs=1, **options):
    """The Trainer over `batches` in their order, with the optimizer of the loop by hand."""
    rows = [{"x": x, "labels": y} for batch in batches for x, y in zip(*batch, strict=True)]
    defaults = {"save_strategy": "no", "max_grad_norm": 0.0, "learning_rate": 0.1}
    arguments = transformers.TrainingArguments(
        **defaults | options, output_dir=str(path), num_train_epochs=epochs, use_cpu=True, report_to="none",
        per_device_train_batch_size=len(batches[0][0]), per_device_eval_batch_size=8, disable_tqdm=True,
        train_sampling_strategy="sequential", logging_strategy="no", remove_unused_columns=False,
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    trainer = transformers.Trainer(
        model, arguments, train_dataset=rows, eval_dataset=rows[:8], callbacks=list(callbacks),
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)),
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize(("accumulate", "every"), [(1, 1), (2, 1), (1, 2)])
def test_figures_are_those_of_a_loop_by_hand_with_evaluation_in_between(tmp_path, accumulate, every):
    batches, kinds = small_batches(6), ["act", "logits", "weight", "grad", "align"]
    expected = by_hand(small_net(), batches, accumulate, every=every, metrics=kinds)
    found = Records()
    callback = WatchCallback(log=found, every=every, metrics=kinds)
    train(
        Net(), batches, callback, path=tmp_path, gradient_accumulation_steps=accumulate, eval_strategy="steps",
        eval_steps=1,
    )  # fmt: skip
    assert_same(found, expected, but=APART)
    assert callback.watcher is None
    for (_, scalars, _), (_, wanted, _) in zip(found, expected, strict=True):
        assert scalars["train/lr"] == 0.1
        assert scalars.get("train/loss") == (wanted["train/loss"] if accumulate == 1 else None)


def test_gradients_are_the_clipped_ones_that_the_optimizer_used(tmp_path):
    found = Records()
    callback = WatchCallback(log=found, metrics=["grad"])
    train(Net(), small_batches(2), callback, path=tmp_path, max_grad_norm=1e-3)
    for _, scalars, _ in found:
        norms = [v for k, v in scalars.items() if k.startswith("grad/") and k.endswith("/frobenius")]
        assert 0 < sum(v * v for v in norms) <= 1.001e-6  # biases take the rest of the clipped norm


@pytest.mark.parametrize("keeps_state", [True, False])
def test_a_resumed_training_goes_on_in_figures_and_run(tmp_path, keeps_state):
    batches = small_batches(6)
    expected = by_hand(small_net(), batches)

    class Stop(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5:  # steps beyond the checkpoint: the resumed training replaces them
                raise RuntimeError("power")

    save = {"save_strategy": "steps", "save_steps": 3}
    with pytest.raises(RuntimeError, match="power"):
        train(Net(), batches, WatchCallback(log=tmp_path / "run"), Stop(), path=tmp_path / "out", **save)
    assert load_run(tmp_path / "run").steps.tolist() == [0, 1, 2, 3, 4]
    state = tmp_path / "out" / "checkpoint-3" / "fastrank.pt"
    assert state.is_file()
    if not keeps_state:
        state.unlink()
    tail = Records()
    callback = WatchCallback(log=[tmp_path / "run", tail])
    train(Net(), batches, callback, path=tmp_path / "out", resume=True, **save)
    # Without its file a subspace starts anew; all other figures are of one step alone.
    assert_same(tail, expected[3:], but=APART if keeps_state else (*APART, "align/"))
    run = load_run(tmp_path / "run")
    assert run.status == "finished" and run.steps.tolist() == list(range(6))


def test_training_is_the_same_with_the_callback_and_after_its_failure(tmp_path):
    def raises(output):
        raise ValueError("mine")

    batches, plain, watched, broken = small_batches(4), Net(), Net(), Net()
    train(plain, batches, path=tmp_path)
    train(watched, batches, WatchCallback(), path=tmp_path)
    with pytest.warns(RuntimeWarning, match="no longer watching: mine"):
        train(broken, batches, WatchCallback(logits=raises), path=tmp_path)
    for a, b, c in zip(plain.parameters(), watched.parameters(), broken.parameters(), strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in [*watched.modules(), *broken.modules()])


def test_other_ranks_neither_watch_nor_write(tmp_path, monkeypatch):
    monkeypatch.setattr(transformers.Trainer, "is_world_process_zero", lambda self: False)
    train(Net(), small_batches(1), WatchCallback(log=tmp_path / "run"), path=tmp_path)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["classes", "tokens", "causal", "question"])
def test_logits_of_the_librarys_own_models_are_found(tmp_path, kind):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    T, found, seen = 6, Records(), []
    if kind == "causal":
        config = transformers.LlamaConfig(vocab_size=20, num_key_value_heads=2, **sizes)
        model, label, shape = transformers.LlamaForCausalLM(config), list(range(T)), (5 * T, 20)
    elif kind == "question":
        model = transformers.BertForQuestionAnswering(transformers.BertConfig(vocab_size=20, **sizes))
        label, shape = None, (5, T)
    else:
        config = transformers.BertConfig(vocab_size=20, num_labels=3, **sizes)
        tokens = kind == "tokens"
        model = (transformers.BertForTokenClassification if tokens else transformers.BertForSequenceClassification)(
            config
        )
        label, shape = ([0, 1, 2, 0, 1, 2], (5 * T, 3)) if tokens else (1, (5, 3))
    labels = {"start_positions": 1, "end_positions": 2} if label is None else {"labels": label}
    rows = [{"input_ids": torch.arange(T) + i, **labels} for i in range(5)]
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=1, per_device_train_batch_size=5, use_cpu=True, report_to="none", save_strategy="no",
        disable_tqdm=True,
    )  # fmt: skip
    model.register_forward_hook(lambda m, a, output: seen.append(output))
    callback = WatchCallback(log=found, mode="channels", metrics="light")
    transformers.Trainer(model, arguments, train_dataset=rows, callbacks=[callback]).train()
    logits = (seen[0].start_logits if kind == "question" else seen[0].logits).detach().reshape(shape)
    scalars = found[0][1]
    assert scalars["logits/norm"] == pytest.approx(float(logits.double().norm()), rel=1e-6)
    assert scalars["train/loss"] == pytest.approx(float(seen[0].loss), rel=1e-6)
    assert ("train/accuracy" in scalars) == (kind == "classes")


def test_the_example_runs(tmp_path, monkeypatch):
    run_example(adapter, tmp_path, monkeypatch)
    run = load_run("runs/bert")
    assert run.status == "finished" and len(run.steps) == 4 and "logits/rank" in run.keys


def test_the_layers_of_gpt2_are_measured():
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=23, n_positions=8, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model, x = transformers.GPT2LMHeadModel(config), torch.randint(23, (5, 7))
    layers = {name: m for name, m in model.named_modules() if type(m).__name__ == "Conv1D"}
    inputs = {}
    for name, layer in layers.items():
        layer.register_forward_pre_hook(
            lambda _, args, name=name: inputs.update({name: args[0].detach().flatten(0, 1)})
        )
    with fastrank.watch(model, metrics=["weight", "grad", "align", "bound"]) as w:
        model(input_ids=x, labels=x).loss.backward()
        w.step()
    assert len(layers) == 4
    for name, layer in layers.items():
        for kind, X in (("weight", layer.weight.detach().T), ("grad", layer.weight.grad.T)):
            sigma = torch.linalg.svdvals(X.double())
            assert w.latest[f"{kind}/{name}/sigma_1"] == pytest.approx(float(sigma[0]), rel=1e-5)
        rank = int(torch.linalg.matrix_rank(inputs[name]))
        assert w.latest[f"grad/{name}/input_rank_lo"] <= rank <= w.latest[f"grad/{name}/input_rank_hi"]
        V = [torch.linalg.svd(X.double()).Vh[:15] for X in (layer.weight.detach().T, inputs[name])]
        largest = float((V[0] @ V[1].T).abs().max())
        assert w.latest[f"align/{name}/max"] == pytest.approx(largest, abs=1e-3 + w.latest[f"align/{name}/error"])
    # Of its two embeddings one is the classifier's weight.
    parameters = {layer.name for layer in select_layers(model) if layer.parameter}
    assert parameters == {"transformer.wpe.weight"} and "weight/transformer.wpe.weight/rank" in w.latest
