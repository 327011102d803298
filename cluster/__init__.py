"""Recipes to processes: checks before anything starts, launch on one machine, the worker each process runs."""
