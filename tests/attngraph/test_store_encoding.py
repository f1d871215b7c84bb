"""Rounding, types, ranges and order of what is written."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from attngraph.errors import StoreError
from attngraph.store import TABLES, round_mantissa
from attngraph.store.encoding import encode_table, lexicographic_order

FLOATS = arrays(np.float32, st.integers(0, 40), elements=st.floats(width=32))
EDGE = {
    "layer": 0,
    "head": [0, 0],
    "query_block": [1, 1],
    "key_block": [0, 1],
    "mass": [0.25, 0.75],
    "contribution": 1,
}


@given(FLOATS)
def test_rounding_keeps_the_relative_error_below_2_to_the_minus_13(values):
    rounded = round_mantissa(values)
    assert rounded.dtype == np.float32
    normal = np.isfinite(values) & (np.abs(values) >= np.finfo(np.float32).tiny)
    exact = values[normal].astype(np.float64)
    assert np.all(np.abs(rounded[normal] - exact) <= np.abs(exact) * 2.0**-13)
    subnormal = np.abs(values) < np.finfo(np.float32).tiny
    assert np.all(np.abs(rounded[subnormal].astype(np.float64) - values[subnormal]) <= 2.0**-139)


@given(FLOATS)
def test_rounding_clears_the_last_11_bits_and_keeps_what_has_none(values):
    rounded = round_mantissa(values)
    finite = np.isfinite(values)
    assert not np.any(rounded[finite].view(np.uint32) & 0x7FF)
    assert np.array_equal(rounded[~finite].view(np.uint32), values[~finite].view(np.uint32))
    assert np.array_equal(np.signbit(rounded), np.signbit(values))
    assert np.array_equal(round_mantissa(rounded).view(np.uint32), rounded.view(np.uint32))


def test_rounding_by_hand():
    ulp = 2.0**-12
    values = np.array([1 + 0.5 * ulp, 1 + 1.5 * ulp, 1 + 0.51 * ulp, 2 - 0.4 * ulp, 0.0, -0.0, np.inf, -np.inf])
    expected = np.array([1.0, 1 + 2 * ulp, 1 + ulp, 2.0, 0.0, -0.0, np.inf, -np.inf], dtype=np.float32)
    assert np.array_equal(round_mantissa(values).view(np.uint32), expected.view(np.uint32))
    greatest = np.finfo(np.float32).max
    assert round_mantissa([greatest, -greatest]).tolist() == [(2 - ulp) * 2.0**127, -(2 - ulp) * 2.0**127]
    assert round_mantissa(np.zeros((2, 0))).shape == (2, 0)


def test_rows_are_sorted_by_layer_query_head_key():
    encoded = encode_table(
        TABLES["edges"],
        {
            "layer": 3,
            "head": np.array([1, 0, 0, 1]),
            "query_block": np.array([1, 1, 0, 0]),
            "key_block": np.array([0, 1, 0, 0]),
            "mass": np.array([0.5, 0.25, 0.125, 1.0]),
            "contribution": [1, 2, 3, 4],
        },
    )
    assert encoded["query_block"].to_pylist() == [0, 0, 1, 1]
    assert encoded["head"].to_pylist() == [0, 1, 0, 1]
    assert encoded["mass"].to_pylist() == [0.125, 1.0, 0.25, 0.5]
    assert encoded["layer"].to_pylist() == [3, 3, 3, 3]
    assert encoded.schema.equals(TABLES["edges"].arrow_schema(), check_metadata=True)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=12))
def test_lexicographic_order_agrees_with_python(rows):
    keys = [np.array([row[position] for row in rows], dtype=np.uint64) for position in (0, 1)]
    in_order, repeated = lexicographic_order(keys)
    assert in_order == (rows == sorted(rows))
    if in_order:
        assert repeated == (len(set(rows)) < len(rows))


def test_nulls_come_last_and_only_where_allowed():
    columns = {"layer": 0, "residual": 0.5, "attention": 0.5, "mlp": 0.1}
    shares = encode_table(TABLES["shares"], {**columns, "block": [None, 1, 0], "position": [9, None, None]})
    assert shares["block"].to_pylist() == [0, 1, None]
    assert shares["position"].to_pylist() == [None, None, 9]
    masked = np.ma.MaskedArray([7, 1, 0], mask=[True, False, False])
    again = encode_table(TABLES["shares"], {**columns, "block": masked, "position": [9, None, None]})
    assert again.equals(shares)
    with pytest.raises(StoreError, match=r"edges\.head has 1 nulls; it must have a value"):
        encode_table(TABLES["edges"], {**EDGE, "head": [0, None]})


def test_nullable_columns_may_be_left_out():
    rows = encode_table(TABLES["rows"], {"layer": 0, "head": [0], "query_block": [0], "kept": [1]})
    assert rows["kept_mass"].to_pylist() == [None]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head": np.array([0, 65_536])}, r"edges\.head holds uint16, 0 to 65535; it was given 0 to 65536"),
        (
            {"key_block": np.array([-1, 0])},
            r"edges\.key_block holds uint32, 0 to 4294967295; it was given -1 to 0",
        ),
        ({"query_block": np.array([2**32, 0])}, r"query_block holds uint32"),
        ({"query_block": np.array([1.0, 1.0])}, r"edges\.query_block holds whole numbers, not float64"),
        ({"mass": [0.5, np.nan]}, r"edges\.mass has 1 values that are not finite .* nan in row 1"),
        (
            {"contribution": np.array([1e39, 0])},
            r"edges\.contribution has 1 values that are not finite .* 1e\+39",
        ),
        ({"mass": [[0.5], [0.5]]}, r"edges\.mass needs one number per row"),
        ({"mass": ["a", "b"]}, r"edges\.mass needs one number per row"),
        ({"mass": [0.5]}, r"edges: the columns have different numbers of rows: .*'mass': 1"),
        (
            {"weight": [0, 0]},
            r"edges: unknown columns \['weight'\], missing columns \[\]; it has layer, head",
        ),
    ],
)
def test_bad_columns_are_refused_by_name(change, message):
    with pytest.raises(StoreError, match=message):
        encode_table(TABLES["edges"], {**EDGE, **change})


def test_missing_columns_and_wrong_text_are_refused():
    with pytest.raises(StoreError, match=r"missing columns \['mass'\]"):
        encode_table(TABLES["edges"], {name: values for name, values in EDGE.items() if name != "mass"})
    with pytest.raises(StoreError, match=r"spans\.name holds string"):
        encode_table(TABLES["spans"], {"span": [0], "name": [3], "token_start": [0], "token_end": [1]})
