"""Several sets in one run: shares, order, names, and what is asked of them together."""

import itertools
import shutil

import numpy as np
import pytest
from breakers import line_of
from scene_sets import make_set, turn_poses
from test_pipeline import OPTIONS, assert_same, scene_ids
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
    """Three and five scenes to train on, the second three times as often."""
    root = tmp_path_factory.mktemp("mix")
    write_scenes(root / "a", 4, **SMALL)
    write_scenes(root / "b", 6, **SMALL)
    return part(root / "a", 1.0), part(root / "b", 3.0)


def first(count, source, seed=0, batch_size=2, **kwargs):
    batches = training_batches(
        source, OPTIONS, batch_size, seed, shares=source.shares, **kwargs
    )
    found = list(itertools.islice(batches, count))
    batches.close()
    return found


def test_a_mix_is_its_sets_one_after_the_other(parts):
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
    ids = np.array(scene_ids(first(30, train)))
    assert (ids < 3).sum() == 15  # of 60
    # each set is read in epochs of its own
    for number, group in ((3, ids[ids < 3]), (5, ids[ids >= 3] - 3)):
        epochs = group[: len(group) // number * number].reshape(-1, number)
        assert (np.sort(epochs) == np.arange(number)).all()
    assert scene_ids(first(30, train, seed=1)) != ids.tolist()


def test_the_sets_draw_differently(parts):
    """Two sets of the same scenes, in the same place of their epochs."""
    same = [parts[0], parts[0]._replace(path=parts[1].path)]
    train, _ = join(same)
    (batch,) = first(1, train, batch_size=12)
    poses = {viewmats.tobytes() for viewmats in batch.targets.cameras.viewmats}
    assert len(poses) > 6


def test_a_mix_is_reproduced_shared_and_resumed_bit_for_bit(parts):
    train, _ = join(parts)
    whole = first(9, train, batch_size=4, num_threads=0)
    assert_same(whole, first(9, train, batch_size=4, num_threads=3))
    split = [first(9, train, process_index=i, process_count=2) for i in range(2)]
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


def test_one_set_without_depth_takes_it_from_the_mix_and_is_named(
    parts, tmp_path, caplog
):
    flat = part(write_scenes(tmp_path / "flat", 2, **SMALL, depth=False))
    assert all(scene.depths is not None for scene in join(parts)[0])
    assert not caplog.records
    train, held_out = join([*parts, flat])
    assert f"no depth maps in {flat.path}: the whole mix is used without" in caplog.text
    assert all(scene.depths is None for scene in [*train, *held_out])
    assert all(batch.targets.depths is None for batch in first(6, train))
    fresh = leave_out_trained(held_out, [])
    assert all(scene.depths is None for scene in fresh)


@pytest.mark.parametrize(
    "mix", [("a",), (("a", 0.0),), (("a", float("nan")),), (("a", "b"),), ((1, 2),)]
)
def test_what_is_no_mix_is_refused(mix):
    with pytest.raises(ValueError, match=r"data\.mix: .* is not a \(path, weight\)"):
        check_mix(mix)


def test_sets_must_have_names_of_their_own():
    with pytest.raises(ValueError, match="by their names, found x, x; rename one"):
        check_mix((("a/x", 1.0), ("b/x", 1)))


def test_the_record_names_sets_and_held_out_scenes(tmp_path):
    a, b = make_set(tmp_path / "a", 3), make_set(tmp_path / "b", 9)
    for name in ("000", "001", "002"):  # which are those of the other set
        shutil.rmtree(b / name)
    turn_poses(b / "004")
    mix = [part(a, 1.0), part(b, 2.5, 2)]

    def demand(**options):
        return require_data_checks(mix, DataOptions(**options), lambda line: None)

    line = line_of(demand)
    assert line.startswith(
        f"{a} and {b}: 1 of 9 scenes fail the data checks, violations_allowed=0; the "
        "first: scene b--004: "
    )
    assert line.endswith(f"python -m facelift_jax.check_data {b} --held-out 2")
    record = demand(violations_allowed=1)
    assert record["sets"] == {
        str(a): {"weight": 1.0, "held_out": ["a--002"]},
        str(b): {"weight": 2.5, "held_out": ["b--007", "b--008"]},
    }
    assert list(record["used_with_violations"]) == ["b--004"]
    assert record["scenes"] == 9


def test_no_set_may_judge_what_another_trains_on(tmp_path):
    a, b = make_set(tmp_path / "a", 3), tmp_path / "b"
    shutil.copytree(a, b)
    shutil.rmtree(b / "002")  # its scenes 000 and 001; the last one judges
    mix = [part(a), part(b)]
    line = line_of(lambda: require_data_checks(mix, DataOptions(), lambda line: None))
    assert "a--001 and held-out scene b--001 share 5 pictures" in line
    assert line.endswith(f"python -m facelift_jax.check_data {a} {b}")
