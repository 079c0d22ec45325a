"""Assembling a model in the one form we write: IR 8, opset 17, ai.onnx.ml 3, one file, any number of rows.

onnxruntime 1.16 and later read it; the first dimension of every input and output is the rows of a batch and is called
``rows``. The bytes depend on the content only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto, ValueInfoProto, checker, helper, numpy_helper

IR_VERSION = 8
OPSETS: Mapping[str, int] = {"": 17, "ai.onnx.ml": 3}

Constants = Mapping[str, npt.NDArray[Any]]

_ELEMENTS = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}


def port(name: str, dtype: str, *sizes: int, rows: str = "rows") -> ValueInfoProto:
    """Return the declaration of a tensor of any number of rows, ``sizes`` behind them."""
    return helper.make_tensor_value_info(name, _ELEMENTS[dtype], [rows, *sizes])


def assemble(
    name: str,
    nodes: Sequence[NodeProto],
    inputs: Sequence[ValueInfoProto],
    outputs: Sequence[ValueInfoProto],
    constants: Constants,
    *,
    inner: Sequence[ValueInfoProto] = (),
) -> bytes:
    """Return the model's bytes after the checks that ONNX itself offers."""
    tensors = [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()]
    graph = helper.make_graph(list(nodes), name, list(inputs), list(outputs), tensors, value_info=list(inner))
    opsets = [helper.make_opsetid(domain, version) for domain, version in OPSETS.items()]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="vedette")
    checker.check_model(model, full_check=True)
    written: bytes = model.SerializeToString(deterministic=True)
    return written


def node(operator: str, inputs: Sequence[str], result: str, **attributes: Any) -> NodeProto:
    """Return a node of the default domain, named after its one result."""
    return helper.make_node(operator, list(inputs), [result], name=result, **attributes)
