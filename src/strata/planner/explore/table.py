"""Rows in a CSV or Parquet file, and back; a file is written whole or not at all.

Columns: those of :data:`FIGURES` and :data:`KEYS`, one per parameter that varies, named by its path, and per
device ``<name>.ops`` and ``<name>.matmuls``. Floats are exact in both formats.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from strata.core.errors import UserError

from .sweep import Row, Sweep

KEYS = {"model": "str", "machine": "str"}  # then the parameters, then:
LENGTH = {"seq_len": "int", "objective": "str"}
FIGURES = {
    "time_s": "float", "energy_j": "float", "value": "float", "bound": "float", "ops": "int",
    "matmuls": "int",
}  # fmt: skip
DIGEST = {"digest": "str"}
_COUNTS = (".ops", ".matmuls")
_READ: Mapping[str, Callable[[str], Any]] = {
    "int": int,
    "float": float,
    "str": str,
    "bool": lambda text: {"True": True, "False": False}[text],
}

Columns = dict[str, str]  # type by name


def columns_of(sweep: Sweep) -> Columns:
    """Columns of a sweep's rows.

    Raises:
        UserError: machines whose parameters at one path have different types, or a parameter that is a list.
    """
    found: Columns = {}
    for grid in sweep.grids:
        for name, kind in zip(grid.names, grid.types, strict=True):
            if kind not in _READ or found.setdefault(name, kind) != kind:
                raise UserError(
                    f"sweep: {name}: got values of type {kind}; expected {found.get(name, 'numbers')}"
                )
    devices = dict.fromkeys(d.name for grid in sweep.grids for d in grid.machine.devices)
    counts = {name + end: "int" for name in devices for end in _COUNTS}
    return {**KEYS, **found, **LENGTH, **FIGURES, **counts, **DIGEST}


def record(row: Row) -> dict[str, Any]:
    """A row by names of columns."""
    found: dict[str, Any] = {"model": row.model, "machine": row.machine, **dict(row.parameters)}
    found |= {"seq_len": row.seq_len, "objective": row.objective}
    found |= {name: getattr(row, name) for name in FIGURES}
    for name, ops, matmuls in row.devices:
        found[name + ".ops"], found[name + ".matmuls"] = ops, matmuls
    return {**found, "digest": row.digest}


def row_of(found: Mapping[str, Any], parameters: Sequence[str]) -> Row:
    """A row from its record; devices that it has no counts of are not its machine's."""
    devices = [
        (column.removesuffix(".ops"), value, found[column.removesuffix("ops") + "matmuls"])
        for column, value in found.items()
        if column.endswith(".ops") and value is not None and column not in parameters
    ]
    given = {name: found[name] for name in (*KEYS, *LENGTH, *FIGURES, *DIGEST)}
    return Row(parameters=tuple((p, found[p]) for p in parameters), devices=tuple(sorted(devices)), **given)


class Table:
    """A file of rows.

    Args:
        path: Ends in ``.csv`` or ``.parquet``.

    Raises:
        UserError: it ends otherwise, or Parquet is not installed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_parquet = path.suffix == ".parquet"
        if path.suffix not in (".csv", ".parquet"):
            raise UserError(f"{path}: got the ending {path.suffix!r}; expected .csv or .parquet")
        if self.is_parquet:
            _parquet()

    def read(self, columns: Columns) -> tuple[list[Row], Columns]:
        """The rows of the file, and its columns; nothing if it does not exist.

        Args:
            columns: Those of a sweep: the file must have them, but for counts of devices.

        Raises:
            UserError: it cannot be read, or has other columns.
        """
        if not self.path.exists():
            return [], columns
        try:
            names, records = self._read_parquet() if self.is_parquet else self._read_csv()
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{self.path}: cannot read the file: {error}") from error
        have, want = ([n for n in of if not n.endswith(_COUNTS)] for of in (names, columns))
        if have != want:
            raise UserError(
                f"{self.path}: its columns are {', '.join(have)}; this sweep's are {', '.join(want)}; "
                "other parameters need another file"
            )
        kinds = {name: columns.get(name, "int") for name in names}
        first = len(KEYS)
        parameters = want[first : want.index("seq_len")]
        try:
            return [row_of(self._typed(r, kinds), parameters) for r in records], {**kinds, **columns}
        except (KeyError, ValueError) as error:
            raise UserError(
                f"{self.path}: cannot read a row: {error}; remove the file, or choose another"
            ) from error

    def _typed(self, found: Mapping[str, Any], kinds: Columns) -> Mapping[str, Any]:
        if self.is_parquet:
            return found
        return {name: None if text == "" else _READ[kinds[name]](text) for name, text in found.items()}

    def _read_csv(self) -> tuple[list[str], list[dict[str, Any]]]:
        with self.path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            return list(reader.fieldnames or ()), list(reader)

    def _read_parquet(self) -> tuple[list[str], list[dict[str, Any]]]:
        arrow, parquet = _parquet()
        try:
            table = parquet.read_table(self.path)
        except arrow.ArrowException as error:
            raise OSError(str(error)) from error
        return table.column_names, table.to_pylist()

    def write(self, rows: Iterable[Row], columns: Columns) -> None:
        """Write all rows under a temporary name, then rename.

        Raises:
            UserError: it cannot be written.
        """
        part = self.path.with_name(f".{self.path.name}.part-{os.getpid()}")
        records = map(record, rows)
        try:
            if self.is_parquet:
                self._write_parquet(part, records, columns)
            else:
                with part.open("w", newline="", encoding="utf-8") as file:
                    writer = csv.DictWriter(file, list(columns), lineterminator="\n")
                    writer.writeheader()
                    writer.writerows(records)
            part.replace(self.path)
        except OSError as error:
            with suppress(OSError):
                part.unlink()
            raise UserError(
                f"{self.path}: cannot write the file: {error.strerror or error}; choose another file"
            ) from error

    def _write_parquet(self, part: Path, records: Iterable[Mapping[str, Any]], columns: Columns) -> None:
        arrow, parquet = _parquet()
        types = {"int": arrow.int64(), "float": arrow.float64(), "str": arrow.string(), "bool": arrow.bool_()}
        schema = arrow.schema([(name, types[kind]) for name, kind in columns.items()])
        parquet.write_table(arrow.Table.from_pylist(list(records), schema=schema), part)


def _parquet() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise UserError(
            "Parquet: PyArrow is not installed; pip install 'strata-llm[planner]', or choose a .csv file"
        ) from None
    return pyarrow, parquet
