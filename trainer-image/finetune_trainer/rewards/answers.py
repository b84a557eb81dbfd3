r"""Finds the final answer in a solution of a problem, and compares two of them.

Where answers stand follows the data sets of mathematics: \boxed{} (MATH), #### (GSM8K), and words.
"""

import re
from fractions import Fraction

_THOUGHT = "</think>"
_WORDS = re.compile(r"answer\s*(?:is|:|=)\s*:?\s*(.+)", re.IGNORECASE)
# Commas stand between thousands only: 1,2 is two numbers. After a digit or a name - is no sign.
_NUMBER = re.compile(
    r"(?:(?<![\w)])-)?"
    r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:\s*/\s*\d+)?|\.\d+)"
)
# What follows is a unit or the rest of the sentence, not the rest of a formula.
_LEADING = re.compile(
    rf"[\s$*]*(?:\w\s*=\s*)?({_NUMBER.pattern})(?=\s*(?:[a-z.;!?%*$]|,(?!\d)|$))", re.IGNORECASE
)
_FRACTION = re.compile(r"\\[dt]?frac\{([^{}]+)\}\{([^{}]+)\}")
_WRAPPED = re.compile(r"\\(?:text|mathrm|mathbf)\{([^{}]*)\}")
_LAYOUT = re.compile(r"\\(?:left|right|[,;! ])|[$\s*]")


def final_answer(text: str, *, is_reference: bool = False) -> str:
    r"""Return the answer that a text ends with, after any reasoning in think tags.

    It is in the last \boxed{}; else after the last ####; else after the last "answer is" or
    "answer:", up to the end of the line; else it is the last number, of a reference the whole text.
    """
    text = text.rpartition(_THOUGHT)[2].strip()
    boxed = _boxed(text)
    if boxed is not None:
        return boxed
    if "####" in text:
        return text.rpartition("####")[2].strip()
    said: list[str] = _WORDS.findall(text)
    if said:
        leading = _LEADING.match(said[-1])
        return leading[1] if leading else said[-1]
    numbers = [] if is_reference else _NUMBER.findall(text)
    return numbers[-1] if numbers else text


def same_answer(given: str, expected: str) -> bool:
    """Tell whether two answers are the same number, or the same text but for case and layout."""
    given, expected = _plain(given), _plain(expected)
    number = _value(expected)
    return given == expected or (number is not None and number == _value(given))


def _boxed(text: str) -> str | None:
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 1, start + len("\\boxed{")
    for place in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[begin:place]
    return None


def _plain(answer: str) -> str:
    r"""Return an answer without what is only layout: spaces, $, \left, bold, a final dot."""
    answer = _FRACTION.sub(r"\1/\2", _WRAPPED.sub(r"\1", answer))
    answer = _LAYOUT.sub("", answer).rstrip(".").casefold()
    inner = answer[1:-1]
    is_wrapped = answer.startswith("(") and answer.endswith(")") and inner.isalnum()
    return inner if is_wrapped else answer


def _value(text: str) -> Fraction | None:
    """Return the number that a text is. Only plain ones: 1e999999999 would take all memory."""
    text = text.removesuffix("%").removesuffix("\\")
    try:
        return Fraction(text.replace(",", "")) if _NUMBER.fullmatch(text) else None
    except (ValueError, ZeroDivisionError):
        return None
