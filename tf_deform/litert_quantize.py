"""Products of a LiteRT file in 8 bits, and whatever says where samples lie in floats.

A position that is off by a part of a pixel is another pixel: eight bits do not do for it. In a
file's graph samples are rows gathered from a table and multiplied by their weights. What the rows'
numbers and the weights are computed of, and the table is not, stays in floats: of a deformable
convolution what predicts its offsets, of a spatial transformer the network that predicts where to.
"""

import functools
import importlib
import operator
import re
import warnings
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

# Operators computed in 8 bits, as LiteRT calls them and as the quantiser does, and what has a scale
# of its own. BATCH_MATMUL takes a scale for each channel, and computes something else.
PRODUCTS = {
    "BATCH_MATMUL": ("BATCH_MATMUL", "TENSORWISE"),
    "CONV_2D": ("CONV_2D", "CHANNELWISE"),
    "DEPTHWISE_CONV_2D": ("DEPTHWISE_CONV_2D", "CHANNELWISE"),
    "FULLY_CONNECTED": ("FULLY_CONNECTED", "CHANNELWISE"),
    "TRANSPOSE_CONV": ("CONV_2D_TRANSPOSE", "CHANNELWISE"),
}
_GATHERS = ("GATHER", "GATHER_ND")
_RESHAPES = ("CAST", "EXPAND_DIMS", "RESHAPE", "SQUEEZE", "TRANSPOSE")


class Op(NamedTuple):
    """One operator of a graph: its name, its tensors' numbers, and of a loop the graph repeated."""

    name: str
    inputs: list[int]
    outputs: list[int]
    body: int | None


class Graph(NamedTuple):
    """One graph of a file: operators as they run, tensors by number, and numbers of its inputs."""

    ops: list[Op]
    tensors: list[Any]
    inputs: list[int]


def packages():
    """Returns the quantiser's modules that are needed here."""
    flatbuffers = "utils.tfl_flatbuffer_utils"
    names = (flatbuffers, "qtyping", "recipe_manager", "params_generator", "model_modifier")
    try:
        return [importlib.import_module(f"ai_edge_quantizer.{name}") for name in names]
    except ImportError as error:
        raise ImportError(
            'quantize="int8" needs the package ai-edge-quantizer: '
            f'pip install "tf_deform[litert]" ({error})'
        ) from error


def quantized(content, batches):
    """Returns the LiteRT file with its products in 8 bits; inputs and outputs stay in floats.

    It is unchanged, with a warning, if it has no product that may be in 8 bits.

    Args:
        content: the file in float32.
        batches: iterable of {name: array} of inputs. The 8 bits cover the range of each tensor that
            is seen with these.

    Raises:
        ValueError: a range is not finite.
    """
    flatbuffers, types, recipes, generator, modifier = packages()
    model, recipe = flatbuffers.read_model(content), recipes.RecipeManager()
    graph, *_ = graphs = graphs_in(model)
    chosen = products(graphs)
    if not chosen:
        warnings.warn(
            "Nothing is in 8 bits: the model has no product of two dimensions but those that place "
            "or weigh samples",
            stacklevel=3,
        )
        return content
    for op in chosen:
        names = "".join(f"{_name(graph, number)};" for number in op.outputs)
        product, scaled = PRODUCTS[op.name]
        granularity = types.QuantGranularity[scaled]
        recipe.add_static_config(f"^{re.escape(names)}$", product, 8, 8, granularity)
    computed = {number for op in graph.ops for number in op.outputs} | set(graph.inputs)
    ranged = {number for op in chosen for number in [*op.inputs, *op.outputs]} & computed
    ranges = _ranges(content, batches, {number: _name(graph, number) for number in ranged})
    # Not by the package's Quantizer, which first runs the file with free sizes of 1.
    parameters = generator.ParamsGenerator(model).generate_quantization_parameters(
        recipe, ranges, enable_progress_bar=False
    )
    return bytes(modifier.ModelModifier(model).modify_model(parameters, enable_progress_bar=False))


def _ranges(content, batches, names):
    """Returns {name: {"min": array, "max": array}} of tensors, given as {number: name}."""
    kernels = tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    with warnings.catch_warnings():  # TensorFlow's own interpreter is going to move
        warnings.simplefilter("ignore", UserWarning)
        interpreter = tf.lite.Interpreter(
            model_content=content,
            experimental_op_resolver_type=kernels,  # delegates do not keep all tensors
            experimental_preserve_all_tensors=True,
        )
    run = interpreter.get_signature_runner("serving_default")
    ranges: dict[str, dict[str, np.ndarray]] = {}
    for batch in batches:
        run(**batch)
        for number, name in names.items():
            values = interpreter.get_tensor(number)
            least = values.min(keepdims=True, initial=np.inf)
            largest = values.max(keepdims=True, initial=-np.inf)
            seen = ranges.get(name, {"min": least, "max": largest})
            ranges[name] = {
                "min": np.minimum(seen["min"], least),
                "max": np.maximum(seen["max"], largest),
            }
    for name, seen in ranges.items():
        if not np.isfinite(seen["max"] - seen["min"]):
            raise ValueError(
                "representative must hold inputs of which the model computes finite values, "
                f"received {seen['min'].item()} to {seen['max'].item()} in {name!r}"
            )
    return ranges


def graphs_in(model):
    """Returns the graphs of a LiteRT file that was read, that of its signature first."""
    schema = importlib.import_module("ai_edge_litert.schema_py_generated")
    names = {number: name for name, number in vars(schema.BuiltinOperator).items()}
    codes = [
        names[max(each.builtinCode, each.deprecatedBuiltinCode)] for each in model.operatorCodes
    ]

    def described(op):
        body = getattr(op.builtinOptions, "bodySubgraphIndex", None)
        return Op(codes[op.opcodeIndex], list(op.inputs), list(op.outputs), body)

    return [
        Graph([described(op) for op in graph.operators], graph.tensors, list(graph.inputs))
        for graph in model.subgraphs
    ]


def products(graphs):
    """Returns the products of the first graph that may be computed in 8 bits."""
    placing = _placing(graphs, 0, [0] * len(graphs[0].inputs))
    return [
        op
        for number, op in enumerate(graphs[0].ops)
        if op.name in PRODUCTS and not placing >> number & 1
    ]


def _placing(graphs, index, entering):
    """Returns the operators that only place and weigh samples of a graph and of loops in it.

    A set of operators is an integer here, whose bits are those of the first graph.

    Args:
        graphs: of the file.
        index: of the graph.
        entering: for each of its inputs, the operators that it is computed by.
    """
    graph, placing = graphs[index], 0
    makers = dict(zip(graph.inputs, entering, strict=True))  # of each tensor
    tables = {}  # of samples: the makers of the table that they are from
    for number, op in enumerate(graph.ops):
        made_by = [makers.get(each, 0) for each in op.inputs]
        if op.name in _GATHERS:
            table, rows = made_by[:2]
            placing |= rows & ~table
            tables[op.outputs[0]] = table
        elif op.name in _RESHAPES and op.inputs[0] in tables:
            tables[op.outputs[0]] = tables[op.inputs[0]]
        elif op.name == "MUL":
            for sample, weight in zip(op.inputs, reversed(made_by), strict=True):
                placing |= weight & ~tables.get(sample, weight)
        elif op.body is not None:
            placing |= _placing(graphs, op.body, made_by)
        makers_of_it = functools.reduce(operator.or_, made_by, 0 if index else 1 << number)
        makers.update(dict.fromkeys(op.outputs, makers_of_it))
    return placing


def _name(graph, number):
    return graph.tensors[number].name.decode()
