"""verl's and OpenRLHF's own loaders take a reward file of a few lines, and score with it as their trainers do."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")

ASK = "What do tomatoes need?"
FILE = """
from guardkit.rewards import SafetyReward
from guardkit.rewards.adapters import for_openrlhf, for_verl
from guardkit.testing import FakeGuard

reward = SafetyReward(FakeGuard({"forbidden": "unsafe"}))
compute_score, reward_func = for_verl(reward), for_openrlhf(reward)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my_reward.py"
    path.write_text(FILE, encoding="utf-8")
    return path


def test_verl(file: Path) -> None:
    pytest.importorskip("verl", reason="verl is not installed")
    import numpy as np
    import torch
    from omegaconf import OmegaConf
    from verl import DataProto
    from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager
    from verl.trainer.ppo.reward import get_custom_reward_fn

    custom = {"path": str(file), "name": "compute_score", "reward_kwargs": {}}
    config = OmegaConf.create({"reward": {"custom_reward_function": custom}})
    score = get_custom_reward_fn(config)
    texts = {1: "Sun and water.", 2: "A forbidden thing."}
    tokenizer = SimpleNamespace(decode=lambda ids, **_: texts[int(ids[0])])
    manager = NaiveRewardManager(config, tokenizer, score)

    async def scored(token: int) -> dict[str, Any]:
        manager.loop = asyncio.get_running_loop()
        others = {"data_source": "d", "reward_model": {"ground_truth": ""}, "extra_info": {"prompt": ASK}}
        data = DataProto.from_dict(
            tensors={"responses": torch.tensor([[token]]), "attention_mask": torch.tensor([[1, 1]])},
            non_tensors={name: np.array([value], dtype=object) for name, value in others.items()},
        )
        return await manager.run_single(data)

    safe, unsafe = asyncio.run(scored(1)), asyncio.run(scored(2))
    assert (safe["reward_score"], unsafe["reward_score"]) == (1.0, 0.0)
    assert unsafe["reward_extra_info"]["severity"] == "unsafe"


def test_openrlhf(file: Path) -> None:
    pytest.importorskip("openrlhf", reason="OpenRLHF is not installed")
    from openrlhf.utils.agent import SingleTurnAgentExecutor

    executor = SingleTurnAgentExecutor(str(file))
    queries = [ASK + " Sun and water.</s>", ASK + " A forbidden thing.</s>"]
    found = asyncio.run(executor._fetch_rewards_via_func(queries, [ASK, ASK], ["", ""]))
    assert [one["rewards"] for one in found] == [[1.0], [0.0]]
    assert found[1]["extra_logs"]["guard/unsafe"] == 1.0
