"""Verifiable rewards: the contract of a reward function and its isolated execution."""
