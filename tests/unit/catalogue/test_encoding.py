"""Pictures as changes of a gallery."""

from types import SimpleNamespace

import numpy as np
import torch

from cirray.catalogue.encoding import Decoded, PictureEncoder


def test_packed_pictures_of_several_shapes_are_encoded_together_as_each_is_alone():
    network = SimpleNamespace(encode_gallery=lambda rows_BW: rows_BW.sum(dim=1).reshape(-1, 1, 1))
    encoder = PictureEncoder(network, lambda pixels_BL: pixels_BL.float(), None, 0)
    pictures = [Decoded(f"p{n}", np.arange(1, n, dtype=np.uint8), b"", "") for n in (4, 9)]
    together = [change.tokens_QD for change in encoder.encode(pictures)]
    alone = [encoder.encode([picture])[0].tokens_QD for picture in pictures]
    assert torch.equal(torch.from_numpy(np.stack(together)), torch.from_numpy(np.stack(alone)))
    assert [row.item() for row in together] == [6, 36]
