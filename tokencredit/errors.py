"""The one exception for wrong input: it names where the value stands, the value, and what to do."""


class InputError(ValueError):
    """Something the user gave cannot be used.

    Args:
        where: The field, file or option that holds the value, e.g. `"learning_rate"` or `"pairs.jsonl line 3"`.
        problem: What is wrong, with the value in it.
        remedy: What to do instead.

    The message is one line, `where: problem; remedy`, and the command line ends with exit code 2.
    """

    def __init__(self, where: str, problem: str = "", remedy: str = "") -> None:
        self.where, self.problem, self.remedy = where, problem, remedy
        # Data loading processes hand an exception on as its text, which then stands alone.
        text = f"{where}: {problem}; {remedy}" if problem else where
        super().__init__(plain(" ".join(text.split())))

    def __reduce__(self) -> tuple[type["InputError"], tuple[str, str, str]]:
        return InputError, (self.where, self.problem, self.remedy)


def plain(text: str) -> str:
    """Text in which nothing is invisible and nothing steers a terminal, as in `\\x1b`; lines and tabs stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)
