"""How long rows are together."""

from collections import Counter
from itertools import product
from statistics import mean

import pytest

from finetune_api.lengths import PADDED_TOGETHER, padded_tokens


@pytest.mark.parametrize("lengths", [[7], [3, 9], [1, 1, 5]])
def test_padding_is_the_mean_of_all_draws(lengths: list[int]) -> None:
    few = [n for n in PADDED_TOGETHER if n <= 8]
    draws = [mean(max(rows) for rows in product(lengths, repeat=n)) for n in few]
    assert padded_tokens(Counter(lengths))[: len(few)] == pytest.approx(draws, abs=0.05)
