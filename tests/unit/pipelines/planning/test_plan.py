"""`cirray plan`: what it says of recipes and of runs that are there, and what it advises."""

import json
import runpy
from functools import cache
from pathlib import Path

import pytest

from cirray.cli.config import verb_of
from cirray.cli.main import main
from cirray.cli.plan import PLANNABLE, plan_file
from cirray.cli.verb import verb
from cirray.cli.words import read_words
from cirray.core.config import load_config, validate
from cirray.core.errors import ConfigError
from cirray.pipelines.features.config import EmbedRun
from cirray.pipelines.planning.config import PlanConfig, PlanRun
from cirray.pipelines.planning.inputs import RecipesBeside
from cirray.pipelines.planning.plan import plan_run
from cirray.pipelines.texts.config import GenerateRun, GeneratorRun, MineRun
from cirray.pipelines.training.config import TrainRun, TuneRun
from cirray.pipelines.training.inputs import read_inputs
from cirray.pipelines.training.start import start_retriever

ROOT = Path(__file__).resolve().parents[4]
CONFIGS = ROOT / "jobs" / "configs"
TINY = runpy.run_path(str(ROOT / "tests" / "fixtures" / "tiny_training.py"))


@cache
def plan_of(name, *assignments, overlays=(), **plan):
    files = [str(CONFIGS / f"{file}.yaml") for file in (name, *overlays)]
    return plan_file(PlanRun(files=files, assignments=assignments, plan=PlanConfig(**plan)))


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    return TINY["make"](tmp_path_factory.mktemp("p"))


def test_texts_by_a_large_model_are_planned_in_tokens_hours_and_price():
    report = plan_of("nlvr2/generate-lmm", rows=10_000, answer_tokens=20, tokens_per_second=700.0, price=(0.5, 2.0))
    read, written = report.value("tokens read"), report.value("tokens written")
    assert written == 2 * 20 + 30 and 512 < read < 2 * 256 + 200  # two pictures of 448 pixels, 28 a token
    assert report.value("time") == pytest.approx(10_000 * written / 700)
    assert report.value("cost") == pytest.approx(10_000 * (read * 0.5 + written * 2.0) / 1e6)
    assert report.value("tokens") == 10_000 * (read + written) and report.exit_status == 0
    blind = plan_of("nlvr2/generate-lmm", rows=10_000, picture_tokens=100)
    assert blind.value("time") is None and blind.value("cost") is None and blind.value("tokens read") < 350
    assert "set plan.tokens_per_second" in blind.text() and "set plan.price" in blind.text()


def test_a_recipe_of_full_size_is_planned_before_anything_is_there():
    report = plan_of("cirr/finetune-ptha-improved")
    assert report.warnings == () and report.exit_status == 0
    assert report.value("trained weights") == pytest.approx(186.1e6, rel=1e-3)
    assert report.value("patch tokens") == "257 x 1408"
    assert report.value("weights") == 4 * report.value("trained weights") == report.value("gradients")
    assert report.value("steps") == 11_000 and report.value("epochs") == pytest.approx(49.9, abs=0.1)
    assert 0.001 < report.value("all steps") / 3600 < 48
    converted = plan_of("cirr/finetune-sprc")  # from LAVIS' file, still to be converted
    assert converted.value("trained weights") == report.value("trained weights") and converted.exit_status == 0
    assert "recipe cirr/pretrain-mtst-improved.yaml" in report.text() and report.text().endswith("it fits")


def test_what_does_not_fit_names_the_setting_and_following_it_helps(fields):
    def told(room, **training):
        tree = {**fields, "out": "x", "training": {**fields["training"], "batch": 64, **training}}
        return plan_run(validate(TrainRun, tree), PlanConfig(reserve_gib=0, memory_gib=room / 2**30))

    whole = told(2**40).value("all of it")
    report = told(whole // 2)
    (warning,) = report.warnings
    assert (
        report.exit_status == 1
        and "encoder.settings.gradient_checkpointing=true" in warning
        and "precision=bf16" in warning
    )
    less = int(warning.split("training.batch=")[1].split()[0])
    assert 8 <= less < 64
    assert told(whole // 2, batch=less).warnings == ()
    pieces = int(warning.split("training.pieces=")[1].split()[0])
    assert 2 <= pieces < 64 and told(whole // 2, pieces=pieces).warnings == ()
    assert "deepspeed" in told(100_000).warnings[0]


def test_a_retrievers_batch_in_pieces_takes_the_memory_of_one_and_vectors_of_all_and_goes_through_twice(fields):
    def told(**training):
        tree = {**fields, "out": "x", "training": {**fields["training"], "batch": 64, **training}}
        return plan_run(validate(TrainRun, tree), PlanConfig())

    whole, parted = told(), told(pieces=8)
    assert parted.value("activations at most") < whole.value("activations at most") / 4
    assert parted.value("batch") * 8 == whole.value("batch")
    assert parted.value("vectors") > 64 * 4 * 8 and "of the whole batch" not in whole.text()
    assert 1.2 < parted.value("operations of a step") / whole.value("operations of a step") < 1.6
    with pytest.raises(ConfigError, match="pieces=8 does not go with the terms tdm"):
        told(pieces=8, terms={"tdm": 1.0})


def test_a_frozen_language_model_in_fp32_is_advised_to_take_16_bits():
    fields = ("language_dtype=float32", "training.batch=4", "alignment=none")
    report = plan_of("cirr/train-generator-mtg", *fields, gpu="a10")
    assert "language_dtype=bfloat16" in report.warnings[0]
    assert report.value("language model") == pytest.approx(4 * 6.74e9, rel=0.01)


def test_a_generators_alignment_is_counted_and_pieces_lower_both():
    rows = ("alignment=captions", "training.batch=128", "alignment_training.batch=512")
    whole = plan_of("shapes/train-generator-vdg", *rows)
    parted = plan_of("shapes/train-generator-vdg", *rows, "training.pieces=4", "alignment_training.pieces=4")
    for line in ("alignment before it", "all of it"):
        assert parted.value(line) < whole.value(line)
    assert whole.value("alignment before it") > whole.value("all of it")  # 512 rows a step against 128
    assert plan_of("shapes/train-generator", gpu="cpu").value("room") > 0


def test_a_generator_on_eight_gpus_shares_rows_and_optimiser_and_holds_its_language_model_on_each():
    one = plan_of("cirr/train-generator-mtg", "alignment=none")
    many = plan_of("cirr/train-generator-mtg", "alignment=none", overlays=("hardware/train-8gpu",))
    assert one.value("steps") == many.value("steps") and one.value("weights") == many.value("weights")
    assert one.value("language model") == many.value("language model") > 1.3e10
    assert many.value("batch") * 8 == one.value("batch")
    assert many.value("optimiser") < one.value("optimiser") / 4
    assert many.value("activations saved") < one.value("activations saved") / 6


def test_a_generation_counts_cache_soft_tokens_and_steps():
    report = plan_of("cirr/generate-reverse")
    rows, beams = 64, 5
    assert report.value("key-value cache") == 2 * 32 * 4096 * 2 * rows * beams * (report.value("prompt") + 47)
    assert report.value("pairs to write") == 28_225
    assert report.value("soft tokens of images") == 20_000 * 32 * 4096 * 4
    assert report.value("tokens") > 0 and report.value("all pairs") > 0


def test_embedding_tells_the_disk_and_compares_it():
    report = plan_of("cirr/embed", disk_gib=1)
    assert report.value("features") == pytest.approx(21_551 * 257 * 1408 * 2, rel=1e-3)
    assert "of 1 GiB" in report.warnings[0] and "features=[]" in report.warnings[0]


def test_a_measured_throughput_replaces_the_estimate(fields):
    report = plan_run(validate(TrainRun, {**fields, "out": "x"}), PlanConfig(samples_per_second=500.0))
    assert report.value("all steps") == pytest.approx(20 * 8 / 500)


def test_more_workers_and_stages_take_less_of_each_card(fields):
    def told(**more):
        training = {**fields["training"], "batch": 64, "engine": "deepspeed", "zero_stage": 3}
        return plan_run(validate(TrainRun, {**fields, "out": "x", "training": training, **more}))

    one, eight = told(), told(ray={"num_workers": 8})
    assert eight.value("weights") * 7 < one.value("weights") and eight.value("optimiser") * 7 < one.value("optimiser")
    assert eight.value("activations saved") < one.value("activations saved") / 4


def test_states_are_told_for_every_zero_stage_and_the_runs_own_is_marked():
    report = plan_of("cirr/finetune-ptha-improved", overlays=("hardware/train-8small",))
    whole, one, two, three = (report.value(name) for name in ("engine torch", "ZeRO 1", "ZeRO 2", "ZeRO 3"))
    assert whole > one > two > three and whole == pytest.approx(16 * report.value("trained weights"), rel=1e-5)
    (own,) = [line for lines in report.sections.values() for line in lines if "this run" in line.note]
    assert own.name == "ZeRO 3" and "of the host" in own.note
    assert own.value == report.value("weights") + report.value("gradients") + report.value("optimiser")


def test_a_training_tells_its_features_on_disk(fields):
    made = plan_of("cirr/embed").value("features")
    assert plan_of("cirr/finetune-sprc").value("features") == made
    live = plan_run(validate(TrainRun, {**fields, "features": [], "out": "x"}))
    assert live.value("features") is None


@pytest.mark.parametrize("half", [False, True])
def test_a_negative_bank_and_the_frozen_twin_that_encodes_it_are_counted(fields, half):
    training = {**fields["training"], "objective": "spn", "terms": {"bank_infonce": {"half": half}}}
    run = validate(TrainRun, {**fields, "out": "x", "training": training})
    report = plan_run(run, PlanConfig(images=1000))
    sizes = run.encoder.settings
    assert report.value("negative bank") == 1000 * sizes.qformer.queries * sizes.embed_dim * (2 if half else 4)
    assert report.value("frozen weights") == report.value("trained weights") > 0
    parts = ("weights", "gradients", "optimiser", "activations at most", "batch", "negative bank")
    assert report.value("all of it") == sum(report.value(name) for name in parts)


def test_recipes_of_clip_are_planned_with_the_tokens_that_their_towers_give():
    assert plan_of("circo/embed").value("patch tokens") == "257 x 1024"
    pooled = plan_of("cirr/embed", "tower=~/cirray/towers/clip-l14-pooled")
    assert pooled.value("patch tokens") == "1 x 768"


def test_what_a_plan_cannot_know_or_need_not_is_said_in_words():
    with pytest.raises(ConfigError, match="'caption_template' has no network: no accelerator"):
        plan_of("cirr/generate-spn-clip")
    with pytest.raises(ConfigError, match="'cc3m/map-twostage.yaml' first"):
        plan_of("lasco/finetune-twostage")


def test_a_run_whose_inputs_are_there_is_counted_as_it_will_be(fields):
    run = validate(TrainRun, {**fields, "out": "x"})
    report = plan_run(run)
    real = start_retriever(run, read_inputs(run), 16)
    assert report.value("trained weights") == sum(item.numel() for item in real.parameters())
    assert report.value("patch tokens") == "5 x 16"
    assert report.value("epochs") == pytest.approx(20 * 8 / 96)
    assert plan_run(TuneRun(base=run.to_dict() | {"validation": {"every": 5}})).title.endswith("one trial")


def test_a_run_without_features_counts_the_tower_too(fields):
    report = plan_run(validate(TrainRun, {**fields, "features": [], "out": "x"}))
    assert report.value("vision tower") > 0 and report.value("patch tokens") == "5 x 16"
    cached = plan_run(validate(TrainRun, {**fields, "out": "x"}))
    assert report.value("all of it") > cached.value("all of it")


def test_the_shipped_recipes_of_the_embedded_world_are_planned(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))  # what a person has made there counts otherwise
    assert plan_of("shapes/train-generator").value("trained weights") > 0
    assert plan_of("shapes/embed").value("patch tokens") == "10 x 96"


def test_the_command_prints_a_table_or_json_and_exits_with_1_when_it_does_not_fit(capsys):
    file = str(CONFIGS / "cirr/embed.yaml")
    assert main(["plan", file, "tower=~/cirray/towers/clip-rn50x4", "batch=32", "--plan.gpu", "a10"]) == 0
    assert "32 images" in capsys.readouterr().out
    assert main(["plan", file, "--json", "plan.memory_gib=3"]) == 1
    tree = json.loads(capsys.readouterr().out)
    assert tree["warnings"] and {line["unit"] for line in tree["sections"]["disk"]} == {"bytes"}


def test_what_cannot_be_planned_is_said_in_words(tmp_path):
    (tmp_path / "mine-cirr.yaml").write_text("")
    with pytest.raises(ConfigError, match="say verb=NAME"):
        verb_of([str(tmp_path / "mine-cirr.yaml")], "", PLANNABLE)
    assert (
        verb_of(["run.yaml"], "finetune") == "finetune" and verb_of(["x/train-generator-x.yaml"]) == "train-generator"
    )
    with pytest.raises(ConfigError, match="needs no plan"):
        plan_run(MineRun())
    with pytest.raises(ConfigError, match="Did you mean 'h200'"):
        load_config(PlanRun, None, ["plan.gpu=h20"])
    with pytest.raises(ConfigError, match="plan.patch_tokens"):
        plan_run(GenerateRun(features=("~/nowhere/f",), generator={"settings": {"source": "~/nowhere/g"}}))
    with pytest.raises(ConfigError, match="no recipe beside"):
        plan_run(EmbedRun(tower="~/nowhere/towers"))
    with pytest.raises(ConfigError, match="are not known here"):
        plan_run(EmbedRun(tower="some/model"))
    with pytest.raises(ConfigError, match="no field|Unknown config field"):
        main_config(tmp_path)


def main_config(folder):
    path = folder / "embed-x.yaml"
    path.write_text("bach: 3\n")
    return plan_file(PlanRun(files=(str(path),)))


@pytest.mark.parametrize("name", ["cirr/finetune-spn-paper-clip4cir-sum", "cirr/finetune-spn-improved-sprc"])
def test_mined_pairs_and_runs_of_comments_beside_a_run_say_its_rows(name):
    """SPN trains for 3 epochs, each pair once with one of two texts, the second of which a recipe's comment makes."""
    report = plan_of(name)
    assert report.value("epochs") == pytest.approx(3.0, abs=0.02)
    assert "plan.rows" not in report.text()


def test_a_broken_file_beside_it_is_skipped(tmp_path):
    folder = tmp_path / "configs" / "own"  # folders beside this one are read too
    folder.mkdir(parents=True)
    (folder / "a.yaml").write_text("out: [\n")
    (folder / "b.yaml").write_text("out: ~/x\nvision: asset\n")
    beside = RecipesBeside.of(folder / "run.yaml")
    assert list(beside.written) == ["~/x"]
    report = plan_run(EmbedRun(tower="~/x"), beside=beside)
    assert report.value("frozen weights") > 0
    assert beside.config("~/x", GeneratorRun) is None


def test_assignments_are_sorted_into_the_plans_and_the_runs():
    given = ["a.yaml", "training.batch=8", "--model.embed-dim", "16", "plan.gpu=a100", "--json"]
    words = read_words(verb("plan"), given).assignments
    assert words[:3] == ("plan.gpu=a100", "as_json=true", 'files=["a.yaml"]')
    assert load_config(PlanRun, None, words).assignments == ("training.batch=8", "model.embed_dim=16")
