import pytest
import torch
from modes import decoding_preset

from cirray.core.config import validate
from cirray.core.errors import ConfigError, GenerationError
from cirray.generators.config import DecodingConfig
from cirray.generators.decoding import decode, row_uniforms

END = 3


@pytest.fixture
def prefix(language):
    return torch.randn(6, 5, language.width, generator=torch.Generator().manual_seed(2))


def reference(language, prefix, **settings):
    """What transformers' own generate() writes, without the end token and what follows it."""
    mask = torch.ones(prefix.shape[:2], dtype=torch.int64)
    rows = language.model.generate(
        inputs_embeds=prefix, attention_mask=mask, do_sample=False, pad_token_id=0, eos_token_id=END, **settings
    )
    return [row[: row.index(END)] if END in row else row for row in rows.tolist()]


def test_greedy_decoding_equals_transformers_generate(language, prefix):
    found = decode(language.model, prefix, DecodingConfig(max_new_tokens=12), END)
    expected = reference(language, prefix, max_new_tokens=12, min_new_tokens=1)
    assert [row.ids for row in found] == expected
    assert len({tuple(row.ids) for row in found}) > 1
    assert {row.finished for row in found} == {True, False}


def test_repetition_penalty_equals_transformers_generate(language, prefix):
    found = decode(language.model, prefix, DecodingConfig(max_new_tokens=12, repetition_penalty=1.5), END)
    expected = reference(language, prefix, max_new_tokens=12, min_new_tokens=1, repetition_penalty=1.5)
    assert [row.ids for row in found] == expected
    assert [row.ids for row in decode(language.model, prefix, DecodingConfig(max_new_tokens=12), END)] != expected


@pytest.mark.parametrize("length_penalty", [1.0, 1.5])
def test_beam_search_equals_transformers_generate(language, prefix, length_penalty):
    settings = {"max_new_tokens": 8, "length_penalty": length_penalty}
    found = decode(language.model, prefix, DecodingConfig(beams=3, **settings), END)
    expected = reference(language, prefix, num_beams=3, min_new_tokens=1, early_stopping=False, **settings)
    assert [row.ids for row in found] == expected


@pytest.mark.parametrize("settings", [{"repetition_penalty": 1.5}, {"min_new_tokens": 6, "length_penalty": 1.5}])
def test_beam_search_with_the_papers_penalties_equals_transformers_generate(language, prefix, settings):
    config = {"max_new_tokens": 8, **settings}
    found = decode(language.model, prefix, DecodingConfig(beams=5, **config), END)
    expected = reference(language, prefix, num_beams=5, early_stopping=False, **{"min_new_tokens": 1, **config})
    assert [row.ids for row in found] == expected
    plain = decode(language.model, prefix, DecodingConfig(beams=5, max_new_tokens=8), END)
    assert [row.ids for row in plain] != expected


def test_beam_search_is_at_least_as_probable_as_greedy(language, prefix):
    greedy = decode(language.model, prefix, DecodingConfig(max_new_tokens=8), END)
    beams = decode(language.model, prefix, DecodingConfig(max_new_tokens=8, beams=6, length_penalty=0.0), END)
    pairs = [
        (b.logprob * (len(b.ids) + 1), g.logprob * (len(g.ids) + 1))
        for b, g in zip(beams, greedy, strict=True)
        if b.finished and g.finished
    ]
    assert pairs and all(beam >= single - 1e-4 for beam, single in pairs)


@pytest.mark.parametrize("beams", [1, 3])
def test_a_row_does_not_depend_on_the_rows_beside_it(language, prefix, beams):
    config = DecodingConfig(max_new_tokens=10, beams=beams)
    together = decode(language.model, prefix, config, END)
    alone = [decode(language.model, prefix[i : i + 1], config, END)[0] for i in range(len(prefix))]
    assert [row.ids for row in together] == [row.ids for row in alone]
    assert all(abs(a.logprob - b.logprob) < 1e-4 for a, b in zip(together, alone, strict=True))


def test_logprob_is_the_mean_over_tokens_of_a_forced_pass(language, prefix):
    language.model.requires_grad_(False)
    for number, row in enumerate(decode(language.model, prefix, DecodingConfig(max_new_tokens=8), END)):
        ids = [*row.ids, *([END] if row.finished else [])]
        words = language.embed(torch.tensor([ids[:-1]], dtype=torch.int64))
        logits = language.model(inputs_embeds=torch.cat([prefix[number : number + 1], words], dim=1)).logits[0, 4:]
        logits[0, END] = -torch.inf
        scores = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])
        assert float(scores.mean()) == pytest.approx(row.logprob, abs=1e-4)


def test_limits_count_new_tokens(language, prefix):
    rows = decode(language.model, prefix, DecodingConfig(min_new_tokens=6, max_new_tokens=7), END)
    assert all(6 <= len(row.ids) <= 7 for row in rows)


def test_sampling_follows_the_row_seed_and_nothing_else(language, prefix):
    config = decoding_preset("diverse", max_new_tokens=8)
    numbers = row_uniforms(range(6), 8)
    first = decode(language.model, prefix, config, END, numbers)
    assert first == decode(language.model, prefix, config, END, numbers)
    part = decode(language.model, prefix[3:], config, END, numbers[3:])
    assert [row.ids for row in part] == [row.ids for row in first[3:]]
    other = decode(language.model, prefix, config, END, row_uniforms(range(6, 12), 8))
    assert [row.ids for row in other] != [row.ids for row in first]


def test_a_nucleus_of_one_token_is_greedy(language, prefix):
    config = DecodingConfig(sample=True, top_p=1e-6, max_new_tokens=8)
    sampled = decode(language.model, prefix, config, END, row_uniforms(range(6), 8))
    greedy = decode(language.model, prefix, DecodingConfig(max_new_tokens=8), END)
    assert [row.ids for row in sampled] == [row.ids for row in greedy]


def test_sampling_without_numbers_is_refused(language, prefix):
    with pytest.raises(GenerationError, match="one random number per row"):
        decode(language.model, prefix, DecodingConfig(sample=True), END)


def test_no_rows_give_no_texts(language):
    assert decode(language.model, torch.empty(0, 5, language.width), DecodingConfig(), END) == []


def test_presets_are_those_of_the_papers():
    paper, long, diverse = (decoding_preset(name) for name in ("paper", "long", "diverse"))
    assert (paper.beams, paper.repetition_penalty, paper.length_penalty, paper.min_new_tokens) == (5, 1.5, 1.0, 1)
    assert (long.min_new_tokens, long.length_penalty, long.max_new_tokens) == (12, 1.5, 48)
    assert (diverse.sample, diverse.top_p, diverse.temperature) == (True, 0.9, 0.8)
    with pytest.raises(ConfigError, match="beams 1"):
        validate(DecodingConfig, {"sample": True, "beams": 2})
