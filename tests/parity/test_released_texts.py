"""Released SPRC, MTST, PTHA and SPN read captions as LAVIS does, and hide padding where their code hides it.

Twins on the authors' tensor names with random weights, texts full of marks, batches padded to the full length. Every
parity has two controls that must differ: the texts as they stand, and the other mask in the second pass.
"""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from modes import training_mode
from torch.nn.functional import cross_entropy, normalize

from cirray.core.config import load_config
from cirray.core.errors import ArtifactError
from cirray.image_text import load_models, said
from cirray.models.batch import RetrievalBatch
from cirray.models.forked import fork_for_query_tuning
from cirray.models.sources.blip2 import open_blip2, retriever_from
from cirray.pipelines.training.config import FinetuneRun, PretrainRun
from cirray.pipelines.weights.config import ConvertRun
from cirray.pipelines.weights.convert import run_convert
from cirray.training.gather import NoGather
from cirray.training.objectives import retrieval_loss

ROOT = Path(__file__).resolve().parents[2]
small, lavis, lavis_forward = (
    SimpleNamespace(**runpy.run_path(str(ROOT / "tests" / "fixtures" / f"{name}.py")))
    for name in ("small_blip2", "lavis_layout", "lavis_forward")
)
bert, eva, linear = lavis_forward.bert, lavis_forward.eva, lavis_forward.linear
TEXTS = ['Paint the RED circle: "blue"!', "Remove it...", "move the (small) square ;~ to   the top left."]
BACK = ["Paint the blue circle: RED.", "what first image?", "move it to the second (left)!!"]
CLOSE, FAR, LENGTH, QUERIES = 5e-5, 5e-3, 20, small.QUERIES


def clean(text):
    """The captions' rule, for these texts."""
    for mark in '.!"()*#:;~':
        text = text.replace(mark, " ")
    return " ".join(text.lower().split())


def tokens_of(texts, rule):
    found = small.reader()(
        [rule(text) for text in texts], padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
    )
    return found["input_ids"], found["attention_mask"]


class Twin:
    """The released models' passes, on one batch of references and targets."""

    def __init__(self, state, rule=clean, second="true", count=3):
        self.state, self.rule, self.second = state, rule, second
        self.queries = state["query_tokens"].expand(count, -1, -1)

    def seen(self, tower, images):
        pixels = ((images.float() - tower.mean_C) / tower.std_C).permute(0, 3, 1, 2)
        return eva(self.state, pixels)

    def first(self, texts, patches):
        """Prototypes of pass A, whose padding is hidden in every release."""
        ids, mask = tokens_of(texts, self.rule)
        mask = torch.cat([mask.new_ones(self.queries.shape[:2]), mask], dim=1)
        return bert(self.state, self.queries, ids, mask, patches)[:, :QUERIES]

    def query(self, texts, prototypes, mean, state=None):
        """Pass B, read at [CLS] or as the mean of prototypes and [CLS]."""
        ids, mask = tokens_of(texts, self.rule)
        mask = torch.cat([mask.new_ones(prototypes.shape[:2]), mask], dim=1)
        mask = torch.ones_like(mask) if self.second == "ones" else mask
        hidden = bert(state or self.state, prototypes, ids, mask)
        return self.project(hidden[:, : QUERIES + 1].mean(1) if mean else hidden[:, QUERIES], state)

    def text(self, texts):
        """The branch without an image: [CLS], prompts, the rest; padding hidden in every release."""
        ids, mask = tokens_of(texts, self.rule)
        words = self.state["Qformer.bert.embeddings.word_embeddings.weight"][ids]
        mixed = torch.cat([words[:, :1], self.state["prompt_tokens"].expand(len(ids), -1, -1), words[:, 1:]], dim=1)
        mixed = mixed + self.state["Qformer.bert.embeddings.position_embeddings.weight"][: mixed.shape[1]]
        mask = torch.cat([mask.new_ones(len(ids), QUERIES), mask], dim=1)
        return self.project(bert(self.state, mixed, mask=mask)[:, 0])

    def project(self, summary, state=None):
        return normalize(linear(state or self.state, "text_proj", summary), dim=-1)

    def gallery(self, patches):
        queries = self.queries[:1].expand(len(patches), -1, -1)
        return normalize(linear(self.state, "vision_proj", bert(self.state, queries, patches=patches)), dim=-1)

    def contrast(self, query, gallery, smoothing=0.0):
        scores = torch.einsum("bd,nqd->bnq", query, gallery).amax(-1) / self.state["temp"]
        return cross_entropy(scores, torch.arange(len(query)), label_smoothing=smoothing)


def controls(twin):
    """The same without the captions' rule, and with the other mask."""
    other = "true" if twin.second == "ones" else "ones"
    return [Twin(twin.state, lambda text: text, twin.second), Twin(twin.state, twin.rule, other)]


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """By format: the authors' state dict, and encoder and tower of what `cirray convert` makes of it."""
    root = tmp_path_factory.mktemp("r")
    small.reader().save_pretrained(str(root / "words"))
    found = {}
    for kind in ("sprc", "ptha", "blip2"):
        state = lavis.write(root / f"{kind}.pt", kind, words=len(small.reader()))
        fields = {"tokenizer": str(root / "words"), "qformer_heads": 2, "vision_heads": 2, "to": "checkpoint"}
        fields["encoder"] = {"settings": {"text_length": LENGTH}}
        run_convert(ConvertRun(source=str(root / f"{kind}.pt"), out=str(root / kind), **fields))
        found[kind] = (state, *load_models(str(root / kind))[:2])
    weights = {"tokenizer": str(root / "words"), "qformer_heads": 2, "vision_heads": 2}
    run_convert(ConvertRun(source=str(root / "blip2.pt"), out=str(root / "weights"), **weights))
    return SimpleNamespace(**found, weights=str(root / "weights"))


def trained(retriever, **changes):
    """In training mode, without dropout, which a twin could not repeat."""
    return retriever.changed({**changes, "qformer": {"dropout": 0.0}}).train()


def our_loss(retriever, tower, objective, **terms):
    reference, target = small.images(seed=1), small.images(seed=2)
    keys, ones = torch.arange(3), torch.ones(3)
    reverse = {"reverse": retriever.tokenize(BACK), "reverse_mask_B": ones} if objective == "ptha" else {}
    text = retriever.tokenize(TEXTS)
    batch = RetrievalBatch(tower(reference), tower(target), text, keys, keys + 3, ones, **reverse)
    config = training_mode("paper", objective=objective, batch=3, terms=terms)
    return retrieval_loss(retriever, batch, config, NoGather()).total


def sides(twin, tower):
    return twin.seen(tower, small.images(seed=1)), twin.seen(tower, small.images(seed=2))


def apart(ours, theirs):
    return float((ours - theirs).detach().abs().max())


def check(ours, value, twin):
    """Ours is the twin's, and neither of its controls'."""
    assert apart(ours, value(twin)) < CLOSE
    for control in controls(twin):
        assert apart(ours, value(control)) > FAR


def test_training_from_a_released_sprc_has_its_loss(released):
    state, retriever, tower = released.sprc

    def loss(twin):
        seen, sought = sides(twin, tower)
        prototypes, gallery = twin.first(TEXTS, seen), twin.gallery(sought)
        align = (prototypes.mean(1) - state["prompt_tokens"].mean(1)).square().mean()
        query = twin.query(TEXTS, prototypes, mean=False)
        return twin.contrast(query, gallery) + 0.4 * twin.contrast(twin.text(TEXTS), gallery) + 0.4 * align

    check(our_loss(trained(retriever), tower, "sprc", rtc=0.4, prompt_align=0.4), loss, Twin(state))


def test_training_from_a_released_ptha_has_its_loss_over_padding_it_attends(released):
    state, retriever, tower = released.ptha

    def loss(twin):
        seen, sought = sides(twin, tower)
        prototypes, back, gallery = twin.first(TEXTS, seen), twin.first(BACK, sought), twin.gallery(sought)
        query = twin.query(TEXTS, prototypes, mean=True)
        align = (prototypes.mean(1) - back.mean(1)).square().mean()
        return twin.contrast(query, gallery, 0.1) + 0.4 * twin.contrast(twin.text(TEXTS), gallery) + 0.4 * align

    check(our_loss(trained(retriever), tower, "ptha", rtc=0.4, two_hop=0.4), loss, Twin(state, second="ones"))


@pytest.mark.parametrize(("kind", "name"), [(PretrainRun, "pretrain-mtst"), (FinetuneRun, "finetune-ptha")])
def test_the_paper_recipes_train_as_the_released_code_does(released, kind, name):
    """MTST pretrains over hidden padding; PTHA's fine-tuning changes the mask that it inherits, and nothing else."""
    state, _, tower = released.blip2
    pretrain, own = (
        load_config(run, ROOT / "jobs" / "configs" / "cirr" / f"{file}-paper.yaml").encoder.settings
        for run, file in ((PretrainRun, "pretrain-mtst"), (kind, name))
    )
    start = retriever_from(open_blip2(released.weights), pretrain.model_copy(update={"text_length": LENGTH}))
    model = trained(start) if kind is PretrainRun else trained(start, **own.given())

    def loss(twin):
        seen, sought = sides(twin, tower)
        return twin.contrast(twin.query(TEXTS, twin.first(TEXTS, seen), mean=True), twin.gallery(sought))

    twin = Twin(state, second="true" if kind is PretrainRun else "ones")
    check(our_loss(model, tower, "pretrain"), loss, twin)


@pytest.mark.parametrize("kind", ["sprc", "ptha"])
def test_searching_and_evaluating_with_a_released_checkpoint_gives_its_scores(released, kind):
    """Inference reads [CLS] and hides padding in both; a search cleans its text first, which changes nothing here."""
    state, retriever, tower = getattr(released, kind)
    reference, target = small.images(seed=1), small.images(seed=2)
    gallery = retriever.encode_gallery(tower(target))
    for texts in (TEXTS, [said(retriever, text) for text in TEXTS]):
        query = retriever.compose(retriever.encode_reference(tower(reference)), retriever.tokenize(texts))

        def scores(twin):
            seen, sought = sides(twin, tower)
            found = twin.query(TEXTS, twin.first(TEXTS, seen), mean=False)
            return torch.einsum("bd,nqd->bnq", found, twin.gallery(sought)).amax(-1)

        check(retriever.score(query, gallery), scores, Twin(state))


def test_spns_second_stage_reads_and_masks_as_its_release_does(released):
    """Prototypes by the frozen first pass, queries by copies of Q-Former and projection, which have moved."""
    state, retriever, tower = released.sprc
    fork = fork_for_query_tuning(trained(retriever), "second_pass").train()
    moved = {
        name: value + 0.05 * value.sign() if name.startswith(("Qformer", "text_proj")) else value
        for name, value in state.items()
    }
    source = {name: value for name, value in fork.query.state_dict().items()}
    with torch.no_grad():
        for name, value in fork.query.named_parameters():
            if name.startswith(("qformer.qformer", "qformer.embeddings", "text_projection")):
                value.copy_(source[name] + 0.05 * source[name].sign())

    def query(twin):
        seen, _ = sides(twin, tower)
        return twin.query(TEXTS, twin.first(TEXTS, seen), mean=False, state=moved)

    ours = fork.compose(fork.encode_reference(tower(small.images(seed=1))), fork.tokenize(TEXTS))
    check(ours, query, Twin(state))


@pytest.fixture(scope="module")
def second_stage(tmp_path_factory):
    """SPN's second stage as SPN4CIR saves it (two text sides), and what `cirray convert` makes of it."""
    root = tmp_path_factory.mktemp("s")
    small.reader().save_pretrained(str(root / "words"))
    first, other = (lavis.model("sprc", words=len(small.reader()), seed=seed).state_dict() for seed in (0, 5))
    ends = {"Qformer.": "Qformer_query.", "text_proj.": "text_proj_q."}
    query = {name: value for name, value in other.items() if name.startswith(tuple(ends))}
    copies = {ends[start] + name.removeprefix(start): query[name] for name in query for start in ends if start in name}
    saved = {f"blip_model.{name}": value for name, value in {**first, "temp": torch.tensor(0.05), **copies}.items()}
    torch.save({"epoch": 2, "CIRPlus": saved}, root / "stage2.pt")
    common = {
        "qformer_heads": 2,
        "vision_heads": 2,
        "to": "checkpoint",
        "encoder": {"settings": {"text_length": LENGTH}},
    }
    run = ConvertRun(source=str(root / "stage2.pt"), out=str(root / "out"), tokenizer=str(root / "words"), **common)
    return SimpleNamespace(first=first, query={**first, **query}, saved=saved, root=root, manifest=run_convert(run))


def test_a_second_stage_of_spn_asks_with_its_trained_second_pass_behind_the_first_stages(second_stage):
    encoder, tower, _ = load_models(str(second_stage.root / "out"))
    assert second_stage.manifest.extra["format"] == "spn" and encoder.trains == "second_pass"
    twin = Twin(second_stage.first)
    patches = twin.seen(tower, small.images(seed=1))
    theirs = twin.query(TEXTS, twin.first(TEXTS, patches), mean=False, state=second_stage.query)
    with torch.no_grad():
        ours = encoder.compose(encoder.encode_reference(tower(small.images(seed=1))), encoder.tokenize(TEXTS))
        gallery = encoder.encode_gallery(tower(small.images(seed=1)))
    assert apart(ours, theirs) < CLOSE and apart(gallery, twin.gallery(patches)) < CLOSE
    assert apart(ours, twin.query(TEXTS, twin.first(TEXTS, patches), mean=False)) > FAR  # the first stage's own pass
    own = Twin(second_stage.query)
    assert apart(ours, own.query(TEXTS, own.first(TEXTS, patches), mean=False)) > FAR  # its first pass too


def test_a_second_stage_of_spn_comes_back_under_the_names_of_its_authors(second_stage):
    run_convert(ConvertRun(source=str(second_stage.root / "out"), to="original", out=str(second_stage.root / "back")))
    back = torch.load(second_stage.root / "back" / "weights.pt")["CIRPlus"]
    unused = {name for name in second_stage.saved if ".cls." in name or "itm_head" in name}
    assert set(back) == set(second_stage.saved) - unused
    assert all(torch.equal(back[name], second_stage.saved[name]) for name in back)


@pytest.mark.parametrize(
    "fields, sentence", [({"to": "weights"}, "use to=checkpoint"), ({"format": "sprc"}, "not sprc")]
)
def test_a_second_stage_of_spn_as_anything_else_is_refused(second_stage, tmp_path, fields, sentence):
    run = {"source": str(second_stage.root / "stage2.pt"), "to": "checkpoint", "out": str(tmp_path / "out"), **fields}
    with pytest.raises(ArtifactError, match=sentence):
        run_convert(ConvertRun(**run))


def test_a_first_stage_is_not_taken_for_spns_second(tmp_path):
    lavis.write(tmp_path / "sprc.pt", "sprc", words=len(small.reader()))
    with pytest.raises(ArtifactError, match="no second stage of SPN's"):
        run_convert(ConvertRun(source=str(tmp_path / "sprc.pt"), format="spn", out=str(tmp_path / "out")))
