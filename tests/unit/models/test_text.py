import pytest

from cirray.core.errors import ArtifactError, DataError
from cirray.models.text import build_tokenizer, encode_texts, load_tokenizer


def test_texts_are_framed_lowercased_and_padded(tokenizer):
    batch = encode_texts(tokenizer, ["Paint it RED!", "it"], 12)
    words = tokenizer.convert_ids_to_tokens(batch.ids_BT[0].tolist())
    assert words == ["[CLS]", "paint", "it", "red", "[UNK]", "[SEP]"]
    assert batch.mask_BT.tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0]]


def test_the_vocabulary_does_not_depend_on_the_order_of_the_texts():
    texts = ["a b", "b c c"]
    assert build_tokenizer(texts).get_vocab() == build_tokenizer(reversed(texts)).get_vocab()
    assert build_tokenizer(texts).get_vocab() != build_tokenizer(["a b", "b d d"]).get_vocab()


def test_long_texts_are_cut_on_the_right_and_keep_their_frame(tokenizer):
    batch = encode_texts(tokenizer, ["paint the red circle blue"], 4)
    assert tokenizer.convert_ids_to_tokens(batch.ids_BT[0].tolist()) == ["[CLS]", "paint", "the", "[SEP]"]


def test_fixed_padding_gives_fixed_rows(tokenizer):
    assert encode_texts(tokenizer, ["it"], 12, pad_to=12).ids_BT.shape == (1, 12)


def test_nothing_to_encode_is_refused(tokenizer):
    with pytest.raises(DataError):
        encode_texts(tokenizer, [], 12)


def test_a_blank_text_of_a_benchmark_passes_through_as_its_frame(tokenizer):
    batch = encode_texts(tokenizer, ["it", "  "], 12)
    assert batch.mask_BT[1].sum() == 2 < batch.mask_BT[0].sum() and len(batch) == 2


def test_texts_without_words_make_no_tokenizer():
    with pytest.raises(DataError, match="no word"):
        build_tokenizer(["", "  "])


def test_a_tokenizer_survives_its_folder(tokenizer, tmp_path):
    tokenizer.save_pretrained(str(tmp_path))
    again = load_tokenizer(tmp_path)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again(["paint it"])["input_ids"] == tokenizer(["paint it"])["input_ids"]


def test_a_folder_without_tokenizer_is_named(tmp_path):
    with pytest.raises(ArtifactError, match="nowhere"):
        load_tokenizer(tmp_path / "nowhere")
