"""Several sets in one run: shares, order, names, and their checks together."""

import itertools
import shutil

import numpy as np
import pytest
from batches import OPTIONS, assert_same, first_batches, scene_ids
from breakers import line_of
from scene_sets import invert_poses, make_set
from tiny_scenes import write_scenes

from facelift_jax.data.mixture import check_mix, join
from facelift_jax.data.options import DataOptions
from facelift_jax.data.pipeline import evaluation_batches, training_batches
from facelift_jax.data.scenes import Part, open_source, split_source
from facelift_jax.data.validation.dataset_report import require_data_checks
from facelift_jax.data.validation.leakage import leave_out_trained

SMALL = {"num_views": 5, "width": 12, "height": 12}


def part(path, weight=1.0, num_held_out=1):
    return Part(path, weight, *split_source(open_source(path), num_held_out))


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Sets with three and five scenes to train on; the second has weight 3."""
    root = tmp_path_factory.mktemp("mix")
    write_scenes(root / "a", 4, **SMALL)
    write_scenes(root / "b", 6, **SMALL)
    return part(root / "a", 1.0), part(root / "b", 3.0)


def mixed_batches(count, source, **kwargs):
    return first_batches(count, source, shares=source.shares, **kwargs)


def test_a_mix_is_its_sets_in_sequence(parts):
    train, held_out = join(parts)
    assert train.names == (
        *("a--000", "a--001", "a--002"),
        *("b--000", "b--001", "b--002", "b--003", "b--004"),
    )
    assert held_out.names == ("a--003", "b--005")
    assert train.shares == ((3, 1.0), (5, 3.0))
    assert train[4].name == "b--001"
    assert train[4].path == parts[1].path / "001"
    assert [x.scene_id.tolist() for x in evaluation_batches(held_out, OPTIONS, 1)] == [
        [0],
        [1],
    ]
    assert join(parts[:1]) == (parts[0].train, parts[0].held_out)


def test_weights_are_shares_of_the_examples(parts):
    train, _ = join(parts)
    ids = np.array(scene_ids(mixed_batches(30, train)))
    assert (ids < 3).sum() == 15  # of 60
    # each set has its own epochs
    for number, group in ((3, ids[ids < 3]), (5, ids[ids >= 3] - 3)):
        epochs = group[: len(group) // number * number].reshape(-1, number)
        assert (np.sort(epochs) == np.arange(number)).all()
    assert scene_ids(mixed_batches(6, train, seed=1)) != ids[:12].tolist()


def test_the_sets_draw_differently(parts):
    """Two sets with equal scenes, at the same position of their epochs."""
    same = [parts[0], parts[0]._replace(path=parts[1].path)]
    train, _ = join(same)
    (batch,) = mixed_batches(1, train, batch_size=12)
    poses = {viewmats.tobytes() for viewmats in batch.targets.cameras.viewmats}
    assert len(poses) > 6


def test_a_mix_is_reproduced_shared_and_resumed_bit_for_bit(parts):
    train, _ = join(parts)
    whole = mixed_batches(5, train, batch_size=4, num_threads=0)
    assert_same(whole, mixed_batches(5, train, batch_size=4, num_threads=3))
    split = [
        mixed_batches(5, train, process_index=i, process_count=2) for i in range(2)
    ]
    for batch, one, other in zip(whole, *split, strict=True):
        np.testing.assert_array_equal(batch.targets.images[0::2], one.targets.images)
        np.testing.assert_array_equal(batch.targets.images[1::2], other.targets.images)
    kwargs = {"shares": train.shares, "num_threads": 2}
    iterator = training_batches(train, OPTIONS, 2, 0, **kwargs)
    for _ in range(7):
        next(iterator)
    state = iterator.get_state()
    expected = list(itertools.islice(iterator, 4))
    iterator.close()
    fresh = training_batches(train, OPTIONS, 2, 0, **kwargs)
    fresh.set_state(state)
    assert_same(expected, list(itertools.islice(fresh, 4)))
    fresh.close()


def test_one_set_without_depth_removes_it_from_the_mix_and_is_logged(
    parts, tmp_path, caplog
):
    no_depth = part(write_scenes(tmp_path / "no_depth", 2, **SMALL, depth=False))
    assert all(scene.depths is not None for scene in join(parts)[0])
    assert not caplog.records
    train, held_out = join([*parts, no_depth])
    assert (
        f"no depth maps in {no_depth.path}: depth is ignored in the whole mix"
        in caplog.text
    )
    assert all(scene.depths is None for scene in [*train, *held_out])
    assert all(batch.targets.depths is None for batch in mixed_batches(6, train))
    remaining = leave_out_trained(held_out, [])
    assert all(scene.depths is None for scene in remaining)


@pytest.mark.parametrize(
    "mix", [("a",), (("a", 0.0),), (("a", float("nan")),), (("a", "b"),), ((1, 2),)]
)
def test_an_invalid_mix_raises(mix):
    with pytest.raises(
        ValueError, match=r"data\.mix: .* is not a \(path, weight\) pair"
    ):
        check_mix(mix)


def test_sets_with_one_name_raise():
    with pytest.raises(
        ValueError, match="every set needs a different name, found x, x; rename"
    ):
        check_mix((("a/x", 1.0), ("b/x", 1)))


def test_the_record_contains_sets_and_held_out_scenes(tmp_path):
    a, b = make_set(tmp_path / "a", 3), make_set(tmp_path / "b", 9)
    for name in ("000", "001", "002"):  # copies of scenes of the other set
        shutil.rmtree(b / name)
    invert_poses(b / "004")
    mix = [part(a, 1.0), part(b, 2.5, 2)]

    def record_of(**options):
        return require_data_checks(mix, DataOptions(**options), lambda line: None)

    line = line_of(record_of)
    assert line.startswith(
        f"{a} and {b}: 1 of 9 scenes fail the data checks, violations_allowed=0; "
        "first: scene b--004: "
    )
    assert line.endswith(f"python -m facelift_jax.check_data {b} --held-out 2")
    record = record_of(violations_allowed=1)
    assert record["sets"] == {
        str(a): {"weight": 1.0, "held_out": ["a--002"]},
        str(b): {"weight": 2.5, "held_out": ["b--007", "b--008"]},
    }
    assert list(record["used_with_violations"]) == ["b--004"]
    assert record["scenes"] == 9


def test_a_held_out_scene_in_another_training_set_raises(tmp_path):
    a, b = make_set(tmp_path / "a", 3), tmp_path / "b"
    shutil.copytree(a, b)
    shutil.rmtree(b / "002")  # leaves 000 and 001; the last one is held out
    mix = [part(a), part(b)]
    line = line_of(lambda: require_data_checks(mix, DataOptions(), lambda line: None))
    assert "a--001 and held-out scene b--001 share 5 images" in line
    assert line.endswith(f"python -m facelift_jax.check_data {a} {b}")
