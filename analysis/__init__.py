"""What a model did, token by token: statistics and the views that show them."""
