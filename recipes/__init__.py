"""Recipes: YAML files that say what to train, on what and how; reading, checking and building them."""
