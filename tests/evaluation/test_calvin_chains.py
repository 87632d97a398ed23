from __future__ import annotations

import hashlib
import json
from importlib import resources
from itertools import islice

import numpy as np
import pytest

from anyvla.errors import ConfigError
from anyvla.evaluation.calvin.chains import (
    CHAINS,
    TASKS,
    draws,
    evaluation_chains,
    fnv1_32,
    initial_observations,
    initial_states,
    states_after,
)

# of the list and the observations that the original code (and its hash package) gives, checked beside this one
CHAINS_MD5 = "dd9695b40bec35035451a1e3610bca51"
OBSERVATIONS_SHA256 = "0789732599c9f93d6506018704c1717b42d9ce8921a430403964813f3c1ebd71"


def test_the_chains_are_the_published_ones() -> None:
    listed = [[chain.state, list(chain.tasks)] for chain in evaluation_chains()]
    assert hashlib.md5(json.dumps(listed, indent=4).encode()).hexdigest() == CHAINS_MD5
    assert [chain.index for chain in evaluation_chains()] == list(range(CHAINS))


def test_the_initial_observations_are_the_published_ones() -> None:
    digest = hashlib.sha256()
    for chain in evaluation_chains():
        for observation in initial_observations(chain.state):
            digest.update(observation.astype("<f8").tobytes())
    assert digest.hexdigest() == OBSERVATIONS_SHA256
    assert fnv1_32("abc") == 2203671488  # as pyhash gives it


def _stored() -> list[list[str]]:
    lines = resources.files("anyvla.evaluation.calvin").joinpath("chains.txt").read_text().split("\n")
    return [line.split() for line in lines]


def test_the_stored_draws_are_what_the_generator_draws() -> None:
    assert len(_stored()) == len(initial_states()) == 192
    for i in (0, 77, 191):
        assert next(draws(i)) == _stored()[i][0]


@pytest.mark.slow
def test_all_stored_draws_are_what_the_generator_draws() -> None:
    for i, words in enumerate(_stored()):
        assert list(islice(draws(i), len(words))) == words
        assert len(words) == len(np.array_split(np.arange(CHAINS), 192)[i])


def test_every_chain_can_be_done_in_one_way() -> None:
    for chain in evaluation_chains():
        assert chain.state in initial_states()
        state = chain.state
        for task in chain.tasks:
            (state,) = states_after(state, task)
    assert {task for chain in evaluation_chains() for task in chain.tasks} <= set(TASKS)
    assert len(set(TASKS)) == 34


def test_fewer_chains_are_the_first_ones_and_another_seed_orders_them_anew() -> None:
    published = evaluation_chains()
    assert evaluation_chains(20) == published[:20]
    other = evaluation_chains(seed=5)
    assert [chain.world for chain in other] != [chain.world for chain in published]
    assert {chain.world for chain in other} == {chain.world for chain in published}
    assert len({chain.world for chain in published}) == CHAINS
    for count in (0, 1001):
        with pytest.raises(ConfigError, match="1000 chains"):
            evaluation_chains(count)


def test_blocks_start_where_the_state_says() -> None:
    for chain in evaluation_chains(100):
        robot_obs, scene_obs = initial_observations(chain.state)
        assert robot_obs.shape == (15,)
        assert scene_obs.shape == (24,)
        places = {}
        for color, start in {"red": 6, "blue": 12, "pink": 18}.items():
            x, y = scene_obs[start : start + 2]
            places[color] = (x, y)
            assert ("table" if y < 0 else "slider_left" if x < 0 else "slider_right") == chain.state[f"{color}_block"]
        assert len(set(places.values())) == 3
        assert np.all(scene_obs[[4, 5]] == [chain.state["lightbulb"], chain.state["led"]])
