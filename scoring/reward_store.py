"""Token rewards kept on disk, a row per response, so that none is computed twice.

A folder holds the rewards of one evaluator. Finished calls leave Parquet files; one that is still going, or was killed,
an Arrow stream to which every batch was appended, so that a killed one loses at most the batch it was in.
"""

import errno
import fcntl
import os
import uuid
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tokencredit.errors import InputError

Rewards = NDArray[np.float32]
Row = tuple[bytes, Rewards]

_SCHEMA = pa.schema([("key", pa.binary(16)), ("rewards", pa.list_(pa.float32()))])


class RewardStore:
    """The rewards that one evaluator gave.

    Args:
        folder: Need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, keys: Collection[bytes]) -> dict[bytes, Rewards]:
        """The rewards that are kept of these responses.

        Raises:
            InputError: A Parquet file cannot be read.
        """
        wanted = pa.array(list(keys), type=pa.binary(16))
        found: dict[bytes, Rewards] = {}
        for table in self._tables():
            kept = table.filter(pc.is_in(table["key"], wanted))
            found |= {
                key: np.asarray(values, dtype=np.float32)
                for key, values in zip(kept["key"].to_pylist(), kept["rewards"].to_pylist(), strict=True)
            }
        return found

    def _tables(self) -> Iterator[Any]:
        for path in sorted(self.folder.glob("*.parquet")):
            try:
                yield pq.read_table(path)
            except (pa.ArrowException, OSError) as error:
                raise InputError(str(path), f"cannot be read ({error})", "remove it: it is computed again") from None
        for path in self._streams():
            yield _read_stream(path)

    def _streams(self) -> list[Path]:
        return sorted(self.folder.glob("*.arrow"))

    @contextmanager
    def writer(self) -> Iterator["Writer"]:
        """Something to add rows to; once all are there they become a Parquet file, with what killed calls left."""
        self.folder.mkdir(parents=True, exist_ok=True)
        left = [path for path in self._streams() if _is_left(path)]
        path = self.folder / f"{uuid.uuid4().hex}.arrow"
        with path.open("wb") as stream, pa.ipc.new_stream(stream, _SCHEMA) as batches:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            writer = Writer(stream, batches)
            yield writer
        # Not read back: another call that ends meanwhile may have taken the stream for one of a killed call.
        own = pa.Table.from_batches(writer.written, schema=_SCHEMA)
        whole = pa.concat_tables([*map(_read_stream, left), own])
        temporary = path.with_suffix(".tmp")
        pq.write_table(whole, temporary)
        os.replace(temporary, path.with_suffix(".parquet"))
        for part in (*left, path):
            part.unlink(missing_ok=True)


class Writer:
    """Appends batches of rows; each is on disk when `add` returns."""

    def __init__(self, stream: Any, batches: Any) -> None:
        self._stream, self._batches = stream, batches
        self.written: list[Any] = []

    def add(self, rows: Iterable[Row]) -> None:
        """Append rows."""
        keys, rewards = zip(*rows, strict=True)
        columns = [
            pa.array(keys, type=_SCHEMA.field("key").type),
            pa.array(rewards, type=_SCHEMA.field("rewards").type),
        ]
        self.written.append(pa.record_batch(columns, schema=_SCHEMA))
        self._batches.write_batch(self.written[-1])
        self._stream.flush()


def _is_left(path: Path) -> bool:
    """Whether nobody writes to a stream any more."""
    try:
        with path.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno == errno.ENOTSUP
    return True


def _read_stream(path: Path) -> Any:
    """The whole batches of a stream, which may have been cut off anywhere."""
    batches = []
    try:
        with path.open("rb") as stream, pa.ipc.open_stream(stream) as reader:
            batches.extend(reader)
    except (pa.ArrowException, OSError):
        pass  # the end of what was written
    return pa.Table.from_batches(batches, schema=_SCHEMA)
