"""Verifiable rewards: the contract of a reward function and its isolated execution."""

from tokencredit.rewards.batch import Failure, RewardBatch
from tokencredit.rewards.contract import Reward, ValueSpan
from tokencredit.rewards.functions import RewardFunction
from tokencredit.rewards.pool import RewardPool

__all__ = ["Failure", "Reward", "RewardBatch", "RewardFunction", "RewardPool", "ValueSpan"]
