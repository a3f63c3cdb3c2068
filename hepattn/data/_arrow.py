"""Arrow columns as numpy arrays, without pandas (whose import alone costs more than reading an event)."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def dtype_of(kind: pa.DataType) -> npt.DTypeLike:
    """The numpy dtype of an Arrow type of numbers."""
    return kind.to_pandas_dtype()


def to_numpy(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """A writable copy of a column of numbers without nulls."""
    chunks = [np.from_dlpack(chunk) for chunk in column.chunks if len(chunk)]
    return np.concatenate(chunks) if chunks else np.empty(0, dtype_of(column.type))
