"""Sweeps as plain values: the plan, what is refused, ranking. (With Ray Tune: tests/integration.)"""

import math

import pytest

from cirray.core.config import load_config, validate
from cirray.core.errors import ConfigError
from cirray.pipelines.cluster.resources import ClusterInfo
from cirray.pipelines.training.config import FinetuneRun, TuneRun
from cirray.pipelines.training.sweep import TrialResult, best_overrides, plan_trials, rank, render, trial_run
from cirray.pipelines.training.tune import fitting_trials

SPACE = {
    "training.terms.two_hop.weight": {"grid": [0, 0.1, 0.4]},
    "training.optimizer.lr": {"loguniform": [1e-4, 1e-2]},
}


def make_run(**fields):
    return validate(TuneRun, {"space": SPACE, **fields})


def result(name, status, metric):
    return TrialResult(name, status, {"training.terms.two_hop.weight": 0.4}, metric, 10, 1.0, name)


def test_the_plan_is_the_product_of_the_grids_with_draws_for_each():
    trials = list(plan_trials(make_run(samples=4)).values())
    assert len(trials) == 12
    assert sorted(item["training.terms.two_hop.weight"] for item in trials) == [0] * 4 + [0.1] * 4 + [0.4] * 4
    rates = [item["training.optimizer.lr"] for item in trials]
    assert len(set(rates)) == 12 and all(1e-4 <= rate <= 1e-2 for rate in rates)
    assert sum(rate < 1e-3 for rate in rates) > 2


def test_the_plan_depends_on_the_seed_alone():
    assert plan_trials(make_run(samples=2)) == plan_trials(make_run(samples=2))
    assert plan_trials(make_run(samples=2)) != plan_trials(make_run(samples=2, seed=1))


def test_a_grid_alone_is_not_repeated():
    run = make_run(space={"training.terms.two_hop.weight": {"grid": [0, 1]}}, samples=5)
    assert len(plan_trials(run)) == 2


def test_whole_numbers_include_both_ends():
    space = {"training.steps": {"randint": [3, 5]}}
    drawn = {item["training.steps"] for item in plan_trials(make_run(space=space, samples=60)).values()}
    assert drawn == {3, 4, 5}


def test_a_trial_is_the_base_run_with_its_fields_set_in_this_process():
    run = trial_run(make_run(), {"training.terms.two_hop.weight": 0.1, "training.optimizer.lr": 5e-3}, "place")
    assert (run.training.terms["two_hop"].weight, run.training.optimizer.lr, run.out) == (0.1, 5e-3, "place")
    assert run.training.terms["rtc"] == TuneRun().base.training.terms["rtc"]
    assert not run.ray.enabled
    swept = {"training.mixing.kind": "paired", "training.mixing.settings.ratio": 0.5, "training.objective": "finetune"}
    other = trial_run(make_run(), swept, "place").training
    assert other.mixing.settings.ratio == 0.5 and list(other.terms) == ["infonce"]


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("training.terms.two_hop.wieght", 1, "Unknown config field .*two_hop.weight"),
        ("training.terms.two_hop.weight", -1, "training.terms.two_hop.weight"),
        ("out", "x", "cannot be swept"),
        ("features.first", "x", "features.*written"),
    ],
)
def test_a_field_that_cannot_be_swept_is_refused_before_anything_starts(path, value, words):
    with pytest.raises(ConfigError, match=words):
        trial_run(make_run(), {path: value}, "place")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"space": {}}, "space is empty"),
        ({"space": {"training.terms.two_hop.weight": {}}}, "exactly one of grid, choice"),
        ({"space": {"training.terms.two_hop.weight": {"grid": [1], "choice": [2]}}}, "grid, choice given"),
        ({"space": {"training.terms.two_hop.weight": {"grid": []}}}, "needs at least one value"),
        ({"space": {"training.terms.two_hop.weight": {"uniform": [2, 1]}}}, "smaller to the larger"),
        ({"space": {"training.terms.two_hop.weight": {"loguniform": [0, 1]}}}, "positive"),
        ({"base": {"validation": {"every": None}}}, "scheduler 'asha' needs base.validation.every"),
        ({"base": {"validation": {"queries": 0}}}, "base.validation.queries above 0"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused_in_words(fields, words):
    with pytest.raises(ConfigError, match=words):
        make_run(**fields)


def test_trials_fit_the_cluster():
    info = ClusterInfo(private=True, cpus=4, gpus=0, nodes=1)
    assert fitting_trials(make_run(), info) == 4
    assert fitting_trials(make_run(cpus_per_trial=1.5), info) == 2
    assert fitting_trials(make_run(max_concurrent=1), info) == 1
    assert fitting_trials(make_run(trials="train", base={"ray": {"num_workers": 2}}), info) == 1
    assert fitting_trials(make_run(cpus_per_trial=64, max_concurrent=9, ray={"autoscaling": True}), info) == 9


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"cpus_per_trial": 5}, "One trial needs 5 CPUs, the cluster has 4.*cpus_per_trial"),
        ({"gpus_per_trial": 1}, "One trial needs 1 GPUs, the cluster has 0.*gpus_per_trial"),
        ({"trials": "train", "base": {"ray": {"num_workers": 4}}}, "needs 4.01 CPUs.*base.ray.num_workers"),
    ],
)
def test_a_sweep_that_could_never_start_is_refused(fields, words):
    with pytest.raises(ConfigError, match=words):
        fitting_trials(make_run(**fields), ClusterInfo(private=True, cpus=4, gpus=0, nodes=1))


def test_finished_trials_rank_above_stopped_ones_and_failed_ones_last():
    results = [
        result("a", "stopped", 0.9),
        result("b", "failed", None),
        result("c", "done", 0.2),
        result("d", "done", 0.3),
    ]
    assert [item.name for item in rank(results, "max")] == ["d", "c", "a", "b"]
    assert [item.name for item in rank(results, "min")] == ["c", "d", "a", "b"]


def test_the_table_and_the_overrides_are_for_people_and_the_command_line():
    results = rank([result("a", "done", 0.25), result("b", "failed", None)], "max")
    lines = render(results, "val_R@1").splitlines()
    assert lines[0].split() == [
        "rank",
        "trial",
        "training.terms.two_hop.weight",
        "val_R@1",
        "step",
        "seconds",
        "status",
    ]
    assert lines[1].split() == ["1", "a", "0.4", "0.2500", "10", "1.0", "done"]
    assert lines[2].split()[3] == "-"
    overrides = best_overrides(results, TuneRun()).splitlines()
    assert math.isclose(load_config(TuneRun().base.__class__, None, overrides).training.terms["two_hop"].weight, 0.4)


def test_a_swept_field_reads_its_values_as_it_reads_them_elsewhere(tmp_path):
    (tmp_path / "sweep.yaml").write_text(
        "space:\n  tokenizer: {grid: [012, no, null, a b]}\n  temperature: {choice: [source, 1e-2, null]}\n"
        "  training.optimizer.fused: {grid: [auto, true]}\n  training.deepspeed.x: {grid: [1e8, no]}\n"
    )
    run = load_config(TuneRun, tmp_path / "sweep.yaml", ["space.init.grid=[000012, 12:30]", "space.labels.grid=5"])
    grids = {path: space.grid or space.choice for path, space in run.space.items()}
    assert grids == {
        "tokenizer": ("012", "no", "null", "a b"), "temperature": ("source", 0.01, None),
        "training.optimizer.fused": ("auto", True), "training.deepspeed.x": (1e8, "no"), "init": ("000012", "12:30"),
        "labels": (5,),
    }  # fmt: skip
    assert load_config(TuneRun, run.to_dict()).space == run.space
    (tmp_path / "again.yaml").write_text(run.to_yaml())
    assert load_config(TuneRun, tmp_path / "again.yaml").space == run.space


def test_a_sweep_on_the_command_line_names_its_field_by_its_path():
    words = ["space.training.optimizer.lr.loguniform=[1e-4, 1e-2]", "space={training.steps: {grid: [1, 2]}}"]
    assert {*load_config(TuneRun, None, words[:1]).space} == {"training.optimizer.lr"}
    assert load_config(TuneRun, None, words[1:]).space["training.steps"].grid == (1, 2)
    with pytest.raises(ConfigError, match="space.training.steps.gird"):
        load_config(TuneRun, None, ["space.training.steps.gird=[1]"])


def test_the_best_texts_are_written_as_the_command_line_reads_them():
    values = {"tokenizer": "012 #x", "temperature": None, "init": '"q"', "training.optimizer.lr": 1e-05}
    best = best_overrides([TrialResult("a", "done", values, 0.1, 1, 1.0, "a")], TuneRun()).splitlines()
    run = load_config(FinetuneRun, None, best)
    assert (run.tokenizer, run.temperature, run.init, run.training.optimizer.lr) == ("012 #x", None, '"q"', 1e-5)


def test_a_swept_preset_fills_what_the_base_run_did_not_give():
    base = {"data": {"format": "fashioniq", "preset": "supervised", "fashioniq": {"gallery": "val_split"}}}
    run = make_run(base=base, space={"data.preset": {"grid": ["supervised", "pseudo_word"]}})
    made = {name: trial_run(run, {"data.preset": name}, "x").data.fashioniq for name in ("supervised", "pseudo_word")}
    assert [item.captions for item in made.values()] == ["clip4cir", "both_averaged"]
    assert {item.gallery for item in made.values()} == {"val_split"}
    assert trial_run(run, {}, "x").validation.every == 50


@pytest.mark.parametrize(
    "words",
    [
        ["space.training.optimizer.lr={grid: [1e-4, 1e-3]}"],
        ["space.training.optimizer.lr.grid=[1e-4, 1e-3]"],
        ["space={training.optimizer.lr: {grid: [1e-4, 1e-3]}}"],
    ],
)
def test_a_swept_field_is_said_on_the_command_line_in_any_of_three_ways(words):
    swept = load_config(TuneRun, None, words).space["training.optimizer.lr"]
    assert swept.grid == (1e-4, 1e-3)
