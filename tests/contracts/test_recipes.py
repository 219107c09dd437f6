"""The full-size recipes hang together: what one reads, another writes; and they say what the modes and papers say."""

import re
from functools import cache
from itertools import takewhile
from pathlib import Path

import pytest
import yaml

from cirray.cli.verb import verb
from cirray.core.config import load_config
from cirray.generators.config import DecodingConfig, GeneratorConfig
from cirray.training.config import TrainingConfig

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "jobs" / "configs").glob("*.yaml"))
FULL = [path for path in CONFIGS if "-shapes-" not in path.name]
HARDWARE = {"cpu", "h200", "8gpu", "nodes", "8small"}


@cache
def tree_of(path):
    return yaml.safe_load(path.read_text())


@cache
def config_of(path):
    what = path.name.split("-")[0]
    return load_config(verb({"generator": "train-generator"}.get(what, what)).config_class(), path)


def places(value):
    """Every artifact path inside plain values."""
    if isinstance(value, dict):
        return {place for item in value.values() for place in places(item)}
    if isinstance(value, list):
        return {place for item in value for place in places(item)}
    return {value} if isinstance(value, str) and re.match(r"~/cirray/(?!quickstart|ray)", value) else set()


def test_there_are_recipes_for_every_stage_and_size():
    assert {path.stem.split("-")[-1] for path in FULL} == HARDWARE
    stages = {path.name.split("-")[0] for path in FULL}
    wanted = (
        "caption templates rewrite towers embed generator mine generate map pretrain finetune evaluate index convert "
        "export"
    )
    assert stages == set(wanted.split())


EVERYWHERE = [
    *(f"generator-{data}-instructblip-vicuna7b" for data in ("cirr", "fashioniq")),
    *("generate-nlvr2-mtst-vicuna7b", "generate-fashioniq-mtst-vicuna7b"),
    *(f"generate-{data}-reverse-vicuna7b" for data in ("cirr", "fashioniq")),
    *(f"pretrain-{data}-mtst-{mode}-blip2" for data in ("cirr", "fashioniq") for mode in ("paper", "improved")),
    *(f"finetune-{data}-ptha-{mode}-blip2" for data in ("cirr", "fashioniq") for mode in ("paper", "improved")),
    *(f"finetune-{data}-sprc-blip2" for data in ("cirr", "fashioniq")),
    *(f"finetune-{data}-clip4cir-{head}-rn50x4" for data in ("cirr", "fashioniq") for head in ("sum", "combiner")),
]


@pytest.mark.parametrize("name", EVERYWHERE)
def test_mtst_ptha_and_its_baselines_have_a_recipe_for_one_gpu_for_eight_and_for_many_nodes(name):
    one, eight, nodes = (config_of(CONFIGS[0].parent / f"{name}-{where}.yaml") for where in ("h200", "8gpu", "nodes"))

    def workers(run):
        ray = run.ray
        return run.pool.size if hasattr(run, "pool") else ray.num_workers if ray and ray.enabled else 1

    assert (workers(one), workers(eight), workers(nodes)) == (1, 8, 32)
    assert nodes.ray.address == "auto" and eight.ray.address != "auto"
    if hasattr(nodes, "training"):
        assert [run.training.engine for run in (one, eight, nodes)] == ["torch", "deepspeed", "deepspeed"]
        assert nodes.training.batch % workers(nodes) == 0 and nodes.training.zero_stage == 2


PAGE = (CONFIGS[0].parents[2] / "docs" / "RECIPES.md").read_text()
ANCHORS = {title.lower().replace(" ", "-") for title in re.findall(r"^## (.+)$", PAGE, flags=re.M)}


@pytest.mark.parametrize("path", FULL, ids=lambda path: path.stem)
def test_a_recipe_says_which_section_of_the_recipes_page_its_figures_come_from(path):
    comment = " ".join(
        line.removeprefix("# ") for line in takewhile(lambda x: x[0] == "#", path.read_text().splitlines())
    )
    named = re.findall(r"docs/RECIPES\.md#([\w-]+)", comment)
    assert named and set(named) <= ANCHORS, comment


@pytest.mark.parametrize("path", FULL, ids=lambda path: path.stem)
def test_what_a_recipe_reads_another_writes(path):
    written = {tree_of(other)["out"] for other in FULL if other != path}
    tree = tree_of(path)
    assert places({name: value for name, value in tree.items() if name != "out"}) <= written


PAPER = [path for path in FULL if "-paper-" in path.name or path.name.startswith("finetune") and "-sprc-" in path.name]
PAPER = [path for path in PAPER if "-spn-" not in path.name and "-vdg-" not in path.name]


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_paper_recipes_have_the_settings_of_the_paper_mode(path):
    config = config_of(path).training
    paper = TrainingConfig.for_mode("paper", objective=config.objective)
    names = ("negatives", "mask_duplicates", "one_per_group", "missing_reverse", "batch")
    assert {name: getattr(config, name) for name in names} == {name: getattr(paper, name) for name in names}
    assert config.optimizer.betas == (0.9, 0.98) and config.optimizer.eps == 1e-7
    for name in ("clip", "decay", "cycled_beta1", "weight_decay", "schedule"):
        assert getattr(config.optimizer, name) == getattr(paper.optimizer, name)
    if config.objective == "ptha":
        assert config.label_smoothing == paper.label_smoothing == 0.1


FROM_BLIP2 = [path for path in FULL if re.match(r"(pretrain|finetune)-.*-(mtst|ptha|sprc)-", path.name)]


@pytest.mark.parametrize("path", FROM_BLIP2, ids=lambda path: path.stem)
def test_sprc_mtst_ptha_and_spn_read_captions_as_lavis_does_and_only_ptha_attends_padding(path):
    """Masks: SPRC, SPN and MTST pass the tokenizer's (`blip2_qformer_cir_align_prompt.py`, `blip2_qformer_cir_cat.py`,
    line 129); PTHA's second pass takes ones (`blip2_qformer_tgir_concatembedding_sim.py`). Captions pass LAVIS's
    processor in all of them."""
    model = config_of(path).model
    assert model.text_processor == "blip_caption" and {"text_mask", "text_processor"} <= model.model_fields_set
    assert model.text_mask == ("ones" if "ptha-paper" in path.name else "true")


@pytest.mark.parametrize(
    ("name", "steps", "lr", "weights", "stretch"),
    [
        ("finetune-cirr-ptha-paper-blip2-h200", 50 * 220, 5e-6, 0.4, 1.6),
        ("finetune-fashioniq-ptha-paper-blip2-h200", 30 * 140, 1e-5, 1.0, 1.0),
        ("finetune-cirr-sprc-blip2-h200", 50 * 220, 1e-5, 0.4, 1.6),
        ("finetune-fashioniq-sprc-blip2-h200", 30 * 140, 2e-5, 1.0, 1.0),
    ],
)
def test_published_schedules_are_kept(name, steps, lr, weights, stretch):
    config = config_of(next(path for path in FULL if path.stem == name)).training
    assert (config.steps, config.optimizer.lr, config.optimizer.schedule_stretch) == (steps, lr, stretch)
    assert config.lambda_m == config.lambda_p == weights


def what_it_trains(run):
    """A retriever's loop, or all that decides what a generator becomes."""
    tree = run.to_dict()
    names = [name for name in tree if name not in ("ray", "device", "out")]
    kept = names if "alignment_training" in tree else ["training"]
    found = {name: dict(tree[name]) if isinstance(tree[name], dict) else tree[name] for name in kept}
    for loop in ("training", "alignment_training"):
        for name in ("engine", "zero_stage", "deepspeed"):
            found.get(loop, {}).pop(name, None)
    return found


def test_generators_on_several_gpus_have_workers_that_share_their_batches():
    several = [path for path in FULL if path.name.startswith("generator-") and not path.stem.endswith("-h200")]
    assert len(several) == 9
    for path in several:
        run = config_of(path)
        assert run.ray.num_workers == (32 if path.stem.endswith("-nodes") else 8) and run.ray.use_gpu
        assert run.training.engine == "deepspeed"
        assert run.training.zero_stage in ((3,) if path.stem.endswith("-8small") else (1, 2))
        assert run.training.zero_stage == 2 or "-vdg-" not in path.name


def test_the_same_recipe_on_other_hardware_trains_the_same_thing():
    by_name: dict[str, list] = {}
    for path in (path for path in FULL if path.name.startswith(("finetune", "pretrain", "generator-"))):
        by_name.setdefault(path.stem.rpartition("-")[0], []).append(config_of(path))
    compared = 0
    for first, *others in by_name.values():
        for other in others:
            assert what_it_trains(first) == what_it_trains(other)
            compared += 1
    assert compared > 16


@pytest.mark.parametrize(
    ("name", "steps", "batch", "lr", "tau"),
    [
        ("finetune-cirr-spn-paper-clip4cir-sum-rn50x4-h200", 3 * 176, 256, 2e-5, 0.02),
        ("finetune-fashioniq-spn-paper-clip4cir-sum-rn50x4-h200", 3 * 118, 256, 2e-5, 0.02),
        ("finetune-cirr-spn-paper-sprc-blip2-h200", 3 * 1410, 32, 1e-5, 0.05),
        ("finetune-fashioniq-spn-paper-sprc-blip2-h200", 3 * 750, 32, 1e-5, 0.05),
    ],
)
def test_the_second_stage_of_spn_has_the_settings_of_its_paper(name, steps, batch, lr, tau):
    run = config_of(next(path for path in FULL if path.stem == name))
    training, paper = run.training, TrainingConfig.for_mode("paper", objective="spn")
    assert (training.steps, training.batch, training.optimizer.lr, run.temperature) == (steps, batch, lr, tau)
    assert training.objective == "spn" and training.optimizer.schedule == "constant" and training.optimizer.eps == 1e-7
    sprc = "-sprc-" in name
    assert training.optimizer.betas == ((0.9, 0.98) if sprc else (0.9, 0.999)) and training.optimizer.clip is None
    assert training.optimizer.decay == paper.optimizer.decay == "all"
    assert training.bank.duplicate_cosine is paper.bank.duplicate_cosine is None
    assert (training.bank.trains == "second_pass") == sprc == training.bank.learn_temperature


def test_the_windows_of_spn_are_those_of_its_paper():
    windows = {
        path.stem: (lambda m: (m.rank_low, m.rank_high, m.quantiles, m.references_only, m.count))(
            config_of(path).mining
        )
        for path in FULL
        if path.name.startswith("mine") and "-spn-" in path.name
    }
    assert windows["mine-cirr-spn-clip-cpu"] == (10_000, 15_000, None, False, 0)
    assert windows["mine-fashioniq-spn-clip-cpu"] == (10_000, 20_000, None, True, 0)
    assert windows["mine-cirr-spn-sprc-cpu"][2:] == ((0.0, 1.0), True, 0)
    assert windows["mine-fashioniq-spn-sprc-cpu"][2:] == ((0.0, 1.0), True, 6000)
    assert windows["mine-cirr-spn-improved-cpu"][2] == (0.6, 0.9)
    assert windows["mine-fashioniq-spn-improved-cpu"][2] == (0.4, 0.8)


VDG = [path for path in FULL if path.name.startswith("finetune") and "-vdg-" in path.name]


@pytest.mark.parametrize("path", VDG, ids=lambda path: path.stem)
def test_vdg_recipes_pair_each_human_row_with_a_mined_one_at_the_papers_batch(path):
    config = config_of(path)
    training, matched = config.training, "-tdm-" in path.name
    assert (training.objective, training.mixing, training.mixing_ratio) == ("vdg", "paired", 1.0)
    matching = "tdm" if "-paper-" in path.name else "tdm_hard"
    assert training.terms == ({matching: 1.0} if matched else {}) and training.pair_texts == "drawn"
    assert (training.batch, training.optimizer.lr, training.hn_beta) == (512, 1e-4, 0.5 if matched else 0.0)
    rows = 28225 if "-cirr-" in path.name else 18000
    assert training.steps == (6 if matched else 10) * (rows // 512)
    if "-paper-" in path.name:
        clamp = config.model.temperature_clamp if matched else (config.dual.temperature,) * 2
        assert clamp == ((0.001, 0.5) if matched else (0.01, 0.01))  # as released; as the paper says, without code
        assert not training.mask_duplicates and training.optimizer.clip is None


@pytest.mark.parametrize(
    "path", [p for p in FULL if p.name.startswith("generator") and "-vdg-" in p.name], ids=lambda p: p.stem
)
def test_vdg_generators_have_the_papers_adapter_and_second_stage(path):
    config = config_of(path)
    lora, training = config.model.lora, config.training
    assert (lora.rank, lora.alpha, lora.dropout, lora.modules) == (64, 16, 0.05, ("q_proj", "v_proj"))
    steps = {"cirr": 221, "fashioniq": 141} if "-paper-" in path.name else {"cirr": 220, "fashioniq": 140}
    assert training.steps == 10 * steps[path.name.split("-")[1]] and training.batch == 128
    assert training.optimizer.schedule == "step" and round(training.optimizer.warmup * training.steps) == 100
    preset = GeneratorConfig.for_mode("vdg")
    for name in ("passes", "separators", "opening", "prompt", "reader_tuning", "tuning"):
        assert getattr(config.model, name) == getattr(preset, name)
    assert DecodingConfig.preset("vdg", batch=config.decoding.batch) == config.decoding


def named(stem):
    return config_of(next(path for path in FULL if path.stem == stem))


FINETUNE = [path for path in FULL if path.name.startswith("finetune")]


@pytest.mark.parametrize("path", [p for p in FINETUNE if "-improved-" in p.name], ids=lambda path: path.stem)
def test_improved_recipes_keep_the_best_weights_on_a_slice_that_is_not_trained_on(path):
    run = config_of(path)
    wanted = ("held_R@10", "held_R@50") if "-fashioniq-" in path.name else ("held_R@1", "held_R@5")
    rows = 4000 if "-fashioniq-" in path.name else 1000  # four texts a triplet
    assert run.validation.keep == wanted and run.validation.held_out == rows
    assert run.training.steps % run.validation.every == 0 and run.training.steps > run.validation.every
    if "-spn-" in path.name:
        first = next(other for other in FINETUNE if tree_of(other)["out"] == run.init)
        assert run.validation.patience == 1 and config_of(first).validation.held_out == rows


TRAINED = [path for path in FULL if path.name.startswith(("finetune", "pretrain"))]
OURS = ("-improved-", "-heldout-", "-twostage-")


@pytest.mark.parametrize("path", [p for p in TRAINED if not any(o in p.name for o in OURS)], ids=lambda path: path.stem)
def test_paper_recipes_train_on_every_triplet_and_keep_the_weights_that_the_papers_code_keeps(path):
    validation, cirr = config_of(path).validation, "-cirr-" in path.name
    assert validation.held_out == 0 and validation.patience is None
    seven = tuple(f"val_{name}" for name in ("R@1", "R@5", "R@10", "R@50", "Rs@1", "Rs@2", "Rs@3"))
    kept = seven if cirr and "-spn-" not in path.name else ("val_Avg",)
    assert validation.keep == (() if "-vdg-" in path.name else kept)  # VDG keeps the last epoch
    assert validation.queries == (4200 if "-vdg-" in path.name else "benchmark")


def test_texts_of_one_pair_are_drawn_where_the_papers_draw_them():
    for path in FINETUNE:
        tree = tree_of(path)
        if tree["data"].get("fashioniq", {}).get("train_captions") == "four_ways":
            assert tree["training"]["pair_texts"] == "drawn", path.name
        if "-cirr-spn-" in path.name:
            assert tree["training"]["pair_texts"] == "drawn" and len(tree["triplets"]) == 2
    for path in FULL:
        if path.name.startswith("generate-cirr-spn"):
            assert config_of(path).weight == 0.5
    templates = {path.stem: config_of(path).templates for path in FULL if path.name.startswith("templates")}
    assert templates["templates-cirr-spn-instead-cpu"] == ("0",)
    assert templates["templates-cirr-spn-unlike-cpu"] == ("1",)
    assert templates["templates-fashioniq-spn-cpu"] == ("2",)


@pytest.mark.parametrize("data", ["cirr", "fashioniq"])
def test_clip4cir_has_the_settings_of_its_paper(data):
    rows = {"cirr": 28225, "fashioniq": 18000}[data]
    summed, combined = (named(f"finetune-{data}-clip4cir-{name}-rn50x4-h200") for name in ("sum", "combiner"))
    for run in (summed, combined):
        assert run.training.negatives == "targets" and not run.training.mask_duplicates
        assert run.dual.temperature == 0.01 and not run.dual.learn_temperature
    assert summed.training.steps == 100 * (rows // 128) and summed.training.batch == 128 and summed.dual.train_text
    assert summed.training.optimizer.lr == 2e-6 and summed.training.optimizer.eps == 1e-7
    assert combined.training.steps == 300 * (rows // 4096) and combined.training.batch == 4096
    assert combined.training.optimizer.lr == 2e-5 and not combined.dual.train_text
    dual = combined.dual
    assert (dual.projection_factor * 640, dual.hidden_factor * 640, dual.head_dropout) == (2560, 5120, 0.5)


@pytest.mark.parametrize("size", ["l14", "b32"])
def test_both_stages_of_two_stage_retrieval_have_their_settings(size):
    mapped, composed = named(f"map-cc3m-twostage-clip-{size}-h200"), named(f"finetune-lasco-twostage-clip-{size}-h200")
    first, second = mapped.training, composed.training
    assert (first.objective, first.steps, first.batch, mapped.images) == ("mapping", 20_000, 512, 500_000)
    assert (first.optimizer.lr, first.optimizer.weight_decay, first.optimizer.clip) == (1e-4, 0.01, 1.0)
    assert first.optimizer.schedule == "cosine" and first.optimizer.warmup * first.steps == 500
    assert (first.alignment, first.lambda_sta, first.hardness, first.teacher_mix) == ("mixed", 1.0, 0.5, 0.0)
    assert (first.teacher_temperature, first.student_temperature) == (0.05, 0.07)
    injection, model = mapped.model.injection, mapped.model
    assert (injection.layers, injection.heads, injection.factor, model.tokens) == (2, 8, 4, 1)
    assert (model.phi.hidden, model.phi.dropout, model.phi.activation) == (0, 0.5, "gelu")
    assert (model.tuning, model.adapter_width, model.temperature) == ("adapter", 64, 0.07)
    assert (second.objective, second.steps, second.batch, composed.labels) == ("composing", 2000, 512, 10_000)
    assert (second.optimizer.lr, second.optimizer.weight_decay, second.optimizer.schedule) == (1e-4, 0.01, "cosine")
    assert second.optimizer.warmup * second.steps == 100 and second.composing.lambda_ret == 0.5
    assert (second.composing.hard, second.composing.ranks, second.composing.max_cosine) == (5, (2, 50), 0.9)
    assert second.composing.reference and second.mask_duplicates and composed.validation.keep == ()


def test_pic2word_searle_and_lincir_have_the_settings_of_their_papers():
    pic, searle, lincir = (named(f"map-cc3m-{name}-clip-l14-h200") for name in ("pic2word", "searle", "lincir"))
    phi, training = pic.model.phi, pic.training
    assert (phi.hidden, phi.dropout, phi.activation, pic.model.query_prompt) == (
        512, 0.1, "relu", "a photo of $ , {text}",
    )  # fmt: skip
    assert (training.objective, training.alignment, training.batch) == ("mapping", "none", 8 * 128)
    assert (training.optimizer.lr, training.optimizer.weight_decay) == (1e-4, 0.1)
    assert training.optimizer.warmup * training.steps == pytest.approx(10_000, abs=0.01)
    search, training = searle.training.search, searle.training
    assert (search.steps, search.optimizer.lr, search.average, search.phrase_weight) == (350, 2e-2, 0.99, 0.5)
    assert (training.objective, training.batch, training.optimizer.lr) == ("distil", 256, 1e-4)
    assert training.steps * 256 / searle.images == pytest.approx(100, rel=0.01)
    training = lincir.training
    assert (training.objective, training.batch, training.steps, training.noise) == ("text_only", 8 * 64, 20_000, 1.0)
    assert (training.optimizer.lr, training.optimizer.weight_decay) == (1e-4, 0.01)
    for run in (searle, lincir):
        assert (run.model.phi.hidden, run.model.phi.dropout, run.model.phi.activation) == (0, 0.5, "gelu")
    assert all(run.model.injection.layers == 0 and run.model.phi.reads == "raw" for run in (pic, searle, lincir))
    assert pic.validation.data is searle.validation.data is None and lincir.validation.every == 1000
    assert all(run.training.optimizer.clip is None for run in (pic, searle, lincir))
