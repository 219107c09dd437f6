from modes import decoding_preset

from cirray.generators.config import DecodingConfig
from cirray.generators.writer import TextWriter
from cirray.types import Pair

ENDLESS = DecodingConfig(max_new_tokens=6, keep_unfinished=True)
PAIRS = [Pair("p1", "a", "b"), Pair("p2", "a", "c"), Pair("p3", "d", "b")]


def texts(generations):
    return [(row.text, row.reverse_text) for row in generations]


def test_every_pair_gets_one_generation_in_order_and_a_failure_is_a_value(model_of, features):
    pairs = [PAIRS[0], Pair("lost", "a", "nowhere"), PAIRS[1]]
    made = TextWriter(model_of(), ENDLESS).generate(pairs, features)
    assert [row.pair_id for row in made] == ["p1", "lost", "p2"]
    assert made[1].text is None and made[1].reverse_text is None and "'nowhere' has no features" in made[1].error
    assert made[0].error is None and made[0].text and made[0].reverse_text and made[0].logprob < 0


def test_no_pairs_give_no_generations(model_of, features):
    assert TextWriter(model_of(), ENDLESS).generate([], features) == []


def test_reverse_text_is_the_forward_text_of_the_swapped_pair(model_of, features):
    for fields in ({}, {"passes": ("reference", "target", "difference")}):
        writer = TextWriter(model_of(**fields), ENDLESS)
        swapped = [Pair(pair.pair_id, pair.target_id, pair.reference_id) for pair in PAIRS]
        forward, back = writer.generate(PAIRS, features), writer.generate(swapped, features)
        assert [row.reverse_text for row in forward] == [row.text for row in back]
    assert any(row.text != row.reverse_text for row in forward)


def test_batches_and_the_cache_do_not_change_a_text(model_of, features):
    whole = TextWriter(model_of(), ENDLESS).generate(PAIRS, features)
    small = ENDLESS.model_copy(update={"batch": 2})
    assert texts(TextWriter(model_of(), small, cached_images=1).generate(PAIRS, features)) == texts(whole)


def test_an_image_is_read_once_however_many_pairs_hold_it(model_of, features):
    model, read = model_of(), []
    original = model.read_image
    model.read_image = lambda patches: read.append(len(patches)) or original(patches)
    writer = TextWriter(model, ENDLESS)
    writer.generate(PAIRS, features)
    writer.generate(PAIRS, features)
    assert sum(read) == 4


def test_forward_alone_leaves_the_reverse_text_out(model_of, features):
    both = TextWriter(model_of(), ENDLESS).generate(PAIRS, features)
    forward = TextWriter(model_of(), ENDLESS, directions=("forward",)).generate(PAIRS, features)
    assert [row.text for row in forward] == [row.text for row in both]
    assert all(row.reverse_text is None for row in forward)


def test_a_text_without_end_fails_unless_it_may_be_kept(model_of, features):
    short = DecodingConfig(max_new_tokens=2, min_new_tokens=2)
    made = TextWriter(model_of(), short).generate(PAIRS, features)
    assert all(row.text is None and "no end within 2 tokens" in row.error for row in made)
    kept = TextWriter(model_of(), short.model_copy(update={"keep_unfinished": True})).generate(PAIRS, features)
    assert all(row.text for row in kept)


def test_sampled_texts_follow_pair_and_seed_not_the_batch(model_of, features):
    config = decoding_preset("diverse", max_new_tokens=6, keep_unfinished=True)
    first = TextWriter(model_of(), config, seed=1).generate(PAIRS, features)
    last = TextWriter(model_of(), config, seed=1).generate(PAIRS[2:], features)
    other = TextWriter(model_of(), config, seed=2).generate(PAIRS, features)
    assert texts(first)[2:] == texts(last)
    assert texts(first) != texts(other)


def test_digest_tells_settings_apart_and_the_seed_only_when_it_matters(model_of):
    model = model_of()
    greedy, sampling = DecodingConfig(), DecodingConfig(sample=True)
    digest = TextWriter(model, greedy, "w").digest
    assert digest == TextWriter(model, greedy, "w", seed=5).digest
    assert len({digest, TextWriter(model, greedy, "v").digest, TextWriter(model, sampling, "w").digest}) == 3
    assert TextWriter(model, sampling, "w", seed=1).digest != TextWriter(model, sampling, "w", seed=2).digest
