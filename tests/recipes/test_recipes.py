"""Every recipe at its smallest scale: it runs, its numbers follow from its runs, and what they are is right."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("scipy")
pytest.importorskip("matplotlib")
pytest.importorskip("timm")
pytest.importorskip("sklearn")

from fastrank import load_run
from fastrank.errors import InputError
from fastrank.recipes import FILES, SCALES, find_recipe, recompute, reproduce
from fastrank.recipes.execute import plan_jobs
from fastrank.recipes.logits_norm import RTOL, ranks_of_the_set
from fastrank.recipes.recipe import IMAGENET
from fastrank.recipes.softmax_rank import gap_bound
from fastrank.recipes.temperature_sweep import IMAGENET_OOD
from fastrank.recipes.training import SMOKE_MLP, config_of
from fastrank.train.config import TrainConfig
from fastrank.train.data import load_data
from fastrank.train.models import build_model
from fastrank.train.ood import load_ood

NAMES = ("logits-norm", "alignment", "gradient-rank", "vgg-norm", "init-norm", "schedule", "controls", "rank-sweeps")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("reproduced")


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_at_its_smallest(name, out, capsys):
    recipe = find_recipe(name)
    result = reproduce(recipe, "smoke", seeds=2, out=out)
    assert set(result.table) == set(recipe.scales["smoke"].settings) and result.seeds == (0, 1)
    assert any(effect.counts for effect in result.effects)
    folder = out / name / "smoke"
    stored = (folder / "result.json").read_text()
    assert all(cell["n"] == 2 for cells in json.loads(stored)["table"].values() for cell in cells.values())
    trained = [cells["train accuracy"] for cells in result.table.values()]
    assert any(math.isfinite(cell.mean) for cell in trained)
    if name == "logits-norm":
        recompute(folder, find_recipe)
        assert (folder / "result.json").read_text() == stored
    assert (folder / "figure.png").stat().st_size > 5000
    assert f'id="{name}-smoke"' in (out / "index.html").read_text()


def test_recipes_that_share_their_runs(out, monkeypatch):
    first = reproduce(find_recipe("temperature-sweep"), "smoke", seeds=2, out=out)
    assert all(0 < cells["kappa"].mean <= 1 for cells in first.table.values())
    assert all(0 <= cells["rho"].mean <= 1 for cells in first.table.values())

    def never(*arguments):
        raise AssertionError("these runs are finished")

    for name, column in (("orthodev", "OrthoDev"), ("ood-detection", "NECO AUROC")):
        recipe = find_recipe(name)
        assert plan_jobs(recipe, "smoke", 2, out) == plan_jobs(find_recipe("temperature-sweep"), "smoke", 2, out)
        monkeypatch.setattr("fastrank.recipes.evaluating.train_jobs", never)
        result = reproduce(recipe, "smoke", seeds=2, out=out)
        assert all(0 <= cells[column].mean <= 100 for cells in result.table.values())


@pytest.mark.parametrize("name", FILES)
def test_every_scale_is_valid_before_it_is_run(name, tmp_path):
    recipe = find_recipe(name)
    assert recipe.name == name and [scale for scale in recipe.scales if scale != IMAGENET] == list(SCALES)
    assert recipe.scales["quick"].seeds >= 3 and recipe.scales["full"].seeds >= 3
    for scale in recipe.scales:
        for job in plan_jobs(recipe, scale, 1, tmp_path, tmp_path / "sets"):
            json.dumps(job.settings)
            if "train" in job.settings:
                config = config_of(job)
                if scale in ("full", IMAGENET):
                    assert config.data.startswith(f"folder:{tmp_path / 'sets'}/")


def test_full_scale_is_the_papers_table_4(tmp_path):
    (mlp, *_) = plan_jobs(find_recipe("alignment"), "full", 1, tmp_path)
    wanted = TrainConfig(
        model="mlp", data="folder:data/cifar10", lr=0.05, momentum=0.0, weight_decay=0.0, epochs=100, batch_size=128,
        schedule="constant", augment="cifar", image_size=32, track="act,align", every=39,
    )  # fmt: skip
    assert config_of(mlp) == wanted
    resnet = config_of(plan_jobs(find_recipe("temperature-sweep"), "full", 1, tmp_path)[0])
    found = (resnet.lr, resnet.momentum, resnet.weight_decay, resnet.epochs, resnet.batch_size, resnet.milestones)
    assert found == (0.1, 0.9, 1e-4, 164, 128, (82, 123))
    imagenet = config_of(plan_jobs(find_recipe("temperature-sweep"), IMAGENET, 1, tmp_path)[0])
    found = (imagenet.lr, imagenet.epochs, imagenet.batch_size, imagenet.milestones, imagenet.image_size)
    assert found == (1.6, 120, 1024, (30, 60, 90), 224)
    vgg = config_of(plan_jobs(find_recipe("vgg-norm"), "full", 1, tmp_path)[-1])
    assert (vgg.model, vgg.epochs, vgg.milestones) == ("vgg19", 160, (80, 120))


def test_both_directions_of_table_2(tmp_path):
    jobs = {job.label: job for job in plan_jobs(find_recipe("ood-detection"), "full", 1, tmp_path)}
    for network in ("ResNet-18", "ResNet-34", "ViT-B"):
        for data, other in (("CIFAR-10", "cifar100"), ("CIFAR-100", "cifar10")):
            for T in (1, 100):
                job = jobs.pop(f"{network} on {data}, T={T}")
                assert job.settings["evaluate"]["ood"][0] == f"folder:data/{other}"
                config = config_of(job)
                assert (config.data, config.temperature) == (f"folder:data/{data.lower().replace('-', '')}", T)
                assert (config.image_size, config.batch_size) == ((224, 512) if network == "ViT-B" else (32, 128))
    assert not jobs


@pytest.fixture(scope="module")
def sets_on_disk(tmp_path_factory):
    """What the full scales read, two classes of one picture each."""
    Image = pytest.importorskip("PIL.Image")
    root = tmp_path_factory.mktemp("sets")
    picture = Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3))
    splits = [f"{name}/{split}" for name in ("cifar10", "cifar100", "svhn", "imagenet") for split in ("train", "val")]
    for folder in (*splits, *IMAGENET_OOD[1:]):
        for label in "ab":
            (root / folder / label).mkdir(parents=True, exist_ok=True)
            picture.save(root / folder / label / "0.png")
    return root


@pytest.mark.parametrize("scale", ["full", IMAGENET])
def test_the_papers_scales_resolve(scale, sets_on_disk, tmp_path):
    """Every training of every recipe finds its data, out-of-distribution sets and network, which takes the images."""
    seen, networks = set(), set()
    for name in FILES:
        recipe = find_recipe(name)
        for job in plan_jobs(recipe, scale, 1, tmp_path, sets_on_disk) if scale in recipe.scales else ():
            if "train" not in job.settings:
                continue
            config, ood = config_of(job), job.settings.get("evaluate", {}).get("ood", [])
            key = config.data, config.augment, config.image_size, tuple(ood)
            if key not in seen:
                data, found = load_data(config), {}
                images, _ = next(data.train.train_batches(0, 2))
                assert images.shape == (2, 3, config.image_size, config.image_size) and data.classes == 2
                found = load_ood(config, ood, data)
                for one in found.values():
                    assert next(iter(one[1] if isinstance(one, tuple) else one))[0].shape == images.shape
                seen.add(key)
            kwargs = {key: value for key, value in config.model_kwargs.items() if key != "pretrained"}
            if (network := (config.model, repr(kwargs), config.image_size)) not in networks:
                with torch.device("meta"):  # without memory or arithmetic
                    build_model(config.model, 2, 3, config.image_size, kwargs)
                networks.add(network)
    names = {network[0] for network in networks}
    wanted = {"mlp", "vgg19", "resnet18_cifar", "resnet20_cifar", "resnet34_cifar", "vit_base_patch16_224.augreg_in21k"}
    assert names == (wanted if scale == "full" else {"resnet34"})


def test_other_training_has_runs_of_its_own(tmp_path):
    recipe = find_recipe("logits-norm+weight_decay=0.1,optimizer=sgd")
    job = plan_jobs(recipe, "smoke", 1, tmp_path)[0]
    config = config_of(job)
    assert (config.weight_decay, config.optimizer) == (0.1, "sgd")
    assert job.path.parent.parent.name == "logits-norm+optimizer=sgd,weight_decay=0.1"
    assert find_recipe(recipe.name).name == recipe.name
    nested = find_recipe("logits-norm+model_kwargs={'depth': 2, 'width': 8},milestones=[2, 3],lr=0.1")
    config = config_of(plan_jobs(nested, "smoke", 1, tmp_path)[0])
    assert (config.model_kwargs, config.milestones, config.lr) == ({"depth": 2, "width": 8}, (2, 3), 0.1)
    assert find_recipe(nested.name).name == nested.name
    with pytest.raises(InputError, match="model_kwargs: expected key=value"):
        find_recipe("logits-norm+weight_decay")
    with pytest.raises(InputError, match="set: expected fields of a training"):
        find_recipe("logits-norm+weight=0.1")
    with pytest.raises(InputError, match="set: expected a recipe that trains"):
        find_recipe("softmax-rank+lr=0.1")
    assert find_recipe("orthodev+lr=1.0").shares == "temperature-sweep+lr=1.0"


def test_a_missing_data_set_is_named(tmp_path):
    with pytest.raises(InputError, match=r"data: expected a folder .*cifar10, which does not exist"):
        reproduce(find_recipe("alignment"), "full", seeds=1, out=tmp_path, data=tmp_path)


def test_imagenets_out_of_distribution_sets_from_disk(tmp_path, monkeypatch):
    """Folders of classes without splits, and one of images alone, beside a set with splits."""
    Image = pytest.importorskip("PIL.Image")
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # no workers, whose start takes longest here
    rng = np.random.default_rng(0)

    def tree(folder, classes, per_class):
        for name in classes:
            (tmp_path / folder / name).mkdir(parents=True)
            for number in range(per_class):
                pixels = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / folder / name / f"{number}.png")

    for split in ("train", "val"):
        tree(f"imagenet/{split}", "abc", 6)
        tree(f"cifar100/{split}", "xy", 5)
    for name in ("imagenet-a", "imagenet-o", "imagenet-r", "imagenet-sketch"):
        tree(name, "ab", 20)
    recipe = find_recipe("temperature-sweep")
    small = {"model": "mlp", "model_kwargs": {"depth": 2, "width": 8}, "image_size": 8, "epochs": 1, "batch_size": 6,
             "milestones": []}  # fmt: skip
    settings = {
        label: {"train": {**old["train"], **small}, "evaluate": {**old["evaluate"], "probes": ["ridge"]}}
        for label, old in recipe.scales[IMAGENET].settings.items()
        if label in ("T=1", "T=1000")
    }
    scales = {IMAGENET: replace(recipe.scales[IMAGENET], settings=settings)}
    with pytest.raises(InputError, match=r"ood: expected a folder of images.*inaturalist, which does not exist"):
        reproduce(replace(recipe, scales=scales), IMAGENET, 1, tmp_path / "out", data=tmp_path)
    assert not (tmp_path / "out").exists()  # said before anything is trained
    tree("inaturalist", ["images"], 5)
    result = reproduce(replace(recipe, scales=scales), IMAGENET, 1, tmp_path / "out", data=tmp_path)
    shown = {effect.name.partition(":")[0]: effect for effect in result.effects}
    assert {f"rho on {name}" for name in IMAGENET_OOD[1:]} <= set(shown)
    assert math.isfinite(shown["rho on imagenet-sketch"].value)
    assert math.isnan(shown["rho on inaturalist"].value)  # it has no labels to probe
    shared = replace(find_recipe("ood-detection"), scales=scales)
    aurocs = {effect.name.partition(":")[0]: effect.value for effect in
              reproduce(shared, IMAGENET, 1, tmp_path / "out", data=tmp_path).effects}  # fmt: skip
    assert all(math.isfinite(aurocs[f"NECO AUROC on {name}"]) for name in IMAGENET_OOD[1:])


def test_a_small_classifier_starts_from_the_logits_that_a_high_temperature_divides(out):
    reproduce(find_recipe("controls"), "smoke", seeds=2, out=out)  # runs nothing where it has been
    for seed in (0, 1):
        plain, small = (load_run(out / "controls" / "smoke" / f"{label}-s{seed}").evaluation["first_logits_norm"]
                        for label in ("T_1", "T_1__classifier___10"))  # fmt: skip
        assert small == pytest.approx(plain / 10, rel=1e-5)


def test_ranks_of_samples_against_numpy(out):
    reproduce(find_recipe("rank-sweeps"), "smoke", seeds=2, out=out)
    run = load_run(out / "rank-sweeps" / "smoke" / "T_1-s0")
    found = run.evaluation["by_samples"]
    assert [one["samples"] for one in found] == [round(share * 200) for share in (1 / 16, 1 / 4, 1)]
    # All samples: what the run itself found.
    assert found[-1]["rank"] == run.evaluation["solution_rank"]["rank"]
    assert found[-1]["sigma"] == pytest.approx(run.evaluation["logits_sigma"])
    config = TrainConfig(**{**SMOKE_MLP, "class_balance": 0.2})
    labels = torch.cat([labels for _, labels in load_data(config).train.plain_batches(50)])
    assert labels.bincount().tolist() == [round(20 * 0.2 ** (k / 9)) for k in range(10)]


def test_ranks_of_the_whole_training_set_against_numpy():
    config = TrainConfig(**SMOKE_MLP)
    data = load_data(config)
    torch.manual_seed(0)
    model = build_model(config.model, data.classes, data.channels, data.image_size, config.model_kwargs)
    found = ranks_of_the_set(model, data, 30.0)
    with torch.no_grad():
        z = model(data.train.tensors[0])
    assert model.training and found["set_norm"] == pytest.approx(float(z.norm()), rel=1e-6)
    assert found["set_rank"] == np.linalg.matrix_rank(z.numpy(), rtol=RTOL) == 10
    # Nearly uniform rows: the threshold leaves few of their differences.
    assert found["set_rank_after"] == np.linalg.matrix_rank((z / 30).softmax(1).numpy(), rtol=RTOL) < 10


def test_softmax_rank_against_numpy(out):
    result = reproduce(find_recipe("softmax-rank"), "smoke", seeds=2, out=out)
    generator = torch.Generator().manual_seed(0)
    A, B = (2 * torch.rand(12, 2, generator=generator, dtype=torch.float64) - 1 for _ in range(2))
    steps, c = load_run(out / "softmax-rank" / "smoke" / "k_2-s0").series("softmax/scale")
    stored = load_run(out / "softmax-rank" / "smoke" / "k_2-s0").series("softmax/rank")[1]
    for at in range(len(steps)):
        z = c[at] * (A @ B.T).numpy()
        S = np.exp(z - z.max(0))
        S = S / S.sum(0)
        assert stored[at] == np.linalg.matrix_rank(S.astype(np.float32))
        sigma = np.linalg.svd(S, compute_uv=False)
        G = S.T @ S
        r = (G.sum(0) - np.diag(G)).max()
        bound = np.sqrt(1 + r) - np.sqrt(max(1 / 12 - r, 0))
        assert gap_bound(torch.from_numpy(S)) == pytest.approx(bound)
        assert sigma[0] - sigma[-1] <= bound * (1 + 1e-12)
    assert result.table["k=2"]["before"].mean == 2
    assert result.table["k=1"]["best"].mean > result.table["k=1"]["largest c"].mean
