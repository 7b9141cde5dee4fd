"""Errors in the user's words: what is wrong, where, and what to do about it."""


class UserError(ValueError):
    """Something the user can mend: printed without a stack trace, exit status 2.

    Args:
        problem: what is wrong, naming the file, line or setting.
        remedy: what to type or change; shown on a line of its own.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(f"{problem}\n  -> {remedy}" if remedy else problem)
        self.problem = problem
        self.remedy = remedy

    def __reduce__(self) -> tuple[type["UserError"], tuple[str, str]]:
        return type(self), (self.problem, self.remedy)
