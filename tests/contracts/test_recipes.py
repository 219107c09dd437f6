"""The full-size recipes hang together: what one reads, another writes; and they say what the modes and papers say."""

import re
import runpy
from pathlib import Path

import pytest
import yaml
from modes import decoding_preset, generator_mode, training_mode

from cirray.core.errors import ConfigError

FILES = runpy.run_path(str(Path(__file__).resolve().parents[1] / "fixtures" / "recipe_files.py"))
FULL, HARDWARE = FILES["FULL"], FILES["HARDWARE"]
comment_of, config_of, name_of, overlays_for, runs_of, verb_of = (
    FILES[name] for name in ("comment_of", "config_of", "name_of", "overlays_for", "runs_of", "verb_of")
)


def named(pattern, *verbs):
    """Names of the full-size recipes of some verbs (all, when none is named) that hold a pattern."""
    found = [name_of(path) for path in FULL if not verbs or verb_of(path) in verbs]
    return [name for name in found if re.search(pattern, name)]


def tree_of(name):
    return yaml.safe_load(FILES["path_of"](name).read_text())


def places(value):
    """Every artifact path inside plain values."""
    if isinstance(value, dict):
        return {place for item in value.values() for place in places(item)}
    if isinstance(value, list | tuple):
        return {place for item in value for place in places(item)}
    return {value} if isinstance(value, str) and re.match(r"~/cirray/(?!ray|world)", value) else set()


def test_there_are_recipes_for_every_stage():
    wanted = (
        "caption templates rewrite towers embed train-generator mine generate map pretrain finetune evaluate index "
        "convert export"
    )
    assert {verb_of(path) for path in FULL} == set(wanted.split())


EVERYWHERE = [
    *(f"{data}/train-generator-mtg" for data in ("cirr", "fashioniq")),
    *("nlvr2/generate-mtst", "fashioniq/generate-mtst"),
    *(f"{data}/generate-reverse" for data in ("cirr", "fashioniq")),
    *(f"{data}/pretrain-mtst-{mode}" for data in ("cirr", "fashioniq") for mode in ("paper", "improved")),
    *(f"{data}/finetune-ptha-{mode}" for data in ("cirr", "fashioniq") for mode in ("paper", "improved")),
    *(f"{data}/finetune-sprc" for data in ("cirr", "fashioniq")),
    *(f"{data}/finetune-clip4cir-{head}" for data in ("cirr", "fashioniq") for head in ("sum", "combiner")),
]


@pytest.mark.parametrize("name", EVERYWHERE)
def test_mtst_ptha_and_its_baselines_run_on_one_gpu_on_eight_and_on_many_nodes(name):
    eight, nodes = (next(x for x in overlays_for(name) if x.endswith(where)) for where in ("8gpu", "nodes"))
    one, eight, nodes = config_of(name), config_of(name, (eight,)), config_of(name, (nodes,))

    def workers(run):
        ray = run.ray
        return run.pool.size if hasattr(run, "pool") else ray.num_workers if ray and ray.enabled else 1

    assert (workers(one), workers(eight), workers(nodes)) == (1, 8, 32)
    assert nodes.ray.address == "auto" and eight.ray.address != "auto"
    if hasattr(nodes, "training"):
        assert [run.training.engine for run in (one, eight, nodes)] == ["torch", "deepspeed", "deepspeed"]
        assert nodes.training.batch % workers(nodes) == 0 and nodes.training.zero_stage == 2


PAGE = (Path(__file__).resolve().parents[2] / "docs" / "RECIPES.md").read_text()
ANCHORS = {title.lower().replace(" ", "-") for title in re.findall(r"^## (.+)$", PAGE, flags=re.M)}


@pytest.mark.parametrize("path", FULL, ids=name_of)
def test_a_recipe_says_which_section_of_the_recipes_page_its_figures_come_from(path):
    comment = " ".join(comment_of(path))
    sections = re.findall(r"docs/RECIPES\.md#([\w-]+)", comment)
    assert sections and set(sections) <= ANCHORS, comment


ALL_RUNS = [config_of(name_of(path), (), tuple(assignments)) for path in FULL for assignments in runs_of(path).values()]


def test_what_a_recipe_reads_another_writes():
    written = [run.out for run in ALL_RUNS]
    assert len(set(written)) == len(written)
    for run in ALL_RUNS:
        tree = run.to_dict()
        assert places({name: value for name, value in tree.items() if name != "out"}) <= {*written} - {run.out}, run.out


def test_there_are_few_overlays_and_each_fits_a_recipe_and_refuses_another():
    fitting = {overlay for path in FULL for overlay in overlays_for(name_of(path))}
    assert fitting == {path.stem for path in HARDWARE} and len(fitting) <= 12
    for path in FULL:
        for overlay in overlays_for(name_of(path)):
            config_of(name_of(path), (overlay,))
    with pytest.raises(ConfigError, match="training.*zero_stage to 2 or less"):
        config_of("cirr/finetune-spn-paper-sprc", ("train-8small",))
    with pytest.raises(ConfigError, match="decode_tasks"):
        config_of("cirr/finetune-sprc", ("embed-8gpu",))
    with pytest.raises(ConfigError, match="alignment_training"):
        config_of("cirr/finetune-sprc", ("train-generator-vdg-8gpu",))


PAPER = named(r"(mtst|ptha)-paper|finetune-sprc", "pretrain", "finetune")


@pytest.mark.parametrize("name", PAPER)
def test_paper_recipes_have_the_settings_of_the_paper_mode(name):
    config = config_of(name).training
    paper = training_mode("paper", objective=config.objective)
    names = ("negatives", "mask_duplicates", "one_per_group", "batch")
    assert {name: getattr(config, name) for name in names} == {name: getattr(paper, name) for name in names}
    assert config.optimizer.betas == (0.9, 0.98) and config.optimizer.eps == 1e-7
    for name in ("clip", "decay", "cycled_beta1", "weight_decay", "schedule"):
        assert getattr(config.optimizer, name) == getattr(paper.optimizer, name)
    if config.objective == "ptha":
        assert config.terms["infonce"] == paper.terms["infonce"] and config.terms["infonce"].label_smoothing == 0.1
        assert config.terms["two_hop"].missing_reverse == paper.terms["two_hop"].missing_reverse == "error"


FROM_BLIP2 = named(r"-(mtst|ptha|sprc)", "pretrain", "finetune")


@pytest.mark.parametrize("name", FROM_BLIP2)
def test_sprc_mtst_ptha_and_spn_read_captions_as_lavis_does_and_only_ptha_attends_padding(name):
    """Masks: SPRC, SPN and MTST pass the tokenizer's (`blip2_qformer_cir_align_prompt.py`, `blip2_qformer_cir_cat.py`,
    line 129); PTHA's second pass takes ones (`blip2_qformer_tgir_concatembedding_sim.py`). Captions pass LAVIS's
    processor in all of them."""
    model = config_of(name).encoder.settings
    assert model.text_processor == "blip_caption" and {"text_mask", "text_processor"} <= model.model_fields_set
    assert model.text_mask == ("ones" if "ptha-paper" in name else "true")


@pytest.mark.parametrize(
    ("name", "steps", "lr", "weights", "stretch"),
    [
        ("cirr/finetune-ptha-paper", 50 * 220, 5e-6, 0.4, 1.6),
        ("fashioniq/finetune-ptha-paper", 30 * 140, 1e-5, 1.0, 1.0),
        ("cirr/finetune-sprc", 50 * 220, 1e-5, 0.4, 1.6),
        ("fashioniq/finetune-sprc", 30 * 140, 2e-5, 1.0, 1.0),
    ],
)
def test_published_schedules_are_kept(name, steps, lr, weights, stretch):
    config = config_of(name).training
    assert (config.steps, config.optimizer.lr, config.optimizer.schedule_stretch) == (steps, lr, stretch)
    assert {name: term.weight for name, term in config.active_terms.items() if name != "infonce"} == {
        "rtc": weights, "prompt_align" if name.endswith("sprc") else "two_hop": weights,
    }  # fmt: skip


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
    for name in named("", "train-generator"):
        for overlay in overlays_for(name):
            run = config_of(name, (overlay,))
            assert run.ray.num_workers == (32 if overlay.endswith("nodes") else 8) and run.ray.use_gpu
            assert run.training.engine == "deepspeed"
            assert run.training.zero_stage == {"train-8gpu": 1, "train-8small": 3}.get(overlay, 2)


@pytest.mark.parametrize("name", named("", "finetune", "pretrain", "train-generator"))
def test_the_same_recipe_on_other_hardware_trains_the_same_thing(name):
    overlays = overlays_for(name)
    assert len(overlays) >= (2 if "-spn-" in name else 3)
    for overlay in overlays:
        assert what_it_trains(config_of(name)) == what_it_trains(config_of(name, (overlay,)))


@pytest.mark.parametrize(
    ("name", "steps", "batch", "lr", "tau"),
    [
        ("cirr/finetune-spn-paper-clip4cir-sum", 3 * 176, 256, 2e-5, 0.02),
        ("fashioniq/finetune-spn-paper-clip4cir-sum", 3 * 118, 256, 2e-5, 0.02),
        ("cirr/finetune-spn-paper-sprc", 3 * 1410, 32, 1e-5, 0.05),
        ("fashioniq/finetune-spn-paper-sprc", 3 * 750, 32, 1e-5, 0.05),
    ],
)
def test_the_second_stage_of_spn_has_the_settings_of_its_paper(name, steps, batch, lr, tau):
    run = config_of(name)
    training, paper = run.training, training_mode("paper", objective="spn")
    assert (training.steps, training.batch, training.optimizer.lr, run.temperature) == (steps, batch, lr, tau)
    assert training.objective == "spn" and training.optimizer.schedule == "constant" and training.optimizer.eps == 1e-7
    sprc = name.endswith("-sprc")
    assert training.optimizer.betas == ((0.9, 0.98) if sprc else (0.9, 0.999)) and training.optimizer.clip is None
    assert training.optimizer.decay == paper.optimizer.decay == "all"
    bank = training.terms["bank_infonce"]
    assert bank.duplicate_cosine is paper.terms["bank_infonce"].duplicate_cosine is None
    assert (bank.trains == "second_pass") == sprc == bank.learn_temperature


def test_the_windows_of_spn_are_those_of_its_paper():
    mined = {name: config_of(name).mining for name in named("-spn-", "mine")}
    windows = {
        name: (own.rank_low, own.rank_high, own.quantiles, own.references_only, mining.count)
        for name, mining in mined.items()
        if (own := mining.policy.settings)
    }
    assert windows["cirr/mine-spn-clip"] == (10_000, 15_000, None, False, 0)
    assert windows["fashioniq/mine-spn-clip"] == (10_000, 20_000, None, True, 0)
    assert windows["cirr/mine-spn-sprc"][2:] == ((0.0, 1.0), True, 0)
    assert windows["fashioniq/mine-spn-sprc"][2:] == ((0.0, 1.0), True, 6000)
    assert windows["cirr/mine-spn-improved"][2] == (0.6, 0.9)
    assert windows["fashioniq/mine-spn-improved"][2] == (0.4, 0.8)


@pytest.mark.parametrize("name", named("-vdg-", "finetune"))
def test_vdg_recipes_pair_each_human_row_with_a_mined_one_at_the_papers_batch(name):
    config = config_of(name)
    training, matched = config.training, "-tdm" in name
    assert (training.objective, training.mixing.kind, training.mixing.settings.ratio) == ("vdg", "paired", 1.0)
    matching = "tdm" if "-paper-" in name else "tdm_hard"
    weights = {name: term.weight for name, term in training.active_terms.items()}
    assert weights == {"tcc": 1.0, **({matching: 1.0} if matched else {})} and training.pair_texts == "drawn"
    beta = training.terms["tcc"].beta
    assert (training.batch, training.optimizer.lr, beta) == (512, 1e-4, 0.5 if matched else 0.0)
    rows = 28225 if name.startswith("cirr/") else 18000
    assert training.steps == (6 if matched else 10) * (rows // 512)
    if "-paper-" in name:
        encoder = config.encoder.settings
        clamp = encoder.temperature_clamp if matched else (encoder.temperature,) * 2
        assert clamp == ((0.001, 0.5) if matched else (0.01, 0.01))  # as released; as the paper says, without code
        assert not training.mask_duplicates and training.optimizer.clip is None


@pytest.mark.parametrize("name", named("-vdg-", "train-generator"))
def test_vdg_generators_have_the_papers_adapter_and_second_stage(name):
    config = config_of(name)
    lora, training = config.generator.settings.lora, config.training
    assert (lora.rank, lora.alpha, lora.dropout, lora.modules) == (64, 16, 0.05, ("q_proj", "v_proj"))
    steps = {"cirr": 221, "fashioniq": 141} if name.endswith("paper") else {"cirr": 220, "fashioniq": 140}
    assert training.steps == 10 * steps[name.split("/")[0]] and training.batch == 128
    assert training.optimizer.schedule == "step" and round(training.optimizer.warmup * training.steps) == 100
    preset = generator_mode("vdg")
    for name in ("passes", "separators", "opening", "prompt", "reader_tuning", "tuning"):
        assert getattr(config.generator.settings, name) == getattr(preset, name)
    assert decoding_preset("vdg", batch=config.decoding.batch) == config.decoding


FINETUNE = named("", "finetune")


@pytest.mark.parametrize("name", [name for name in FINETUNE if "-improved" in name])
def test_improved_recipes_keep_the_best_weights_on_a_slice_that_is_not_trained_on(name):
    run = config_of(name)
    wanted = ("held_R@10", "held_R@50") if name.startswith("fashioniq") else ("held_R@1", "held_R@5")
    rows = 4000 if name.startswith("fashioniq") else 1000  # four texts a triplet
    assert run.validation.keep == wanted and run.validation.held_out == rows
    assert run.training.steps % run.validation.every == 0 and run.training.steps > run.validation.every
    if "-spn-" in name:
        first = next(other for other in FINETUNE if config_of(other).out == run.init)
        assert run.validation.patience == 1 and config_of(first).validation.held_out == rows


OURS = "-improved|-heldout|-twostage"


@pytest.mark.parametrize("name", [n for n in named("", "finetune", "pretrain") if not re.search(OURS, n)])
def test_paper_recipes_train_on_every_triplet_and_keep_the_weights_that_the_papers_code_keeps(name):
    validation, cirr = config_of(name).validation, name.startswith("cirr/")
    assert validation.held_out == 0 and validation.patience is None
    seven = tuple(f"val_{name}" for name in ("R@1", "R@5", "R@10", "R@50", "Rs@1", "Rs@2", "Rs@3"))
    kept = seven if cirr and "-spn-" not in name else ("val_Avg",)
    assert validation.keep == (() if "-vdg-" in name else kept)  # VDG keeps the last epoch
    assert validation.queries == (4200 if "-vdg-" in name else "benchmark")


def test_texts_of_one_pair_are_drawn_where_the_papers_draw_them():
    for name in FINETUNE:
        tree = tree_of(name)
        if tree["data"].get("fashioniq", {}).get("train_captions") == "four_ways":
            assert tree["training"]["pair_texts"] == "drawn", name
        if name.startswith("cirr/finetune-spn"):
            assert tree["training"]["pair_texts"] == "drawn" and len(tree["triplets"]) == 2
    assert all(config_of(name).weight == 0.5 for name in named("cirr/generate-spn"))
    templates = {run.out.rpartition("/")[2]: run.templates for run in ALL_RUNS if hasattr(run, "templates")}
    assert templates["spn-templates-instead"] == ("0",) and templates["spn-templates-unlike"] == ("1",)
    assert templates["spn-templates"] == ("2",)


@pytest.mark.parametrize("data", ["cirr", "fashioniq"])
def test_clip4cir_has_the_settings_of_its_paper(data):
    rows = {"cirr": 28225, "fashioniq": 18000}[data]
    summed, combined = (config_of(f"{data}/finetune-clip4cir-{name}") for name in ("sum", "combiner"))
    for run in (summed, combined):
        assert run.training.negatives == "targets" and not run.training.mask_duplicates
        assert run.encoder.settings.temperature == 0.01 and not run.encoder.settings.learn_temperature
    assert summed.training.steps == 100 * (rows // 128) and summed.training.batch == 128
    assert summed.encoder.settings.train_text
    assert summed.training.optimizer.lr == 2e-6 and summed.training.optimizer.eps == 1e-7
    assert combined.training.steps == 300 * (rows // 4096) and combined.training.batch == 4096
    assert combined.training.optimizer.lr == 2e-5 and not combined.encoder.settings.train_text
    head = combined.encoder.settings.fusion.settings
    assert (head.projection_factor * 640, head.hidden_factor * 640, head.dropout) == (2560, 5120, 0.5)


@pytest.mark.parametrize("size", ["l14", "b32"])
def test_both_stages_of_two_stage_retrieval_have_their_settings(size):
    what = "" if size == "l14" else "CLIP ViT-B/32"
    mapped, composed = (
        config_of(name, (), runs_of(FILES["path_of"](name))[what])
        for name in ("cc3m/map-twostage", "lasco/finetune-twostage")
    )
    assert mapped.out.endswith(size) and composed.init == mapped.out
    first, second = mapped.training, composed.training
    assert (first.objective.kind, first.steps, first.batch, mapped.images) == ("mapping", 20_000, 512, 500_000)
    assert (first.optimizer.lr, first.optimizer.weight_decay, first.optimizer.clip) == (1e-4, 0.01, 1.0)
    assert first.optimizer.schedule == "cosine" and first.optimizer.warmup * first.steps == 500
    own = first.objective.settings
    assert (own.alignment, own.lambda_sta, own.hardness, own.teacher_mix) == ("mixed", 1.0, 0.5, 0.0)
    assert (own.teacher_temperature, own.student_temperature) == (0.05, 0.07)
    injection, model = mapped.model.injection, mapped.model
    assert (injection.layers, injection.heads, injection.factor, model.tokens) == (2, 8, 4, 1)
    assert (model.phi.hidden, model.phi.dropout, model.phi.activation) == (0, 0.5, "gelu")
    assert (model.tuning, model.adapter_width, model.temperature) == ("adapter", 64, 0.07)
    assert (second.objective, second.steps, second.batch, composed.labels) == ("composing", 2000, 512, 10_000)
    assert (second.optimizer.lr, second.optimizer.weight_decay, second.optimizer.schedule) == (1e-4, 0.01, "cosine")
    assert second.optimizer.warmup * second.steps == 100 and second.terms["retention"].weight == 0.5
    composing = second.terms["composing"]
    assert (composing.hard, composing.ranks, composing.max_cosine) == (5, (2, 50), 0.9)
    assert composing.reference and second.mask_duplicates and composed.validation.keep == ()


def test_pic2word_searle_and_lincir_have_the_settings_of_their_papers():
    pic, searle, lincir = (config_of(f"cc3m/map-{name}") for name in ("pic2word", "searle", "lincir"))
    phi, training = pic.model.phi, pic.training
    assert (phi.hidden, phi.dropout, phi.activation, pic.model.query_prompt) == (
        512, 0.1, "relu", "a photo of $ , {text}",
    )  # fmt: skip
    objective = training.objective
    assert (objective.kind, objective.settings.alignment, training.batch) == ("mapping", "none", 8 * 128)
    assert (training.optimizer.lr, training.optimizer.weight_decay) == (1e-4, 0.1)
    assert training.optimizer.warmup * training.steps == pytest.approx(10_000, abs=0.01)
    search, training = searle.training.objective.settings.search, searle.training
    assert (search.steps, search.optimizer.lr, search.average, search.phrase_weight) == (350, 2e-2, 0.99, 0.5)
    assert (training.objective.kind, training.batch, training.optimizer.lr) == ("distil", 256, 1e-4)
    assert training.steps * 256 / searle.images == pytest.approx(100, rel=0.01)
    training = lincir.training
    assert (training.objective.kind, training.batch, training.steps) == ("text_only", 8 * 64, 20_000)
    assert training.objective.settings.noise == 1.0
    assert (training.optimizer.lr, training.optimizer.weight_decay) == (1e-4, 0.01)
    for run in (searle, lincir):
        assert (run.model.phi.hidden, run.model.phi.dropout, run.model.phi.activation) == (0, 0.5, "gelu")
    assert all(run.model.injection.layers == 0 and run.model.phi.reads == "raw" for run in (pic, searle, lincir))
    assert pic.validation.data is searle.validation.data is None and lincir.validation.every == 1000
    assert all(run.training.optimizer.clip is None for run in (pic, searle, lincir))
