"""What pydantic finds wrong with what a person wrote, in words for that person."""

from __future__ import annotations

import reprlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_BRIEF = reprlib.Repr()
_BRIEF.maxlevel = 2
_WORDS = {
    "greater_than": "write a number above {gt:g}",
    "greater_than_equal": "write a number that is at least {ge}",
    "less_than": "write a number below {lt:g}",
    "less_than_equal": "write a number that is at most {le:g}",
    "int_parsing": "write a whole number",
    "int_type": "write a whole number",
    "int_from_float": "write a whole number",
    "float_parsing": "write a number",
    "float_type": "write a number",
    "finite_number": "write a number",
    "bool_parsing": "write true or false",
    "bool_type": "write true or false",
    "string_type": "write a text",
    "path_type": "write the name of a file",
    "model_type": "write an object, {{...}}",
    "literal_error": "write {expected}",
}
"""How to mend what pydantic refuses, by its name for the fault; what it says is for programmers."""


def wanted(problem: ErrorDetails) -> str:
    """Say what to write instead.

    Examples
    --------
    >>> wanted({"type": "less_than", "loc": (), "msg": "", "input": 9, "ctx": {"lt": 5}})
    'write a number below 5'
    """
    if words := _WORDS.get(problem["type"]):
        return words.format(**problem.get("ctx", {}))
    return problem["msg"].removeprefix("Value error, ")


def got(problem: ErrorDetails) -> str:
    """Say what was written, in short."""
    return f"(got {_BRIEF.repr(problem['input'])})"
