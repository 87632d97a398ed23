from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks.rlds_writer import write_dataset

from anyvla.data.sources.tfds import DatasetFolder, Shard, Slice, find_version, parse_split, read_folder
from anyvla.errors import ConfigError, DataError


def _folder(**lengths: list[int]) -> DatasetFolder:
    splits = {}
    for name, shards in lengths.items():
        first = [sum(shards[:i]) for i in range(len(shards))]
        splits[name] = [Shard(Path(f"{name}-{i}"), name, first[i], n) for i, n in enumerate(shards)]
    return DatasetFolder(Path("data"), "data", {}, splits)


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", [("train", 0, 25)]),
        ("train[:95%]", [("train", 0, 24)]),  # 23.75 is nearer to 24
        ("train[95%:]", [("train", 24, 25)]),
        ("train[50%:]", [("train", 12, 25)]),  # 12.5 to the even one, as round does
        ("train[10:20]", [("train", 10, 20)]),
        ("train[-5:]", [("train", 20, 25)]),
        ("train[-20%:-4%]", [("train", 20, 24)]),
        ("train[:4]+val", [("train", 0, 4), ("val", 0, 200)]),
        ("train + val[100:]", [("train", 0, 25), ("val", 100, 200)]),
        ("val[:1%](pct1_dropremainder)", [("val", 0, 2)]),
        ("all", [("train", 0, 25), ("val", 0, 200)]),
    ],
)
def test_split_strings(split: str, expected: list[tuple[str, int, int]]) -> None:
    assert parse_split(split, _folder(train=[20, 5], val=[200])) == [Slice(*part) for part in expected]


@pytest.mark.parametrize("percent", [0, 3, 33, 50, 95, 100])
def test_two_parts_of_a_split_are_the_whole(percent: int) -> None:
    folder = _folder(train=[33, 14])
    cut = [p for text in (f"train[:{percent}%]", f"train[{percent}%:]") for p in _safe(text, folder)]
    assert [i for p in cut for i in range(p.start, p.stop)] == list(range(47))


def _safe(text: str, folder: DatasetFolder) -> list[Slice]:
    if text in ("train[:0%]", "train[100%:]"):
        with pytest.raises(ConfigError, match="holds no episode"):
            parse_split(text, folder)
        return []
    return parse_split(text, folder)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("trian", "no split 'trian'; did you mean 'train'"),
        ("train[5]", "not of the form"),
        ("train[:5", "not of the form"),
        ("train[a:b]", "'a' is neither a number"),
        ("train[:150%]", "150% is more than there is"),
        ("train[:26]", "26 is beyond its 25 episodes"),
        ("train[10:5]", "holds no episode"),
        ("train+train[3:4]", "names episodes that another part names too"),
        ("train[:50%](up)", "no rounding 'up'"),
        ("", "not of the form"),
    ],
)
def test_a_wrong_split_is_answered(split: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_split(split, _folder(train=[25]))
    assert message in str(caught.value)


def test_the_newest_version_is_taken(tmp_path: Path) -> None:
    for version in ("1.9.0", "1.10.0", "0.1.0"):
        write_dataset(tmp_path / "mine" / version, "mine", {"steps/a": ("text",)}, {"train": [[]]})
    assert find_version(tmp_path / "mine") == tmp_path / "mine" / "1.10.0"
    assert find_version(tmp_path / "mine" / "0.1.0") == tmp_path / "mine" / "0.1.0"
    assert find_version(tmp_path) is None
    assert find_version(tmp_path, "mine") == tmp_path / "mine" / "1.10.0"


def test_shards_have_their_names_and_lengths_as_text_or_number(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "1.0.0", "mine", {"steps/a": ("text",)}, {"train": [[b"a", b"b"], [b"c"]]})
    shards = read_folder(folder).splits["train"]
    assert [shard.path.name for shard in shards] == [f"mine-train.tfrecord-0000{i}-of-00002" for i in (0, 1)]
    assert [(shard.first, shard.length) for shard in shards] == [(0, 2), (2, 1)]
    assert all(shard.path.is_file() for shard in shards)
    _edit(folder, lambda info: info["splits"][0].update(shardLengths=[2, 1], filepathTemplate=None))
    assert read_folder(folder).splits["train"] == shards


def _edit(folder: Path, change) -> None:
    path = folder / "dataset_info.json"
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda info: info["splits"][0].update(filepathTemplate="../{SPLIT}"), "out of the dataset's folder"),
        (lambda info: info["splits"][0].update(filepathTemplate="/etc/passwd"), "out of the dataset's folder"),
        (lambda info: info["splits"][0].update(filepathTemplate="{WHAT}"), "out of the dataset's folder"),
        (lambda info: info["splits"][0].update(shardLengths=["-3"]), "'-3' is no number of episodes"),
        (lambda info: info["splits"][0].update(shardLengths="3"), "a list is expected"),
        (lambda info: info["splits"][0].update(name="a/../../b"), "is no name of a split"),
        (lambda info: info.update(name="../x"), "is no name of a dataset"),
        (lambda info: info.update(splits=[]), "names no split"),
        (lambda info: info.update(fileFormat="array_record"), "'array_record' is not read"),
    ],
)
def test_a_forged_dataset_info_is_refused(tmp_path: Path, change, message: str) -> None:
    folder = write_dataset(tmp_path / "1.0.0", "mine", {"steps/a": ("text",)}, {"train": [[]]})
    _edit(folder, change)
    with pytest.raises(DataError, match=message):
        read_folder(folder)


def test_what_is_no_json_is_refused(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "1.0.0", "mine", {"steps/a": ("text",)}, {"train": [[]]})
    for content in (b"\xff", b"[1]", b'{"featuresDict": 3}', b'{"featuresDict": {"features": {"a": 1}}}', b"[" * 100_000):
        (folder / "features.json").write_bytes(content)
        with pytest.raises(DataError, match=r"features\.json"):
            read_folder(folder)
    (folder / "features.json").unlink()
    with pytest.raises(DataError, match="no such file"):
        read_folder(folder)
