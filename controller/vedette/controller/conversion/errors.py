"""What conversion refuses, and what it finds wrong."""

from __future__ import annotations

from vedette.controller.domain.errors import InvalidInput, Refused


class ConversionError(InvalidInput):
    """A fitted model has a form that cannot be written as ONNX with the same answers."""

    def __init__(self, why: str) -> None:
        remedy = "train without what is named, or register a finished .onnx file"
        super().__init__("not-convertible", "the model cannot be converted", why, remedy)


class ParityError(Refused):
    """The converted model does not give the numbers of the original.

    Attributes:
        rows: Rows that differ, the worst first, at most ten.
        columns: For each of them the input column that its kind of row was about, or -1.
    """

    def __init__(self, why: str, rows: tuple[int, ...] = (), columns: tuple[int, ...] = ()) -> None:
        remedy = "nothing was registered; convert with a wider tolerance only when you know why they differ"
        super().__init__("no-parity", "the converted model does not repeat the original", why, remedy)
        self.rows = rows
        self.columns = columns
