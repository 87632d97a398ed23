from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from anyvla.actions import NAV2, NAV3
from anyvla.config import load_config
from anyvla.data.augment import Augmentation, jitter_color, shift_frames
from anyvla.data.dataset import collate
from anyvla.data.prepare import prepare_data, split_episodes
from anyvla.data.prompts import drop_words, make_prompt, mirror_text
from anyvla.data.sampler import Item, WindowSampler
from anyvla.data.sources.mobile_h5 import MobileH5Source
from anyvla.data.stats import action_statistics
from anyvla.data.transforms import Transforms
from anyvla.errors import ConfigError, DataError


@pytest.fixture
def data(make_episodes, tiny_overrides):
    folder = make_episodes(18, 18, 18, 18, 3, 1)
    return prepare_data(load_config("nav-tiny", [*tiny_overrides, f"data.source.path={folder}"]))


def test_a_batch_has_the_promised_shapes(data) -> None:
    batch = collate([data.train[Item(0, i)] for i in range(4)])
    assert batch.images["front"].shape == (4, 4, 3, 32, 48)
    assert batch.images["front"].dtype == torch.uint8
    assert batch.actions.shape == (4, 4, 3, 2)
    assert batch.action_mask.shape == (4, 4, 3)
    assert len(batch.prompts) == len(batch.names) == 4


def test_the_same_address_gives_the_same_sample_and_another_epoch_another_augmentation(data) -> None:
    a, b, other = data.train[Item(1, 0)], data.train[Item(1, 0)], data.train[Item(2, 0)]
    np.testing.assert_array_equal(a["images"]["front"], b["images"]["front"])
    assert (a["images"]["front"] != other["images"]["front"]).any()


def test_loading_is_the_same_with_and_without_worker_processes(data) -> None:
    sampler = WindowSampler(len(data.train), 4, seed=3)
    batches = [sampler.batch(i) for i in range(3)]
    alone = list(DataLoader(data.train, batch_sampler=batches, collate_fn=collate))
    workers = list(DataLoader(data.train, batch_sampler=batches, collate_fn=collate, num_workers=2))
    for a, b in zip(alone, workers, strict=True):
        assert torch.equal(a.images["front"], b.images["front"])
        assert torch.equal(a.actions, b.actions)
        assert a.prompts == b.prompts


def test_short_episodes_are_padded_by_the_mask_alone(data) -> None:
    names = [data.train[Item(0, i)]["name"] for i in range(len(data.train))]
    short = [e for e in data.train.episodes if e.length < 4]
    assert short, "the split left no short episode to train on"
    sample = data.train[Item(0, names.index(f"{short[0].name}@0"))]
    assert sample["mask"][:, 0].tolist() == [h < short[0].length for h in range(4)]
    assert sample["images"]["front"].shape[0] == 4


def test_episodes_are_split_whole_and_reproducibly(make_episodes) -> None:
    source = MobileH5Source(make_episodes(*[4] * 20), NAV2)
    episodes = [source.episode(i) for i in range(20)]
    training, held_out = split_episodes(episodes, 0.1, seed=5)
    assert (len(training), len(held_out)) == (18, 2)
    assert not {e.name for e in training} & {e.name for e in held_out}
    assert [e.name for e in split_episodes(episodes, 0.1, seed=5)[1]] == [e.name for e in held_out]
    with pytest.raises(DataError, match="too few"):
        split_episodes(episodes[:1], 0.5, seed=0)


def test_statistics_come_from_the_training_episodes_only(data) -> None:
    np.testing.assert_allclose(data.transforms.statistics["q01"], action_statistics(data.train.episodes)["q01"])


def test_mixed_control_rates_and_unknown_cameras_are_refused(make_episodes, tiny_overrides) -> None:
    from tests.conftest import write_episode

    folder = make_episodes(6, 6, 6)
    overrides = [*tiny_overrides, f"data.source.path={folder}"]
    with pytest.raises(ConfigError, match="did you mean 'front'"):
        prepare_data(load_config("nav-tiny", [*overrides, "observation.cameras=[fron]"]))
    write_episode(folder / "z_1box_hori_left.h5", 6, fps=5.0)
    with pytest.raises(DataError, match="different control rates"):
        prepare_data(load_config("nav-tiny", overrides))


class TestSampler:
    def test_an_epoch_visits_every_window_once(self) -> None:
        sampler = WindowSampler(64, 8, seed=1)
        seen = [item.index for number in range(8) for item in sampler.batch(number)]
        assert sorted(seen) == list(range(64))
        assert {item.epoch for item in sampler.batch(8)} == {1}

    def test_order_is_a_pure_function_of_seed_and_epoch(self) -> None:
        a, b = WindowSampler(50, 4, seed=1), WindowSampler(50, 4, seed=1)
        far = a.batch(100)  # a has been elsewhere first
        b.batch(3)
        assert b.batch(100) == far
        assert WindowSampler(50, 4, seed=2).batch(100) != far

    def test_iterating_from_a_number_equals_having_iterated_there(self) -> None:
        sampler = WindowSampler(50, 4, seed=1)
        stream = iter(sampler)
        batches = [next(stream) for _ in range(30)]
        sampler.batch_number = 17
        stream = iter(sampler)
        assert [next(stream) for _ in range(13)] == batches[17:]

    def test_ranks_share_each_global_batch(self) -> None:
        whole = WindowSampler(48, 8, seed=4)
        ranks = [WindowSampler(48, 4, seed=4, rank=rank, world_size=2) for rank in range(2)]
        for number in range(6):
            parts = [item for rank in ranks for item in rank.batch(number)]
            assert parts == whole.batch(number)

    def test_fewer_windows_than_a_batch_are_repeated(self) -> None:
        assert len(WindowSampler(3, 8, seed=0).batch(5)) == 8


class TestMirror:
    def test_twice_is_the_identity_for_images_words_actions_and_state_together(self) -> None:
        rng = np.random.default_rng(0)
        frames = rng.integers(0, 256, (4, 6, 8, 3), dtype=np.uint8)
        actions = rng.uniform(-1, 1, (4, 2, 3)).astype(np.float32)
        state = rng.uniform(-1, 1, (4, 2)).astype(np.float32)
        always = Augmentation(mirror=1.0, state_sign=(1.0, -1.0))
        images, text, flipped, other = always({"front": frames}, "pass on the left", actions, NAV3, rng, state)
        assert text == "pass on the right"
        np.testing.assert_array_equal(images["front"], frames[:, :, ::-1])
        np.testing.assert_array_equal(flipped, actions * [1, -1, -1])
        np.testing.assert_array_equal(other, state * [1, -1])
        again, text, twice, same = always(images, text, flipped, NAV3, rng, other)
        np.testing.assert_array_equal(again["front"], frames)
        np.testing.assert_array_equal(twice, actions)
        np.testing.assert_array_equal(same, state)
        assert text == "pass on the left"

    @pytest.mark.parametrize(
        ("text", "mirrored"),
        [
            ("Go left, then Right.", "Go right, then Left."),
            ("LEFT of the leftover box", "RIGHT of the leftover box"),
            ("the left-hand side, rightmost lane", "the right-hand side, leftmost lane"),
            ("장애물의 왼쪽으로, 우측 말고", "장애물의 오른쪽으로, 좌측 말고"),
            ("straight on", "straight on"),
            ("stop right in front of the left box", None),
            ("drive right up to the cup", None),
            ("pass the only box left", None),
            ("pass it on the right before the cup", "pass it on the left before the cup"),
        ],
    )
    def test_words(self, text: str, mirrored: str | None) -> None:
        assert mirror_text(text) == mirrored

    def test_what_cannot_be_mirrored_safely_stays_as_it_is(self) -> None:
        frames = np.arange(24, dtype=np.uint8).reshape(1, 2, 4, 3)
        images, text, _, state = Augmentation(mirror=1.0, state_sign=(-1.0,))(
            {"front": frames}, "stop right before it", np.zeros((1, 1, 3)), NAV3, np.random.default_rng(0), np.ones((1, 1))
        )
        np.testing.assert_array_equal(images["front"], frames)
        assert text == "stop right before it"
        assert state == 1


def test_dropping_words_keeps_sides_and_negations() -> None:
    text = "Please do not pass on the left , 오른쪽으로 가"
    assert drop_words(text, 1.0, np.random.default_rng(0)) == "not left 오른쪽으로"
    assert drop_words(text, 0.0, np.random.default_rng(0)) == text
    assert drop_words("go there", 1.0, np.random.default_rng(0)) == "go"


def test_one_shift_for_the_whole_window_and_no_bias() -> None:
    frames = np.zeros((3, 21, 21, 3), np.uint8)
    frames[:, 10, 10] = 255
    places = []
    for seed in range(400):
        shifted = shift_frames(frames, 0.2, np.random.default_rng(seed))
        where = [tuple(np.argwhere(frame[..., 0])[0]) for frame in shifted]
        assert len(set(where)) == 1
        places.append(where[0])
    assert set(np.array(places).min(0)) == {6}
    assert set(np.array(places).max(0)) == {14}
    np.testing.assert_allclose(np.mean(places, axis=0), 10, atol=0.5)


def test_colour_changes_alike_in_every_frame() -> None:
    frames = np.broadcast_to(np.random.default_rng(0).integers(0, 256, (1, 5, 5, 3), dtype=np.uint8), (4, 5, 5, 3))
    out = jitter_color(frames, 0.3, np.random.default_rng(1))
    assert (out != frames).any()
    np.testing.assert_array_equal(out, np.broadcast_to(out[:1], out.shape))
    np.testing.assert_array_equal(jitter_color(frames, 0.0, np.random.default_rng(1)), frames)


def test_one_prompt_function() -> None:
    assert make_prompt("  go \n there ", "Task: {instruction}!") == "Task: go there!"
    with pytest.raises(ConfigError, match="does not contain"):
        make_prompt("go", "Task")


def test_the_prompt_never_depends_on_the_actions(make_episodes, tiny_overrides, tmp_path: Path) -> None:
    from tests.conftest import write_episode

    folder = make_episodes(6, 6, 6)
    config = load_config("nav-tiny", [*tiny_overrides, f"data.source.path={folder}", "data.validation=0"])
    before = {sample["prompt"] for sample in (prepare_data(config).train[Item(0, i)] for i in range(9))}
    for i, side in enumerate(("left", "right", "left")):
        write_episode(
            folder / f"episode_{i:03d}_1box_hori_{side}.h5",
            6,
            seed=i,
            instruction=f"Pass the box on the {side} and stop at the ball.",
            actions=np.random.default_rng(50 + i).uniform(-1, 1, (6, 3)),
        )
    after = {sample["prompt"] for sample in (prepare_data(config).train[Item(0, i)] for i in range(9))}
    assert before == after


def test_transforms_survive_saving_to_the_bit(data) -> None:
    again = Transforms.from_json(data.transforms.to_json())
    assert again.to_json() == data.transforms.to_json()
    actions = np.random.default_rng(0).uniform(-1, 1, (5, 2))
    np.testing.assert_array_equal(again.normalizer.normalize(actions), data.transforms.normalizer.normalize(actions))


def test_a_missing_camera_or_a_wrong_image_is_named(data) -> None:
    with pytest.raises(DataError, match=r"lacks the camera 'front'; it has: rear"):
        data.transforms.images({"rear": np.zeros((4, 4, 3), np.uint8)})
    with pytest.raises(DataError, match=r"camera 'front': expected \(H, W, 3\) uint8"):
        data.transforms.images({"front": np.zeros((4, 4, 3), np.float32)})
