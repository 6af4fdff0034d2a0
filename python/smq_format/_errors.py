"""The exceptions of this package."""

from __future__ import annotations

from typing import Sequence

# How many names a message lists; the exception's attributes have all.
_LISTED = 8


class SmqError(Exception):
    """Something is wrong with a .smq file, or with what was asked of it."""


class DamagedError(SmqError):
    """The bytes of a file are not what its writer wrote, or are no .smq file at all.

    Attributes:
        path: the file.
        defects: what is wrong, a sentence each, in the order of the file. A defect of a tensor
            names it.
    """

    def __init__(self, path: str, defects: Sequence[str]) -> None:
        super().__init__(path, defects)
        self.path = path
        self.defects = tuple(defects)

    def __str__(self) -> str:
        more = len(self.defects) - 1
        rest = f" (and {more} more, in .defects)" if more else ""
        return f"{self.path}: {self.defects[0]}{rest}"


class UnknownTensorError(SmqError, KeyError):
    """No tensor of the file has this name."""

    # KeyError would put the sentence into quotation marks.
    __str__ = Exception.__str__


class LoadError(SmqError):
    """A model's parameters are not the file's tensors; nothing was loaded.

    Attributes:
        path: the file.
        missing_keys: parameters of the model that the file does not hold.
        unexpected_keys: tensors of the file that the model does not have.
        unfit: why tensors do not fit the parameter of their name, a sentence each.
    """

    def __init__(
        self,
        path: str,
        missing_keys: Sequence[str],
        unexpected_keys: Sequence[str],
        unfit: Sequence[str],
    ) -> None:
        super().__init__(path, missing_keys, unexpected_keys, unfit)
        self.path = path
        self.missing_keys = tuple(missing_keys)
        self.unexpected_keys = tuple(unexpected_keys)
        self.unfit = tuple(unfit)

    def __str__(self) -> str:
        problems = [_listed(self.unfit)] if self.unfit else []
        if self.missing_keys:
            names = _listed([repr(name) for name in self.missing_keys])
            problems.append(f"the model has {names}, which the file does not hold")
        if self.unexpected_keys:
            names = _listed([repr(name) for name in self.unexpected_keys])
            problems.append(f"the file holds {names}, which the model does not have")
        remedy = "; strict=False loads the rest" if not self.unfit else ""
        return f"{self.path} does not fit this model: {'; '.join(problems)}{remedy}"


def _listed(items: Sequence[str]) -> str:
    more = len(items) - _LISTED
    shown = ", ".join(items[:_LISTED])
    return f"{shown} and {more} more" if more > 0 else shown
