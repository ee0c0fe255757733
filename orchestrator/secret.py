"""The type of every issued secret, from the response it came in to the driver that uses it."""

from __future__ import annotations

from typing import Any, NoReturn


class Secret:
    """A string that refuses to be shown, pickled, formatted or turned into JSON.

    The value is only to be had through `reveal()`, so that every place where a secret becomes
    plain text can be found by searching for that one word.
    """

    __slots__ = ("__value",)

    def __init__(self, value: str) -> None:
        self.__value = value

    def reveal(self) -> str:
        """The plain value, for the driver or transport that needs it."""
        return self.__value

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return "***"

    def __len__(self) -> int:
        return len(self.__value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other.reveal() == self.__value

    def __hash__(self) -> int:
        return hash((Secret, self.__value))

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is never pickled or copied into another process")

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Secret:
        return self
