from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from anyvla.config.objectives import ConversationsConfig
from anyvla.data.conversations import ConversationDataset, load_conversations
from anyvla.data.sampler import Item, WindowSampler
from anyvla.errors import DataError
from tests.conftest import write_conversations

SIZE = (16, 24)


def _turns(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def _load(path: Path, entries: Any, on_bad: str = "error", **settings: Any) -> ConversationDataset:
    path.write_text(json.dumps(entries) if not isinstance(entries, str) else entries)
    return load_conversations(ConversationsConfig(path=path, **settings), SIZE, "stretch", on_bad)[0]


@pytest.fixture
def image(tmp_path: Path) -> str:
    (tmp_path / "some").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "some" / "a.png")
    return "some/a.png"


@pytest.fixture
def dataset(tmp_path: Path) -> ConversationDataset:
    path = write_conversations(tmp_path / "talk")
    return load_conversations(ConversationsConfig(path=path), SIZE)[0]


def test_every_answer_is_a_sample_with_what_was_said_before_it(tmp_path: Path, image: str) -> None:
    dataset = _load(
        tmp_path / "a.json",
        [
            {"id": 7, "image": image, "conversations": _turns("<image>\nWhat is it?", "A box.", "Where?", "On the left.")},
            {"conversations": _turns("2 + 2?", " 4 ")},
        ],
    )
    samples = [dataset[Item(0, i)] for i in range(len(dataset))]
    assert [(sample["prompt"], sample["answer"]) for sample in samples] == [
        ("What is it?", "A box."),
        ("What is it?\nA box.\nWhere?", "On the left."),
        ("2 + 2?", "4"),
    ]
    assert [sample["name"] for sample in samples] == ["a.json[0] (id 7)"] * 2 + ["a.json[1]"]
    pixels = np.asarray(Image.open(tmp_path / image))
    assert (samples[1]["image"] == pixels).all()
    batch = dataset.collate(samples)
    assert batch.present.tolist() == [True, True, False]
    assert batch.images.shape == (3, 3, *SIZE)
    assert batch.images.dtype == torch.uint8
    assert batch.images[2].max() == 0


def test_images_are_brought_to_the_models_size(tmp_path: Path) -> None:
    Image.fromarray(np.full((40, 40), 200, np.uint8)).save(tmp_path / "grey.png")  # not even RGB
    (tmp_path / "a.json").write_text(json.dumps([{"image": "grey.png", "conversations": _turns("<image>?", "Grey.")}]))
    config = ConversationsConfig(path=tmp_path / "a.json")
    stretched, padded = (load_conversations(config, SIZE, fit)[0][Item(0, 0)]["image"] for fit in ("stretch", "pad"))
    assert stretched.shape == padded.shape == (*SIZE, 3)
    assert stretched.min() == 200
    assert padded.min() == 0


def test_the_folder_of_the_images_may_be_elsewhere(tmp_path: Path, image: str) -> None:
    entry = {"image": "a.png", "conversations": _turns("<image>?", "Noise.")}
    assert len(_load(tmp_path / "a.json", [entry], images=tmp_path / "some")) == 1


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ([], r"a\.json\[0\]: expected an object with a list 'conversations'"),
        ({"id": "x9"}, r"a\.json\[0\] \(id x9\): expected an object with a list"),
        ({"conversations": []}, "0 turns; expected questions"),
        ({"conversations": _turns("What?")}, "1 turns; expected questions"),
        ({"conversations": _turns("What?", "A.", "And?")}, "3 turns"),
        ({"conversations": _turns("What?", "A.")[::-1]}, "turn 0 is from 'gpt', expected 'human'"),
        ({"conversations": [{"from": "user", "value": "?"}, {"from": "gpt", "value": "!"}]}, "turn 0 is from 'user'"),
        ({"conversations": [{"from": "human"}, {"from": "gpt", "value": "!"}]}, "turn 0: expected an object with 'from'"),
        ({"conversations": ["What?", "A."]}, "turn 0: expected an object"),
        ({"conversations": _turns("What?", "  ")}, "turn 1 says nothing"),
        ({"conversations": _turns("<image>", "A box."), "image": "some/a.png"}, "turn 0 says nothing"),
        ({"conversations": _turns("<image>?", "A box.")}, "1 <image> in the text; it may stand once"),
        ({"conversations": _turns("<image> <image>?", "A box."), "image": "some/a.png"}, "2 <image> in the text"),
        ({"conversations": _turns("What?", "A <image>."), "image": "some/a.png"}, "1 <image> in the text"),
        ({"conversations": _turns("What?", "A."), "image": ["some/a.png"]}, r"'image' is \['some/a.png'\]; expected the path"),
        ({"conversations": _turns("What?", "A."), "image": "some/none.png"}, "none.png cannot be read"),
        ({"conversations": _turns("What?", "A."), "image": "a.json"}, "a.json is no image"),
        ({"conversations": _turns("What?", "A."), "image": "../a.png"}, r"'\.\./a\.png' leads out of the folder"),
        ({"conversations": _turns("What?", "A."), "image": "some/../../a.png"}, "leads out of the folder"),
        ({"conversations": _turns("What?", "A."), "image": "/etc/passwd"}, "'/etc/passwd' leads out of the folder"),
        ({"conversations": _turns("What?" * 30, "A.")}, "have 152 characters, more than .*max_characters 100"),
    ],
)
def test_a_broken_entry_is_named_and_left_out_only_if_asked(tmp_path: Path, image: str, entry: Any, message: str) -> None:
    entries = [entry, {"conversations": _turns("Good?", "Yes.")}]
    with pytest.raises(DataError, match=message) as caught:
        _load(tmp_path / "a.json", entries, max_characters=100)
    assert "on_bad_episode=skip leaves such entries out" in str(caught.value)
    config = ConversationsConfig(path=tmp_path / "a.json", max_characters=100)
    dataset, problems = load_conversations(config, SIZE, on_bad="skip")
    assert [dataset[Item(0, i)]["answer"] for i in range(len(dataset))] == ["Yes."]
    assert [problem.episode.split(" ")[0] for problem in problems] == ["a.json[0]"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON file that can be read"),
        ("{}", "expected a list of conversations, found dict"),
        ("[]", "no conversation can be used"),
        ("[{}]", r"no conversation can be used; a\.json\[0\]"),
    ],
)
def test_a_file_without_conversations_is_an_error_even_if_bad_entries_are_left_out(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        _load(tmp_path / "a.json", text, on_bad="skip")
    with pytest.raises(DataError, match="is no JSON file that can be read"):
        load_conversations(ConversationsConfig(path=tmp_path / "none.json"), SIZE)


def test_an_image_that_breaks_off_is_named_when_it_is_read(tmp_path: Path, image: str) -> None:
    path = tmp_path / image
    dataset = _load(tmp_path / "a.json", [{"id": 3, "image": image, "conversations": _turns("<image>?", "Noise.")}])
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"a\.json\[0\] \(id 3\): the image .*a\.png cannot be decoded"):
        dataset[Item(0, 0)]


def test_what_is_too_long_loses_its_oldest_turns(tmp_path: Path) -> None:
    turns = _turns("aaaa", "bbbb", "cccc", "dddd", "eeee", "ffff")
    dataset = _load(tmp_path / "a.json", [{"conversations": turns}], max_characters=16)
    assert [dataset[Item(0, i)]["prompt"] for i in range(3)] == ["aaaa", "aaaa\nbbbb\ncccc", "cccc\ndddd\neeee"]


def test_batches_are_the_same_with_and_without_worker_processes_and_shared_by_ranks(dataset: ConversationDataset) -> None:
    def batches(workers: int, rank: int = 0, ranks: int = 1) -> list[Any]:
        sampler = WindowSampler(len(dataset), 4 // ranks, 3, rank, ranks)
        numbers = [sampler.batch(i) for i in range(5, 8)]
        return list(DataLoader(dataset, batch_sampler=numbers, collate_fn=dataset.collate, num_workers=workers))

    alone = batches(0)
    for a, b, first, second in zip(alone, batches(2), batches(0, 0, 2), batches(0, 1, 2), strict=True):
        assert torch.equal(a.images, b.images)
        assert (a.prompts, a.answers, a.names) == (b.prompts, b.answers, b.names)
        assert a.answers == first.answers + second.answers
        assert torch.equal(a.present, torch.cat([first.present, second.present]))


def test_the_fingerprint_is_that_of_the_contents(tmp_path: Path) -> None:
    one = load_conversations(ConversationsConfig(path=write_conversations(tmp_path / "a")), SIZE)[0]
    moved = load_conversations(ConversationsConfig(path=write_conversations(tmp_path / "b")), SIZE)[0]
    other = load_conversations(ConversationsConfig(path=write_conversations(tmp_path / "c", seed=1)), SIZE)[0]
    assert one.fingerprint() == moved.fingerprint() != other.fingerprint()
