"""From arrays to the Arrow tables that are written: checked, sorted, mantissas rounded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from attngraph.errors import StoreError
from attngraph.store.schema import Column, Table

MANTISSA_BITS = 12
_NULL_LAST = np.uint64(np.iinfo(np.uint64).max)


def round_mantissa(values: npt.ArrayLike, bits: int = MANTISSA_BITS) -> npt.NDArray[np.float32]:
    """Round 32-bit floats to `bits` mantissa bits, to nearest, ties to even; they stay 32-bit floats.

    The relative error of a normal number is at most 2^-(bits+1), and the trailing zero bits compress away.
    Zeros (with their sign), infinities and NaNs are kept; numbers that would round up to infinity are rounded
    down; subnormal numbers (below 1.2e-38) have an absolute error of at most 2^-(127+bits).

    Parameters
    ----------
    values
        Numbers of any shape; converted to float32 first.
    bits
        Explicit mantissa bits to keep, 1 to 22.
    """
    numbers = np.ascontiguousarray(values, dtype=np.float32)
    raw = numbers.view(np.uint32)
    dropped = 23 - bits
    last_kept_bit = (raw >> np.uint32(dropped)) & np.uint32(1)
    mask = np.uint32(0xFFFFFFFF << dropped & 0xFFFFFFFF)
    exponent = np.uint32(0x7F800000)
    finite = (raw & exponent) != exponent
    # A carry out of the mantissa raises the exponent, which is what rounding up to a power of two means.
    rounded = (raw + (np.uint32((1 << (dropped - 1)) - 1) + last_kept_bit)) & mask
    overflowed = (rounded & exponent) == exponent
    return np.where(finite, np.where(overflowed, raw & mask, rounded), raw).view(np.float32)


def lexicographic_order(keys: Sequence[npt.NDArray[Any]]) -> tuple[bool, bool]:
    """Whether rows are sorted by `keys` (most significant first), and whether neighbours are equal in all."""
    tied = np.ones(max(len(keys[0]) - 1, 0), dtype=bool)
    for key in keys:
        if bool(np.any(tied & (key[1:] < key[:-1]))):
            return False, False
        tied &= key[1:] == key[:-1]
    return True, bool(tied.any())


def sort_keys(table: Table, columns: Mapping[str, pa.Array]) -> list[npt.NDArray[np.uint64]]:
    """The table's sort columns as unsigned integers, nulls as the greatest."""
    return [_as_key(columns[name]) for name in table.sort]


def _as_key(column: pa.Array) -> npt.NDArray[np.uint64]:
    if column.null_count == 0:
        return np.asarray(column.to_numpy(zero_copy_only=False)).astype(np.uint64)
    filled = np.asarray(column.fill_null(0).to_numpy(zero_copy_only=False)).astype(np.uint64)
    return np.where(np.asarray(column.is_null().to_numpy(zero_copy_only=False)), _NULL_LAST, filled)


def encode_table(table: Table, columns: Mapping[str, Any]) -> pa.Table:
    """The columns as an Arrow table of the documented types, sorted, mass and contribution rounded.

    Parameters
    ----------
    table
        The table's description.
    columns
        Name to values: a NumPy array (masked where null), a list (None where null), or one value for all
        rows. Exactly the table's columns; nullable ones may be left out, which fills them with nulls.

    Raises
    ------
    StoreError
        Naming the table, the column and what is allowed: unknown or missing columns, unequal lengths, values
        of the wrong type or out of range, nulls in columns that have none, floats that are not finite.
    """
    known = {column.name: column for column in table.columns}
    unknown = sorted(set(columns) - set(known))
    missing = sorted(name for name, column in known.items() if name not in columns and not column.nullable)
    if unknown or missing:
        raise StoreError(
            f"{table.name}: unknown columns {unknown}, missing columns {missing}; it has {', '.join(known)}."
        )
    lengths = {name: len(values) for name, values in columns.items() if not _is_single(values)}
    if len(set(lengths.values())) > 1:
        raise StoreError(f"{table.name}: the columns have different numbers of rows: {lengths}.")
    rows = next(iter(lengths.values()), 1)
    arrays = {name: _encode_column(table, column, columns.get(name), rows) for name, column in known.items()}
    keys = sort_keys(table, arrays)
    in_order, _ = lexicographic_order(keys)
    encoded = pa.Table.from_arrays([arrays[name] for name in known], schema=table.arrow_schema())
    return encoded if in_order else encoded.take(pa.array(np.lexsort(keys[::-1])))


def _is_single(values: Any) -> bool:
    return values is None or isinstance(values, str) or np.ndim(values) == 0


def _encode_column(table: Table, column: Column, values: Any, rows: int) -> pa.Array:
    where = f"{table.name}.{column.name}"
    if _is_single(values):
        values = [values] * rows if values is None or isinstance(values, str) else np.full(rows, values)
    if column.is_integer or column.is_floating:
        numbers, null = _numbers(where, values)
        null_count = 0 if null is None else int(null.sum())
        valid = numbers if null is None else numbers[~null]
        if column.is_integer:
            _check_integers(where, column, valid)
        else:
            _check_finite(where, valid)
            numbers = round_mantissa(numbers) if column.rounded else numbers
        array = pa.array(numbers.astype(column.dtype), type=column.type, mask=null)
    else:
        try:
            array = pa.array(list(values), type=column.type)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise StoreError(f"{where} holds {column.type}: {error}.") from error
        null_count = array.null_count
    if null_count and not column.nullable:
        raise StoreError(f"{where} has {null_count} nulls; it must have a value in every row.")
    return array


def _numbers(where: str, values: Any) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_] | None]:
    """Values and, where some are null, which; nulls hold 0."""
    null: npt.NDArray[np.bool_] | None = None
    if isinstance(values, np.ma.MaskedArray):
        null = np.ma.getmaskarray(values)
        numbers = values.filled(0)
    elif isinstance(values, np.ndarray):
        numbers = values
    else:
        items = list(values)
        null = np.array([item is None for item in items], dtype=bool)
        numbers = np.array([0 if item is None else item for item in items])
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iuf"):
        raise StoreError(f"{where} needs one number per row, not {numbers.dtype} of shape {numbers.shape}.")
    return numbers, null if null is not None and null.any() else None


def _check_integers(where: str, column: Column, values: npt.NDArray[Any]) -> None:
    if not values.size:
        return
    if values.dtype.kind == "f":
        raise StoreError(f"{where} holds whole numbers, not {values.dtype}.")
    limit = int(np.iinfo(column.dtype).max)
    least, greatest = int(values.min()), int(values.max())
    if least < 0 or greatest > limit:
        raise StoreError(f"{where} holds {column.type}, 0 to {limit}; it was given {least} to {greatest}.")


def _check_finite(where: str, values: npt.NDArray[Any]) -> None:
    with np.errstate(over="ignore"):
        wrong = np.flatnonzero(~np.isfinite(values.astype(np.float32)))
    if wrong.size:
        raise StoreError(
            f"{where} has {wrong.size} values that are not finite 32-bit floats, the first "
            f"{values[wrong[0]]} in row {wrong[0]}; leave unknown values null where the column allows it, "
            f"and capture in float32 or bfloat16 if the model overflows."
        )
