"""Text and its tokens, without torch."""
