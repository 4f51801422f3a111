"""Text tables."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from skt_components.evaluation import format_table


def test_the_layout_of_a_table():
    table = format_table({"ORM": {"PSNR-mu": 40.1234, "SSIM": 0.9}, "teacher": {"SSIM": 0.98765, "LPIPS": 12.0}})
    assert table.splitlines() == [
        "         PSNR-mu   SSIM   LPIPS",
        "ORM       40.123  0.900       -",
        "teacher        -  0.988  12.000",
    ]


def test_digits_and_numbers_that_are_none():
    assert format_table({"a": {"x": 1.26}}, digits=1).splitlines()[1] == "a  1.3"
    assert format_table({"a": {"x": math.nan, "y": math.inf}}).splitlines()[1].split() == ["a", "nan", "inf"]
    assert format_table({}) == ""
    assert format_table({"a": {}}).splitlines()[1] == "a"


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(
        st.text("abcdef", min_size=1, max_size=9),
        st.dictionaries(st.sampled_from(["PSNR-mu", "SSIM", "x"]), st.floats(-1e6, 1e6), max_size=3),
        min_size=1,
        max_size=4,
    )
)
def test_columns_line_up_and_every_number_is_there(rows):
    lines = format_table(rows).splitlines()
    columns = list(dict.fromkeys(c for row in rows.values() for c in row))
    assert len(lines) == len(rows) + 1
    for line, (title, row) in zip(lines[1:], rows.items(), strict=True):
        assert line.split() == [title, *(f"{row[c]:.3f}" if c in row else "-" for c in columns)]
        assert len(line) == len(lines[0]) or not columns
