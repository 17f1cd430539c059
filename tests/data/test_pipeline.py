"""Batches are reproducible, resumable and shared by processes; errors are clear."""

import dataclasses
import itertools
import subprocess
import sys

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from batches import OPTIONS, assert_same, first_batches, scene_ids
from optional_packages import HIDE
from tiny_scenes import write_scene, write_scenes

from facelift_jax.data.examples import evaluation_example
from facelift_jax.data.io import DataError
from facelift_jax.data.pipeline import evaluation_batches, training_batches
from facelift_jax.data.scenes import FolderSource, open_source
from facelift_jax.structs import check

NUM_SCENES = 7


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("set")
    return open_source(write_scenes(root, NUM_SCENES, num_views=5, width=12, height=12))


def test_batches_are_well_formed(source):
    (batch,) = first_batches(1, source, batch_size=3)
    assert check(batch) == {"b": 3, "v": 2, "t": 3}
    assert batch.scene_id.dtype == np.int32
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(batch))


def test_every_epoch_has_all_scenes_in_another_order(source):
    batches = first_batches(2 * NUM_SCENES, source)  # four epochs
    epochs = np.reshape(scene_ids(batches), (4, NUM_SCENES))
    assert (np.sort(epochs) == np.arange(NUM_SCENES)).all()
    assert len({tuple(epoch) for epoch in epochs}) == 4
    # the same scene in another epoch is another example
    views = [
        batch.targets.cameras.viewmats[i].tobytes()
        for batch in batches
        for i in range(2)
        if batch.scene_id[i] == 0
    ]
    assert len(set(views)) > 1


def test_a_seed_gives_one_stream_for_any_number_of_threads(source):
    one = first_batches(6, source, num_threads=0)
    assert_same(one, first_batches(6, source, num_threads=0))
    assert_same(one, first_batches(6, source, num_threads=1))
    assert_same(one, first_batches(6, source, num_threads=4))
    other = first_batches(6, source, seed=1, num_threads=0)
    assert scene_ids(other) != scene_ids(one)


def test_examples_of_one_batch_draw_differently(tmp_path):
    write_scene(tmp_path / "only", num_views=5, width=12, height=12)
    one_scene = open_source(tmp_path)
    (batch,) = first_batches(1, one_scene, batch_size=4)
    poses = {viewmats.tobytes() for viewmats in batch.targets.cameras.viewmats}
    assert len(poses) > 1


def test_processes_share_one_stream(source):
    whole = first_batches(7, source, batch_size=4, num_threads=0)
    parts = [
        first_batches(7, source, process_index=i, process_count=2, num_threads=2)
        for i in range(2)
    ]
    ids = np.stack([np.reshape(scene_ids(part), (7, 2)) for part in parts], -1)
    assert ids.reshape(-1).tolist() == scene_ids(whole)
    # together they cover the epochs, and never read one scene twice in an epoch
    epochs = ids.reshape(-1, NUM_SCENES)
    assert (np.sort(epochs) == np.arange(NUM_SCENES)).all()
    for batch, mine, others in zip(whole, *parts, strict=True):
        np.testing.assert_array_equal(batch.inputs.images[0::2], mine.inputs.images)
        np.testing.assert_array_equal(batch.inputs.images[1::2], others.inputs.images)


@pytest.mark.parametrize("threads", [(0, 0), (2, 2), (2, 0)])
def test_a_restored_iterator_continues_bit_for_bit(source, threads):
    iterator = training_batches(source, OPTIONS, 2, 0, num_threads=threads[0])
    for _ in range(5):  # to the middle of the second epoch
        next(iterator)
    state = iterator.get_state()
    expected = list(itertools.islice(iterator, 4))
    iterator.close()
    fresh = training_batches(source, OPTIONS, 2, 0, num_threads=threads[1])
    next(fresh)
    fresh.set_state(state)
    assert_same(expected, list(itertools.islice(fresh, 4)))
    fresh.close()


def test_the_position_is_saved_in_a_checkpoint(source, tmp_path):
    iterator = training_batches(source, OPTIONS, 2, 0, num_threads=2)
    next(iterator)
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        save = grain.checkpoint.CheckpointSave(iterator)
        manager.save(1, args=ocp.args.Composite(data=save))
    expected = [next(iterator) for _ in range(3)]
    iterator.close()
    fresh = training_batches(source, OPTIONS, 2, 0, num_threads=2)
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        restore = grain.checkpoint.CheckpointRestore(fresh)
        manager.restore(1, args=ocp.args.Composite(data=restore))
    assert_same(expected, [next(fresh) for _ in range(3)])
    fresh.close()


def test_evaluation_has_every_scene_once_in_order(source):
    batches = list(evaluation_batches(source, OPTIONS, 3, num_threads=2))
    assert [len(batch.scene_id) for batch in batches] == [3, 3, 1]
    assert scene_ids(batches) == list(range(NUM_SCENES))
    assert check(batches[0]) == {"b": 3, "v": 2, "t": 5}
    example = evaluation_example(source[4], OPTIONS)
    np.testing.assert_array_equal(batches[1].inputs.images[1], example.inputs.images)
    assert_same(batches, list(evaluation_batches(source, OPTIONS, 3, num_threads=0)))


BASE_INSTALL = """
from facelift_jax import check_data
from facelift_jax.data import mixture, options, pipeline, scenes

folder, packed = sys.argv[1:]
source = scenes.open_source(folder)
small = options.DataOptions(input_size=8, target_size=8, num_inputs=2)
batches = pipeline.evaluation_batches(source, small, 2)
ids = [index for batch in batches for index in batch.scene_id.tolist()]
assert ids == list(range(len(source))), ids
check_data.main([folder])
calls = {
    "train": lambda: pipeline.training_batches(source, small, 2, 0),
    "train ": lambda: scenes.open_source(packed),
    "report": lambda: check_data.main([folder, "--images", "nowhere"]),
}
for extra, call in calls.items():
    try:
        call()
    except ImportError as error:
        assert f'"facelift-jax[{extra.strip()}]"' in str(error), error
    else:
        raise AssertionError(extra)
"""


def test_reading_checking_and_evaluating_need_no_extra(tmp_path):
    folder = write_scenes(tmp_path / "set", 3, num_views=5, width=12, height=12)
    packed = tmp_path / "packed"
    packed.mkdir()
    (packed / "dataset_info.json").write_text("{}")
    arguments = [sys.executable, "-c", HIDE + BASE_INSTALL, str(folder), str(packed)]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def truncate(source, index):
    path = source.folders[index] / "images" / "cam_001.png"
    path.write_bytes(path.read_bytes()[:100])
    return f"scene {source.names[index]}, view 1 ({path}): truncated or damaged image"


@pytest.fixture
def damaged(tmp_path):
    """Six scenes, two of them with a truncated image; and the two messages."""
    write_scenes(tmp_path, 6, num_views=5, width=12, height=12)
    source = open_source(tmp_path)
    return source, [truncate(source, index) for index in (2, 5)]


@pytest.mark.parametrize("num_threads", [0, 3])
def test_a_bad_scene_raises_its_message(damaged, num_threads):
    source, lines = damaged
    with pytest.raises(DataError) as caught:
        list(evaluation_batches(source, OPTIONS, 1, num_threads=num_threads))
    assert str(caught.value) == f"{lines[0]} (image file is truncated)"
    with pytest.raises(DataError) as caught:
        first_batches(6, source, num_threads=num_threads)
    assert str(caught.value).startswith(tuple(lines))


def test_allowed_bad_scenes_are_counted_and_logged(damaged, caplog):
    source, lines = damaged
    allowed = dataclasses.replace(OPTIONS, bad_scenes_allowed=2)
    batches = first_batches(8, source, allowed, num_threads=0)
    assert set(scene_ids(batches)) == {0, 1, 3, 4}
    logged = [r.getMessage() for r in caplog.records if "skipped" in r.getMessage()]
    # each scene is logged once, not in every epoch
    assert sorted(message[:31] for message in logged) == [
        "skipped bad scene 1 of 2 allowe",
        "skipped bad scene 2 of 2 allowe",
    ]
    assert all(any(line in message for message in logged) for line in lines)
    kept = list(evaluation_batches(source, allowed, 4, num_threads=2))
    assert [batch.scene_id.tolist() for batch in kept] == [[0, 1, 3, 4]]


def test_one_bad_scene_more_than_allowed_raises(damaged):
    source, lines = damaged
    one = dataclasses.replace(OPTIONS, bad_scenes_allowed=1)
    with pytest.raises(DataError) as caught:
        list(evaluation_batches(source, one, 1, num_threads=0))
    assert str(caught.value) == (
        "2 of 6 scenes cannot be used, bad_scenes_allowed=1; the last one: "
        f"{lines[1]} (image file is truncated)"
    )


def test_a_set_without_a_usable_scene_raises_even_if_allowed(damaged):
    source, _ = damaged
    all_bad = FolderSource(source.folders[2::3], source.names[2::3])
    allowed = dataclasses.replace(OPTIONS, bad_scenes_allowed=9)
    for batches in (
        evaluation_batches(all_bad, allowed, 1, num_threads=0),
        training_batches(all_bad, allowed, 1, seed=0, num_threads=0),
    ):
        with pytest.raises(DataError) as caught:
            next(batches)
        line = "2 of 2 scenes cannot be used, bad_scenes_allowed=9; the last one: "
        assert str(caught.value).startswith(line)
        batches.close()


def test_different_scenes_cannot_share_a_batch(tmp_path):
    write_scene(tmp_path / "a", num_views=5, width=12, height=12)
    write_scene(tmp_path / "b", num_views=6, width=12, height=12)
    write_scene(tmp_path / "c", num_views=6, width=12, height=12, depth=False)
    source = open_source(tmp_path)
    line = (
        r"scenes 0 and 1 cannot share a batch: they differ in target views \(5 and 6\)"
    )
    with pytest.raises(DataError, match=line):
        list(evaluation_batches(source, OPTIONS, 2, num_threads=0))
    rest = FolderSource(source.folders[1:], source.names[1:])
    line = (
        r"scenes 0 and 1 cannot share a batch: they differ in depth \(True and False\)"
    )
    with pytest.raises(DataError, match=line):
        list(evaluation_batches(rest, OPTIONS, 2, num_threads=0))
    assert len(list(evaluation_batches(source, OPTIONS, 1, num_threads=0))) == 3


def test_closing_early_raises_nothing(source):
    iterator = training_batches(source, OPTIONS, 2, 0, num_threads=3)
    next(iterator)
    iterator.close()
    batches = evaluation_batches(source, OPTIONS, 2, num_threads=3)
    next(batches)
    batches.close()
