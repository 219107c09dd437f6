"""Published weights without training: image and text features, pixels and queries against the libraries' own."""

import numpy as np
import published
import pytest
import torch
from PIL import Image
from torch.nn import functional
from transformers import AutoImageProcessor, AutoTokenizer

import cirray
from cirray.models.fusion.arithmetic import Slerp

TEXTS = ["paint the red circle blue", "remove it", "move the small square"]
CLOSE = 2e-5
KINDS = ("clip", "bge_vl", "siglip", "siglip2", "open_clip")
SIZES = [(61, 40), (40, 61), (33, 33)]
"""No picture is square but one, and margins of odd width are among them."""


def photographs():
    rng = np.random.default_rng(0)
    small = [rng.integers(0, 256, (5, 7, 3), dtype=np.uint8) for _ in SIZES]
    return [
        Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
        for pixels, size in zip(small, SIZES, strict=True)
    ]


def theirs(kind, model, folder, images):
    """Pixels `[B, C, H, W]`, image and text features `[B, D]` by the library alone."""
    if kind == "open_clip":
        import open_clip

        _, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        pixels = torch.stack([prepare(image) for image in images])
        words = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
        return pixels, model.encode_image(pixels), model.encode_text(words)
    pixels = AutoImageProcessor.from_pretrained(folder)(images, return_tensors="pt")["pixel_values"]
    reader = AutoTokenizer.from_pretrained(folder)
    if "siglip" in kind:  # padded to the full length, and padding is read
        words = reader(TEXTS, return_tensors="pt", padding="max_length", max_length=published.LENGTH)
        text = model.get_text_features(input_ids=words["input_ids"])
    else:
        text = model.get_text_features(**reader(TEXTS, return_tensors="pt", padding=True).to("cpu").data)
    return pixels, pooled(model.get_image_features(pixels)), pooled(text)


def pooled(features):
    return getattr(features, "pooler_output", features)


def unit(vectors):
    return functional.normalize(torch.as_tensor(vectors), dim=-1)


@pytest.fixture(scope="module", params=KINDS)
def both(request, tmp_path_factory):
    """Our model, and the library's pixels and features."""
    folder = str(tmp_path_factory.mktemp("published") / request.param)
    model = getattr(published, request.param)(folder)
    with torch.inference_mode():
        return request.param, cirray.load(folder), theirs(request.param, model, folder, photographs())


def test_pixels_are_those_of_the_library_s_own_processor(both):
    kind, model, (pixels, _, _) = both
    ours = torch.from_numpy(np.stack([model.transform(image) for image in photographs()])).float()
    ours = ((ours - model.vision.mean_C) / model.vision.std_C).permute(0, 3, 1, 2)
    step = float((1 / model.vision.std_C).max())  # one level of 256
    assert float((ours - pixels).abs().max()) < 1.5 * step
    assert float((ours - pixels.flip(0)).abs().mean()) > 10 * step


def test_vectors_are_those_of_the_library_s_own_forward(both):
    kind, model, (pixels, image_BD, text_BD) = both
    exact = model.vision._tokens(pixels)[:, 0]
    assert float((exact - image_BD).abs().max() / image_BD.abs().max()) < CLOSE
    ours = torch.from_numpy(model.texts(TEXTS))
    assert float((ours - unit(text_BD)).abs().max()) < CLOSE
    assert float((ours - unit(text_BD).flip(0)).abs().max()) > 1000 * CLOSE
    images = torch.from_numpy(model.images(photographs()))[:, 0]
    cosines = [float((images * unit(other)).sum(-1).min()) for other in (image_BD, image_BD.flip(0))]
    assert cosines[0] > 0.999 and cosines[1] < 0.99


def test_a_query_is_the_sum_as_published_and_its_weight_moves_it_from_picture_to_text(both):
    kind, model, (_, image_BD, text_BD) = both
    images, texts = photographs(), TEXTS
    seen = model.vision(torch.from_numpy(np.stack([model.transform(image) for image in images])))[:, 0].half().float()
    text_BD = text_BD.float()
    summed = unit(seen + text_BD) if kind == "bge_vl" else unit(unit(seen) + unit(text_BD))
    other = unit(unit(seen) + unit(text_BD)) if kind == "bge_vl" else unit(seen + 3 * text_BD)
    ours = torch.from_numpy(model.queries(images, texts))
    assert float((ours - summed).abs().max()) < 10 * CLOSE < float((ours - other).abs().max())
    assert model.composition.weight == 0.5
    ends = model.queries(images, texts, [0.0, 0.0, 0.0]), model.queries(images, texts, [1.0, 1.0, 1.0])
    assert np.allclose(ends[0], model.images(images)[:, 0], atol=CLOSE)
    assert np.allclose(ends[1], model.texts(texts), atol=CLOSE)


def test_slerp_is_its_equation_and_moves_with_the_weight(tmp_path):
    published.clip(tmp_path / "clip")
    model = cirray.load(str(tmp_path / "clip"), composition="slerp", weight=0.3)
    found = model.images(photographs()[:1]), model.texts(TEXTS[:1])
    image_D, text_D = (torch.from_numpy(vectors).double().flatten() for vectors in found)
    angle = torch.acos((image_D * text_D).sum())
    for share, weights in ((0.3, None), (0.9, [0.9])):
        naive = (torch.sin((1 - share) * angle) * image_D + torch.sin(share * angle) * text_D) / torch.sin(angle)
        ours = torch.from_numpy(model.queries(photographs()[:1], TEXTS[:1], weights))[0]
        assert torch.allclose(ours.double(), naive, atol=1e-4), share
    assert isinstance(model.encoder.head, Slerp)
