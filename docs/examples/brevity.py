"""A reward of one's own: at most so many words."""


def brevity(completions: list[str], words: int = 20, **columns: object) -> list[float]:
    """1 up to `words`, then falling."""
    return [min(1.0, words / max(1, len(completion.split()))) for completion in completions]
