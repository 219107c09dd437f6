"""How a run's encoder reads texts, and what of a checkpoint's network a run may change."""

import runpy
from pathlib import Path

import pytest
import torch
import yaml

import cirray
import cirray.models.composed as composed
from cirray.core.config import load_config, validate
from cirray.core.errors import ArtifactError, ConfigError, DataError
from cirray.core.trees import leaves
from cirray.evaluation.evaluate import encode_queries
from cirray.evaluation.round_trip import pair_margins
from cirray.features.store import FeatureStore
from cirray.image_text import load_models
from cirray.models import retriever_files
from cirray.models.text_processors import TEXT_PROCESSORS
from cirray.pipelines.planning.plan import plan_run
from cirray.pipelines.search.config import IndexRun
from cirray.pipelines.search.index import run_index
from cirray.pipelines.texts.config import GeneratorRun
from cirray.pipelines.training.config import FinetuneRun, PretrainRun, TrainRun, TuneRun
from cirray.pipelines.training.inputs import queries_of, read_inputs
from cirray.pipelines.training.start import check_model_fields, start_retriever
from cirray.pipelines.training.train import run_train
from cirray.pipelines.weights.config import ConvertRun, ExportRun
from cirray.pipelines.weights.export import run_export
from cirray.search_engine import SearchEngine

TINY = runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "tiny_training.py"))


@pytest.fixture(scope="module", autouse=True)
def _shout():
    """A text processor of these tests alone."""
    TEXT_PROCESSORS.register("shout")(str.upper)
    yield
    del TEXT_PROCESSORS._items["shout"]


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    return TINY["make"](tmp_path_factory.mktemp("t"))


def train(fields, out, cls=TrainRun, **changes):
    tree = {**fields, "out": str(out), **changes}
    tree["training"] = {
        **fields["training"],
        "steps": 2,
        "log_every": 1,
        "checkpoint_every": None,
        **changes.get("training", {}),
    }
    return run_train(validate(cls, tree))


@pytest.fixture(scope="module")
def shouting(fields, tmp_path_factory):
    out = tmp_path_factory.mktemp("s") / "checkpoint"
    train(fields, out, encoder={"settings": {**fields["encoder"]["settings"], "text_processor": "shout"}})
    return str(out)


@pytest.fixture
def heard(monkeypatch):
    """Every text that a Q-Former's tokenizer gets."""
    texts, real = [], composed.encode_texts

    def listen(tokenizer, given, *rest):
        texts.extend(given)
        return real(tokenizer, given, *rest)

    monkeypatch.setattr(composed, "encode_texts", listen)
    return texts


def loud(texts):
    return bool(texts) and all(text == text.upper() != text.lower() for text in texts)


def test_training_and_its_validation_read_texts_through_the_models_processor(fields, heard, tmp_path):
    encoder = {"settings": {**fields["encoder"]["settings"], "text_processor": "shout"}}
    validation = {"every": 1, "queries": 8}
    bank = {"objective": "spn", "batch": 8}
    for name, training in (("plain", {}), ("bank", bank)):
        train(fields, tmp_path / name, encoder=encoder, validation=validation, training=training)
        assert loud(heard)
        heard.clear()
    train(fields, tmp_path / "none", validation=validation)
    assert heard and not any(text == text.upper() for text in heard)


def test_every_verb_reads_texts_through_the_checkpoints_processor(fields, shouting, heard, tmp_path):
    """Evaluation and submission share one way from texts to queries; so do search and service; so does what loads a
    model outside."""
    rows, features = read_inputs(validate(TrainRun, {**fields, "out": "x"})).triplets[:4], fields["features"]
    encoder = load_models(shouting)[0]
    encode_queries(encoder, FeatureStore.open_many(features), queries_of(rows))
    assert loud(heard), "evaluate, submit"
    heard.clear()
    columns = ([getattr(row, name) for row in rows] for name in ("reference_id", "target_id", "modification"))
    pair_margins(encoder, FeatureStore.open_many(features), *columns)
    assert loud(heard), "check"
    heard.clear()
    images = {"checkpoint": shouting, "images": str(next(Path(fields["data"]["folder"]["root"]).rglob("*.png")).parent)}
    run_index(validate(IndexRun, {**images, "index": "exact", "out": str(tmp_path / "index")}))
    retriever = SearchEngine.open(shouting, str(tmp_path / "index"))
    retriever.search("paint it blue", gallery_id=retriever.gallery.ids[0], k=3)
    assert heard == ["PAINT IT BLUE"], "search, serve"
    heard.clear()
    run_export(validate(ExportRun, {"model": shouting, "out": str(tmp_path / "export")}))
    picture = retriever.gallery.picture(retriever.gallery.ids[0])
    cirray.load(str(tmp_path / "export")).queries([picture], ["paint it blue"])
    assert heard == ["PAINT IT BLUE"], "export, cirray.load"


def test_a_search_whose_text_holds_no_word_for_the_model_is_refused_in_one_sentence(fields, tmp_path):
    train(
        fields,
        tmp_path / "c",
        encoder={"settings": {**fields["encoder"]["settings"], "text_processor": "blip_caption"}},
    )
    images = str(next(Path(fields["data"]["folder"]["root"]).rglob("*.png")).parent)
    index = {"checkpoint": str(tmp_path / "c"), "images": images, "out": str(tmp_path / "index")}
    run_index(validate(IndexRun, {**index, "index": "exact"}))
    retriever = SearchEngine.open(str(tmp_path / "c"), str(tmp_path / "index"))
    with pytest.raises(DataError, match=r"'\.\.\. !!!' is empty to this model"):
        retriever.prepare(" ...  !!!", gallery_id=retriever.gallery.ids[0])
    assert retriever.search("?", gallery_id=retriever.gallery.ids[0], k=1).ids


@pytest.fixture
def start(fields, shouting):
    """Start weights of a run from the shouting checkpoint, and that checkpoint's encoder."""

    def made(model, **more):
        tree = {**fields, "init": shouting, "encoder": {"settings": model}, "reverse_texts": [], "out": "x", **more}
        run = validate(FinetuneRun, validate(FinetuneRun, tree).to_dict())  # as a worker gets it
        return start_retriever(run, read_inputs(run), 16), load_models(shouting)[0]

    return made


CHANGES = {
    "text_mask": "ones", "text_processor": "none", "readout": "cls", "inference_readout": "cls", "text_length": 9,
    "temperature_clamp": None, "similarity": "dot", "fusion": {"kind": "text_only"}, "gradient_checkpointing": True,
    "matching": "trained", "qformer": {"dropout": 0.3, "attention": "eager"},
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_field_that_weights_do_not_fix_is_changed_beside_init(start, name):
    made, before = start({name: CHANGES[name]})
    kept, changed = leaves(before.config.to_dict()), leaves(made.config.to_dict())
    wanted = leaves({name: CHANGES[name]})
    assert changed == {**kept, **wanted} != kept
    own = before.state_dict()
    assert all(torch.equal(value, own[at]) for at, value in made.state_dict().items() if not at.startswith("matching"))


def test_a_checkpoint_is_inherited_whole_when_nothing_is_said(start):
    made, before = start({})
    assert made.digest == before.digest


def test_a_field_given_with_its_default_has_its_effect_too(start, fields, tmp_path):
    """text_mask's default is 'true': to say it beside a checkpoint with 'ones' is no silence."""
    train(
        fields,
        tmp_path / "ones",
        encoder={"settings": {**fields["encoder"]["settings"], "text_mask": "ones", "text_processor": "shout"}},
    )
    bare = load_config(FinetuneRun, None, ["encoder.settings.text_mask=true"]).encoder.settings.given()
    for model, wanted in (
        ({"text_mask": "true"}, "true"),
        (bare, "true"),
        ({}, "ones"),
        ({"text_processor": "none"}, "ones"),
    ):
        assert start(model, init=str(tmp_path / "ones"))[0].config.text_mask == wanted


def test_a_start_temperature_is_taken_beside_init_or_inherited(start):
    made, before = start({"temperature": 0.09})
    assert made.temperature.item() == pytest.approx(0.09) != before.temperature.item()
    assert start({"text_mask": "ones"})[0].temperature.item() == before.temperature.item()


def test_the_mask_that_was_changed_is_the_mask_that_trains(start):
    texts = ["paint it blue", "make the small circle green and move it"]
    patches = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    ones, true = (start({"text_mask": name})[0].train() for name in ("ones", "true"))
    vectors = [model.compose(patches, model.tokenize(texts)) for model in (ones, true)]
    assert float((vectors[0] - vectors[1]).abs().max()) > 1e-3


def test_both_halves_of_a_fork_are_changed(fields, shouting, tmp_path, start):
    bank = {"objective": "spn", "terms": {"bank_infonce": {"trains": "second_pass"}}}
    train(fields, tmp_path / "fork", FinetuneRun, init=shouting, encoder={}, reverse_texts=[], training=bank)
    made, before = start({"text_processor": "none"}, init=str(tmp_path / "fork"))
    assert made.trains == "second_pass" and made.text_processor == made.gallery.text_processor == "none"
    assert all(
        torch.equal(value, made.state_dict()[at])
        for at, value in load_models(str(tmp_path / "fork"))[0].state_dict().items()
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"encoder": {"settings": {"embed_dim": 16}}}, r"encoder\.settings\.embed_dim is 16, but .* has 8"),
        ({"encoder": {"settings": {"qformer": {"width": 32}}}}, r"settings\.qformer\.width is 32, but .* has 16"),
        ({"encoder": {"settings": {"qformer": {"heads": 1}}}}, r"encoder\.settings\.qformer\.heads is 1"),
        ({"encoder": {"settings": {"prompt_std": 0.3}}}, r"encoder\.settings\.prompt_std is 0\.3"),
        ({"encoder": {"settings": {"matching": "frozen"}}}, r"no matching head to hold fixed"),
        ({"tokenizer": "bert"}, r"tokenizer='bert' has no effect beside init"),
        ({"encoder": {"kind": "word_map", "settings": {"tuning": "none"}}}, r"encoder\.kind is 'word_map', but"),
        ({"temperature": 0.05, "encoder": {"settings": {"temperature": 0.07}}}, r"encoder\.settings\.temp.* both"),
        ({"init": "", "encoder": "dual", "tokenizer": "bert"}, r"has no effect beside encoder.kind 'dual'"),
        ({"init": "", "encoder": "dual", "qformer_source": "x"}, r"encoder.kind is 'dual'; empty qformer_source"),
        ({"init": "", "encoder": {"kind": "qformer", "settings": {"readuot": "cls"}}}, r"'encoder.settings.readout'"),
    ],
)  # fmt: skip
def test_what_weights_fix_or_would_have_no_effect_is_refused_by_name(fields, shouting, tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words):
        train(
            {**fields, "encoder": {}}, tmp_path / "c", FinetuneRun, **{"init": shouting, "reverse_texts": [], **changes}
        )
    assert not (tmp_path / "c").exists()


def test_a_field_that_repeats_what_the_checkpoint_has_is_taken(start, fields):
    made, before = start(fields["encoder"]["settings"])
    assert made.digest == before.digest


def test_fields_of_a_q_former_beside_a_dual_encoders_checkpoint_are_refused(fields, tmp_path):
    text = {"width": 16, "layers": 1, "heads": 2, "intermediate": 16}
    dual = {"text": text, "embed_dim": 8, "image_projection": True}
    plain = {**fields, "encoder": {}}
    train(plain, tmp_path / "dual", encoder={"kind": "dual", "settings": dual})
    with pytest.raises(
        ConfigError, match="encoder.kind is 'qformer', but the checkpoint .* is a 'dual'.*encoder.kind=dual"
    ):
        train(plain, tmp_path / "a", init=str(tmp_path / "dual"), encoder={"settings": {"text_length": 12}})
    said = {"kind": "dual", "settings": {"text_processor": "blip_caption", "text_length": 12}}
    train(plain, tmp_path / "b", init=str(tmp_path / "dual"), encoder=said)
    changed = load_models(str(tmp_path / "b"))[0]
    assert changed.text_processor == "blip_caption" and changed.config.text_length == 12


def test_two_runs_from_one_checkpoint_that_read_otherwise_are_two_runs(fields, shouting, tmp_path):
    train(
        fields,
        tmp_path / "c",
        FinetuneRun,
        init=shouting,
        encoder={"settings": {"text_mask": "ones"}},
        reverse_texts=[],
        training={"objective": "finetune"},
    )
    with pytest.raises(ArtifactError, match="encoder"):
        train(
            fields,
            tmp_path / "c",
            FinetuneRun,
            init=shouting,
            encoder={},
            reverse_texts=[],
            training={"objective": "finetune"},
        )


@pytest.mark.parametrize(
    ("cls", "fields"),
    [
        (FinetuneRun, {"init": "c", "encoder": {"settings": {"text_mask": "true"}}}),
        (PretrainRun, {"qformer_source": "c", "encoder": {"settings": {"qformer": {"attention": "eager"}}}}),
        (FinetuneRun, {"init": "c", "encoder": {"kind": "dual", "settings": {"fusion": "combiner"}}}),
        (TrainRun, {"temperature": 0.05}),
        (TuneRun, {"base": {"init": "c", "encoder": {"settings": {"readout": "mean33"}}}}),
        (GeneratorRun, {"qformer_source": "c", "generator": {"settings": {"passes": ["reference"]}}}),
        (ConvertRun, {"source": "c", "to": "checkpoint", "encoder": {"settings": {"text_length": 32}}}),
    ],
)  # fmt: skip
def test_what_was_given_of_a_network_outlives_plain_values_and_a_printed_config(cls, fields):
    """Workers, trials, `--root` and `--print-config` build a run again from its plain values."""
    run = validate(cls, fields)
    for again in (validate(cls, run.to_dict()), validate(cls, yaml.safe_load(run.to_yaml()))):
        assert again == run
        if set(fields) != {"temperature"}:  # a network of its own has every field
            networks = [getattr(made, "base", made) for made in (again, run)]
            assert len({str((getattr(made, "encoder", None) or made.generator).given()) for made in networks}) == 1


def test_a_plan_counts_the_network_that_a_run_changes(fields, shouting):
    tree = {**fields, "init": shouting, "reverse_texts": [], "out": "x"}
    plain, changed = (
        validate(FinetuneRun, {**tree, "encoder": {"settings": own}}) for own in ({}, {"matching": "trained"})
    )
    sizes = [plan_run(run).value("trained weights") for run in (plain, changed)]
    real = start_retriever(changed, read_inputs(changed), 16)
    assert sizes[1] == sum(item.numel() for item in real.parameters()) > sizes[0]


def test_what_a_checkpoint_fixes_is_refused_before_its_weights_are_read(fields, shouting, monkeypatch):
    monkeypatch.setattr(retriever_files, "load_file", lambda path: pytest.fail(f"{path} was read"))
    sizes = {"settings": {"embed_dim": 64}}
    run = validate(FinetuneRun, {**fields, "init": shouting, "encoder": sizes, "reverse_texts": []})
    with pytest.raises(ConfigError, match="embed_dim"):
        check_model_fields(run)
