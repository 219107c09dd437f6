"""Generation without a cluster: every row accounted for, resumed by ids, nothing lost, doubled or half-published."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from cirray.core.errors import ArtifactError, ConfigError, GenerationError, IndexMismatchError
from cirray.core.storage import join
from cirray.generators.base import WriterSetup
from cirray.pipelines.cluster.config import RayConfig
from cirray.pipelines.cluster.parts import run_parts
from cirray.pipelines.cluster.streaming import to_columns
from cirray.pipelines.texts.actors import GenerateTexts
from cirray.pipelines.texts.config import GenerateRun
from cirray.pipelines.texts.generate import make_plan, run_generate
from cirray.triplets.config import FilterConfig
from cirray.triplets.store import TripletStore
from cirray.types import Generation

TINY = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "tiny_pipeline.py")))


@pytest.fixture
def inputs(tmp_path):
    calls = tmp_path / "calls"
    calls.mkdir()
    TINY.write_features(tmp_path / "features", TINY.random_vectors(41))
    TINY.write_pairs_artifact(tmp_path / "pairs", TINY.chain(40))
    TINY.write_generator(tmp_path / "generator", calls=str(calls))
    return tmp_path


def run_of(root, **fields):
    settings = {
        "pairs": str(root / "pairs"), "features": (str(root / "features"),),
        "generator": TINY.written(root / "generator"), "out": str(root / "out"), "part_rows": 8,
        "ray": RayConfig(enabled=False),
    }  # fmt: skip
    return GenerateRun(**{**settings, **fields})


def pairs_served(root):
    return sum(int(path.read_text()) for path in (root / "calls").iterdir())


def files(uri):
    return {str(path.relative_to(uri)): path.read_bytes() for path in Path(uri).rglob("*.parquet")}


def test_each_pair_gives_two_triplets_with_each_others_text(inputs):
    manifest = run_generate(run_of(inputs), TINY.load_knobs)
    assert manifest.counts == {"pairs": 40, "triplets": 80, "rejected": 0}
    triplets = TripletStore.open(inputs / "out").read()
    by_images = {(t.reference_id, t.target_id): t for t in triplets}
    assert len(by_images) == 80
    for (reference, target), triplet in by_images.items():
        mirror = by_images[(target, reference)]
        assert triplet.modification == mirror.reverse_modification
        assert triplet.source == "mtst" and triplet.group_id == mirror.group_id != ""
    row = TripletStore.open(inputs / "out").table().to_pylist()[0]
    assert row["prompt_version"] == "knobs/1" and row["logprob"] == -0.25 and dict(row["scores"])["pair"] > 0.4


def test_forward_gives_one_triplet_and_can_leave_reverse_texts_out(inputs):
    manifest = run_generate(run_of(inputs, directions="forward"), TINY.load_knobs)
    assert manifest.counts["triplets"] == 40
    assert all(t.reverse_modification for t in TripletStore.open(inputs / "out").read())
    with pytest.raises(ValueError, match="needs reverse_texts"):
        run_of(inputs, reverse_texts=False)


def test_a_failed_generation_is_a_rejected_row_in_each_direction(inputs):
    TINY.write_generator(inputs / "failing", fail=["img-0003", "img-0020"])
    manifest = run_generate(run_of(inputs, generator=TINY.written(inputs / "failing")), TINY.load_knobs)
    assert manifest.counts == {"pairs": 40, "triplets": 76, "rejected": 4}
    rejected = TripletStore.open(inputs / "out").rejected()
    assert set(rejected.column("reason").to_pylist()) == {"told to fail"}
    assert {"img-0003", "img-0020"} == {r["target_id"] for r in rejected.to_pylist()} & {"img-0003", "img-0020"}


def test_pairs_whose_images_have_no_features_are_rejected_with_the_image_named(inputs):
    TINY.write_features(inputs / "few", dict(list(TINY.random_vectors(41).items())[:-1]))
    manifest = run_generate(run_of(inputs, features=(str(inputs / "few"),)), TINY.load_knobs)
    assert manifest.counts == {"pairs": 40, "triplets": 78, "rejected": 2}
    reasons = set(TripletStore.open(inputs / "out").rejected().column("reason").to_pylist())
    assert reasons == {"image 'img-0040' has no features"}


def test_when_everything_is_rejected_the_run_fails_and_publishes_nothing(inputs):
    TINY.write_generator(inputs / "hopeless", fail=[f"img-{n:04d}" for n in range(41)])
    with pytest.raises(GenerationError, match="All 80 rows were rejected, most often: told to fail"):
        run_generate(run_of(inputs, generator=TINY.written(inputs / "hopeless")), TINY.load_knobs)
    assert not (inputs / "out").exists() and not (inputs / "out.partial").exists()


def test_a_finished_run_is_recognised_and_nothing_is_generated_again(inputs):
    first = run_generate(run_of(inputs), TINY.load_knobs)
    served = pairs_served(inputs)
    assert run_generate(run_of(inputs, ray=RayConfig(enabled=False, num_cpus=3)), TINY.load_knobs) == first
    assert pairs_served(inputs) == served == 40
    with pytest.raises(ArtifactError, match="different run .seed: 0 there, 1 now"):
        run_generate(run_of(inputs, seed=1), TINY.load_knobs)


def test_a_judge_beside_finished_texts_is_another_run_and_not_ignored(inputs):
    run_generate(run_of(inputs), TINY.load_knobs)
    TINY.write_features(inputs / "world", TINY.random_vectors(2))  # any artifact
    with pytest.raises(ArtifactError, match=r"different run \(inputs.judge: nothing there, '\w+' now"):
        run_generate(run_of(inputs, judge=str(inputs / "world")), TINY.load_knobs)


def test_inputs_that_moved_are_the_same(inputs):
    first = run_generate(run_of(inputs), TINY.load_knobs)
    for name in ("pairs", "features", "generator"):
        (inputs / name).rename(inputs / f"{name}-moved")
    moved = {"pairs": str(inputs / "pairs-moved"), "generator": TINY.written(inputs / "generator-moved")}
    assert run_generate(run_of(inputs, **moved, features=(str(inputs / "features-moved"),)), TINY.load_knobs) == first


class _Power:
    """A generator that is cut off after a number of calls."""

    def __init__(self, knobs, calls):
        self.inner, self.left, self.prompt_version = knobs, calls, "knobs/1"

    def generate(self, pairs, features):
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        return self.inner.generate(pairs, features)


@pytest.mark.parametrize("calls", [0, 1, 3])
def test_an_interrupted_run_goes_on_from_its_finished_parts_and_ends_equal(inputs, calls):
    run_generate(run_of(inputs, out=str(inputs / "whole")), TINY.load_knobs)
    before = pairs_served(inputs)
    with pytest.raises(KeyboardInterrupt):
        run_generate(run_of(inputs), lambda *given: _Power(TINY.load_knobs(*given), calls))
    assert not (inputs / "out").exists()
    run_generate(run_of(inputs), TINY.load_knobs)
    assert pairs_served(inputs) - before == 40
    assert files(inputs / "out") == files(inputs / "whole")


@pytest.mark.parametrize("seconds", [1e-9, 1e9])
def test_a_long_part_is_made_in_pieces_by_the_measured_rate_and_goes_on_from_them(inputs, monkeypatch, seconds):
    monkeypatch.setattr("cirray.pipelines.cluster.answers.PIECE_S", seconds)
    monkeypatch.setattr("cirray.pipelines.cluster.answers._FIRST_PIECE", 4)
    fields = {"part_rows": 20}
    run_generate(run_of(inputs, out=str(inputs / "whole"), **fields), TINY.load_knobs)
    sizes = [int(path.read_text()) for path in sorted((inputs / "calls").iterdir())]
    assert sizes == ([4, *[1] * 36] if seconds < 1 else [4, 16, 20])
    with pytest.raises(KeyboardInterrupt):
        run_generate(run_of(inputs, **fields), lambda *given: _Power(TINY.load_knobs(*given), 1))
    sums = []
    counted = lambda *given: sums.append(run_parts(*given)) or sums[-1]  # noqa: E731
    monkeypatch.setattr("cirray.pipelines.texts.generate.run_parts", counted)
    run_generate(run_of(inputs, **fields), TINY.load_knobs)
    assert pairs_served(inputs) == 80 and 0 < sums[0]["asked"] < 40  # what was kept is no work
    assert files(inputs / "out") == files(inputs / "whole")
    assert not (inputs / "out" / "answers").exists()


def test_pairs_that_fail_at_once_do_not_make_the_next_piece_long(inputs, monkeypatch):
    monkeypatch.setattr("cirray.pipelines.cluster.answers._FIRST_PIECE", 4)
    TINY.write_generator(inputs / "failing", calls=str(inputs / "calls"), fail=[f"img-{n:04d}" for n in range(1, 41)])
    with pytest.raises(GenerationError, match="were rejected"):
        run_generate(run_of(inputs, generator=TINY.written(inputs / "failing"), part_rows=20), TINY.load_knobs)
    assert [int(path.read_text()) for path in sorted((inputs / "calls").iterdir())] == [4] * 10


def test_a_part_that_lost_rows_is_made_again(inputs):
    with pytest.raises(KeyboardInterrupt):
        run_generate(run_of(inputs), lambda *given: _Power(TINY.load_knobs(*given), 2))
    path = inputs / "out.partial" / "data" / "part-00001.parquet"
    pq.write_table(pq.read_table(path).slice(0, 5), path)
    assert run_generate(run_of(inputs), TINY.load_knobs).counts["triplets"] == 80
    assert pairs_served(inputs) == 48


def test_rows_that_are_there_twice_or_unknown_are_a_loud_failure(inputs):
    with pytest.raises(KeyboardInterrupt):
        run_generate(run_of(inputs), lambda *given: _Power(TINY.load_knobs(*given), 3))
    folder = inputs / "out.partial" / "data"
    extra = pq.read_table(folder / "part-00001.parquet").slice(2, 3)
    pq.write_table(extra, folder / "part-00099.parquet")
    with pytest.raises(GenerationError, match="3 of 80 rows are doubled"):
        run_generate(run_of(inputs), TINY.load_knobs)
    ids = [f"stranger-{n}" for n in range(3)]
    pq.write_table(extra.set_column(0, extra.schema.field(0), [ids]), folder / "part-00099.parquet")
    with pytest.raises(GenerationError, match="3 of 80 rows are unknown .* e.g. 'stranger-0'"):
        run_generate(run_of(inputs), TINY.load_knobs)
    assert not (inputs / "out").exists()


def test_the_triplets_do_not_depend_on_the_order_of_the_pairs(inputs):
    run_generate(run_of(inputs), TINY.load_knobs)
    TINY.write_pairs_artifact(inputs / "pairs2", TINY.chain(40)[::-1])
    run_generate(run_of(inputs, pairs=str(inputs / "pairs2"), out=str(inputs / "out2")), TINY.load_knobs)
    assert files(inputs / "out") == files(inputs / "out2")


def test_seed_decoding_and_generator_are_part_of_every_id(inputs):
    def ids(**fields):
        plan = make_plan(run_of(inputs, **fields))
        return set(plan.keys(plan.tables[0]).to_pylist())

    TINY.write_generator(inputs / "other", sleep=0, fail=["nobody"])
    mtg = {"source": str(inputs / "generator")}
    plans = [ids(), ids(seed=1), ids(generator=TINY.written(inputs / "other")), ids(generator={"settings": mtg})]
    plans.append(ids(generator={"settings": {**mtg, "decoding": {"max_new_tokens": 9}}}))
    assert plans[0] == ids(source="x", part_rows=8)
    assert all(not one & two for n, one in enumerate(plans) for two in plans[n + 1 :])


def test_pairs_that_stand_twice_are_refused(inputs):
    TINY.write_pairs_artifact(inputs / "twice", [*TINY.chain(20), TINY.chain(20)[7]])
    with pytest.raises(GenerationError, match="appear twice in the pairs artifact"):
        run_generate(run_of(inputs, pairs=str(inputs / "twice"), part_rows=100), TINY.load_knobs)


def test_filters_move_rows_to_rejected_and_keep_the_account(inputs):
    filters = FilterConfig(names=("over_long", "near_duplicate_pair"), max_score=0.9)
    manifest = run_generate(run_of(inputs, filters=filters), TINY.load_knobs)
    store = TripletStore.open(inputs / "out")
    expected = sum(pair.score > 0.9 for pair in TINY.chain(40)) * 2
    assert manifest.counts == {"pairs": 40, "triplets": 80 - expected, "rejected": expected}
    assert len(store.table()) == 80 - expected and len(store.rejected()) == expected > 0
    assert all(dict(row["scores"])["pair"] <= 0.9 for row in store.table().to_pylist())
    assert all("near_duplicate_pair" in reason for reason in store.rejected().column("reason").to_pylist())


@pytest.mark.parametrize("alive", range(4))
def test_a_kill_at_any_step_of_filtering_is_repaired(inputs, monkeypatch, alive):
    from cirray.pipelines.texts import generate

    filters = FilterConfig(names=("duplicate_text", "near_duplicate_pair"), max_score=0.8)
    run_generate(run_of(inputs, filters=filters, out=str(inputs / "whole")), TINY.load_knobs)
    real, written = generate.write_table, []

    def dying(uri, table):
        if len(written) == alive:
            raise KeyboardInterrupt
        written.append(uri)
        real(uri, table)

    monkeypatch.setattr(generate, "write_table", dying)
    with pytest.raises(KeyboardInterrupt):
        run_generate(run_of(inputs, filters=filters), TINY.load_knobs)
    monkeypatch.setattr(generate, "write_table", real)
    before = pairs_served(inputs)
    run_generate(run_of(inputs, filters=filters), TINY.load_knobs)
    assert pairs_served(inputs) == before
    assert files(inputs / "out") == files(inputs / "whole")


def test_missing_inputs_are_named_and_leave_nothing_behind(inputs):
    with pytest.raises(ArtifactError, match="nowhere' does not exist"):
        run_generate(run_of(inputs, pairs=str(inputs / "nowhere")), TINY.load_knobs)
    with pytest.raises(ArtifactError, match="kind 'pairs'; 'generator' is needed"):
        run_generate(run_of(inputs, generator=TINY.written(inputs / "pairs")), TINY.load_knobs)
    with pytest.raises(ConfigError, match="Unknown triplet filter"):
        run_generate(run_of(inputs, filters=FilterConfig(names=("nonsense",))), TINY.load_knobs)
    assert not (inputs / "out").exists()


def test_features_of_another_tower_than_the_generators_are_refused(inputs):
    other = TINY.write_features(inputs / "other-tower", TINY.random_vectors(41), encoder="another")
    with pytest.raises(IndexMismatchError, match="vision tower another, .*generator.* needs those of tower enc"):
        run_generate(run_of(inputs, features=(other,)), TINY.load_knobs)
    assert not (inputs / "out.partial").exists()


def test_an_actor_is_a_plain_object_that_needs_no_cluster(inputs):
    run = run_of(inputs)
    plan = make_plan(run)
    row = {"source": "s", "split": "train", "generator": "g", "seed": 0}
    actor = GenerateTexts(
        TINY.load_knobs, run.generator, WriterSetup(), run.features, str(inputs / "work"), row, recipe=plan.recipe
    )
    assert actor(to_columns(plan.tables[1])) == {"rejected": 0, "tokens_in": 0, "tokens_out": 0, "asked": 8}
    ids = pq.read_table(join(str(inputs / "work"), "data", "part-00001.parquet")).column("triplet_id").to_pylist()
    assert sorted(ids) == sorted(plan.keys(plan.tables[1]).to_pylist())


def test_a_generator_that_breaks_its_promise_is_refused(inputs):
    class Forgetful:
        prompt_version = "x"

        def generate(self, pairs, features):
            return [Generation(pair.pair_id, "text", "text") for pair in pairs[1:]]

    with pytest.raises(ArtifactError, match="returned 7 texts for 8 pairs"):
        run_generate(run_of(inputs), lambda *given: Forgetful())


def test_a_direction_without_text_is_rejected_alone(inputs):
    class OneWay:
        prompt_version = "x"

        def generate(self, pairs, features):
            return [Generation(pair.pair_id, "text", None if n else "  ") for n, pair in enumerate(pairs)]

    manifest = run_generate(run_of(inputs), lambda *given: OneWay())
    assert manifest.counts == {"pairs": 40, "triplets": 40, "rejected": 40}
    assert manifest.extra["reasons"] == [["no reverse text", 40]]


def test_a_generator_is_made_by_its_settings_seed_device_and_directions(inputs):
    seen = []

    def load(*given):
        seen.extend(given)
        return TINY.load_knobs(*given)

    run = run_of(inputs, seed=5, directions="forward", reverse_texts=False)
    run_generate(run, load)
    assert seen == [run.generator, WriterSetup("cpu", 5, "forward")]


def test_a_generator_of_another_kind_than_the_run_names_is_refused_with_its_kind(inputs):
    run = run_of(inputs, generator={"settings": {"source": str(inputs / "generator")}})
    with pytest.raises(ArtifactError, match="is a generator of kind 'template'; set generator.kind=template"):
        run_generate(run, TINY.load_knobs)
    assert not (inputs / "out.partial").exists()
