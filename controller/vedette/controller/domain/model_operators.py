"""The operators a model may use: those that compute a tensor from tensors, at a cost their inputs show.

Left out on purpose: whatever holds a graph of its own (``Loop``, ``Scan``, ``If``, ``SequenceMap``: one hangs for 2^62
trips from a file of 200 bytes), whatever is random (golden samples could not hold), sequences and maps (the ring
between agent and worker carries tensors), tree forms this gate does not check (``TreeEnsemble`` of ai.onnx.ml 5), and
what goes to places that other inputs name without the runtime's looking first (``MaxUnpool``, ``MaxRoiPool``,
``RoiAlign``, ``DeformConv``).

Source: the operator lists of ONNX, https://onnx.ai/onnx/operators/, and of onnxruntime's contrib operators.
"""

from __future__ import annotations

from collections.abc import Mapping

ONNX = ""
ML = "ai.onnx.ml"
MICROSOFT = "com.microsoft"

_TENSOR_OPERATORS = """
Abs Acos Acosh Add AffineGrid And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool BatchNormalization BitCast
BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor BlackmanWindow Cast CastLike Ceil Celu CenterCropPad Clip Col2Im
Compress Concat Constant ConstantOfShape Conv ConvInteger ConvTranspose Cos Cosh CumSum DFT DepthToSpace
DequantizeLinear Det Div Dropout DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU
Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual
GridSample GroupNormalization HammingWindow HannWindow HardSigmoid HardSwish Hardmax Identity InstanceNormalization
IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax LpNormalization LpPool MatMul
MatMulInteger Max MaxPool Mean MeanVarianceNormalization MelWeightMatrix Min Mish Mod Mul Neg NonMaxSuppression
NonZero Not OneHot Or PRelu Pad Pow QLinearConv QLinearMatMul QuantizeLinear RMSNormalization RNN Range Reciprocal
ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare
RegexFullMatch Relu Reshape Resize ReverseSequence RotaryEmbedding Round Scatter ScatterElements ScatterND Selu Shape
Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign STFT SpaceToDepth Split Sqrt Squeeze StringConcat
StringNormalizer StringSplit Sub Sum Swish Tan Tanh TfIdfVectorizer ThresholdedRelu Tile TopK Transpose Trilu Unique
Unsqueeze Upsample Where Xor
"""
_ML_OPERATORS = """
ArrayFeatureExtractor Binarizer CategoryMapper FeatureVectorizer Imputer LabelEncoder LinearClassifier LinearRegressor
Normalizer OneHotEncoder SVMClassifier SVMRegressor Scaler TreeEnsembleClassifier TreeEnsembleRegressor
"""
_MICROSOFT_OPERATORS = """
Attention BiasGelu DynamicQuantizeMatMul EmbedLayerNormalization FastGelu FusedConv FusedGemm FusedMatMul Gelu
MatMulInteger16 MatMulIntegerToFloat MatMulNBits MultiHeadAttention QAttention QGemm QLinearAdd QLinearAveragePool
QLinearConcat QLinearGlobalAveragePool QLinearLeakyRelu QLinearMul QLinearSigmoid QLinearSoftmax QuickGelu
SimplifiedLayerNormalization SkipLayerNormalization Tokenizer
"""

ALLOWED: Mapping[str, frozenset[str]] = {
    ONNX: frozenset(_TENSOR_OPERATORS.split()),
    ML: frozenset(_ML_OPERATORS.split()),
    MICROSOFT: frozenset(_MICROSOFT_OPERATORS.split()),
}
"""Operator names by domain; ``ai.onnx`` is written as the empty domain."""

OPSETS: Mapping[str, tuple[int, int]] = {ONNX: (7, 28), ML: (1, 5), MICROSOFT: (1, 1)}
"""Lowest and highest operator set taken. 28 is the newest onnxruntime 1.32 loads (measured: 29 is refused there)."""

IR_VERSIONS = (3, 14)
"""Lowest and highest file format taken: below 3 there are no operator sets, 14 is the newest onnxruntime 1.32 loads."""


def domain_of(text: str) -> str:
    """Return a domain in its short form: ``ai.onnx`` and the empty text are the same."""
    return ONNX if text == "ai.onnx" else text
