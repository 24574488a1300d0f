"""The two kinds of error a person is meant to read: their input is wrong, or the run could not go on."""


class BadInput(ValueError):
    """The request, the dataset, a setting or a file is not usable. The message says what, where and what to do."""


class RunFailed(RuntimeError):
    """A run that was well asked for could not go on (disk full, loss not finite). What it made so far is kept."""


class BadImage(BadInput):
    """One image cannot be used. The message says what and why; who knows the row and the column adds them."""
