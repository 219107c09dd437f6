from dataclasses import replace
from itertools import islice

import pytest
import torch

from cirray.core.errors import DataError
from cirray.models.retriever_files import load_retriever
from cirray.training.retrieval import swapped
from cirray.triplets.rows import TripletRows, row_table


def test_a_batch_holds_the_triplets_in_order(make_task, triplets, features):
    task, _ = make_task(objective="ptha")
    batch = task.batch(triplets[:2])
    assert torch.equal(batch.target_BPD, torch.from_numpy(features.get([row.target_id for row in triplets[:2]])))
    words = task.model().tokenizer.convert_ids_to_tokens(batch.text.ids_BT[1].tolist())
    assert " ".join(words).startswith("[CLS] " + triplets[1].modification)
    assert batch.reference_key_B[0] == batch.reference_key_B[1] and batch.target_key_B[0] != batch.target_key_B[1]
    assert batch.reverse is not None and batch.reverse_mask_B.tolist() == [1.0, 1.0]


def test_ranks_share_each_global_batch(make_task):
    task, _ = make_task()
    whole = list(islice(task.batches(2, 0, 1), 3))
    parts = [list(islice(task.batches(2, rank, 2), 3)) for rank in range(2)]
    for step, batch in enumerate(whole):
        joined = torch.cat([parts[0][step].target_key_B, parts[1][step].target_key_B])
        assert torch.equal(joined, batch.target_key_B)


def test_an_empty_text_is_an_error_with_the_rows_name(make_task, triplets):
    with pytest.raises(DataError, match=r"0-1.*empty"):
        make_task(rows=[replace(triplets[0], modification=" "), *triplets[1:]])


def test_an_image_without_features_is_named(make_task, triplets):
    with pytest.raises(DataError, match="ghost"):
        make_task(rows=[replace(triplets[0], target_id="ghost"), *triplets[1:]])


def test_no_triplets_are_an_error(make_task):
    with pytest.raises(DataError, match="no triplets"):
        make_task(rows=[])


def test_the_task_saves_what_can_be_loaded(make_task, tmp_path):
    task, _ = make_task()
    task.save(task.model(), tmp_path)
    assert load_retriever(tmp_path).digest == task.model().digest


def test_swapped_rows_ask_for_the_reference_by_the_reverse_text(triplets):
    rows = TripletRows(swapped(row_table([triplets[0], replace(triplets[1], reverse_modification=None)])))
    assert len(rows) == 1 and rows[0].triplet_id != triplets[0].triplet_id
    assert (rows[0].reference_id, rows[0].target_id) == (triplets[0].target_id, triplets[0].reference_id)
    assert rows[0].modification == triplets[0].reverse_modification and rows[0].group_id == triplets[0].group_id


def test_swapped_rows_are_trained_on_only_when_asked_for(make_task, triplets):
    references = {row.reference_id for row in triplets}
    for asked in (False, True):
        task, _ = make_task(swapped=asked, one_per_group=False)
        keys = {key for batch in islice(task.batches(0, 0, 1), 24) for key in batch.target_key_B.tolist()}
        names = {task.images[key] for key in keys}
        assert bool(names & references) == asked
