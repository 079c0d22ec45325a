"""Whether a release can be served here at all, judged from its words alone, before any byte of the model is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from vedette.models.release import Build, Release, TensorSpec

_CONDITION = re.compile(r"(>=|<=|==|!=|<|>)\s*(\d+(?:\.\d+)*)")
_MOST_PARTS = 8


def misfit(release: Release, build: Build | None, runtimes: Mapping[str, str]) -> str | None:
    """Return why a build of a release cannot be served, or None.

    Args:
        release: The release.
        build: The assigned build of it; None when the release has none of that digest.
        runtimes: Installed versions by the names that ``build.requires`` uses.
    """
    if build is None:
        return f"{release.name} has no build of the assigned digest"
    if not build.kind.startswith("onnx-"):
        return f"build kind {build.kind!r} is not served here; known is onnx-*"
    for name, condition in build.requires.items():
        reason = unmet(condition, runtimes.get(name))
        if reason is not None:
            return f"build needs {name} {condition}, {reason}"
    return None if release.kind == "tensor" else _row_misfit(release)


def _row_misfit(release: Release) -> str | None:
    """Return where a release that the agent itself feeds breaks the convention of such models, or None."""
    if release.schema is None:
        return f"a {release.kind} model needs a feature schema"
    if not release.row_wise:
        return f"a {release.kind} model must answer each row for itself, this one answers a request whole"
    width, labels = len(release.schema), len(release.labels)
    inputs = (TensorSpec("features", "float32", (-1, width)),)
    outputs = (
        TensorSpec("score", "float32", (-1,)),
        TensorSpec("label", "int64", (-1,)),
        TensorSpec("probabilities", "float32", (-1, labels)),
    )
    return _tensor_misfit("input", inputs, release.inputs) or _tensor_misfit("output", outputs, release.outputs)


def _tensor_misfit(what: str, wanted: Sequence[TensorSpec], found: Sequence[TensorSpec]) -> str | None:
    by_name = {spec.name: spec for spec in found}
    for spec in wanted:
        have = by_name.pop(spec.name, None)
        if have != spec:
            return f"{what} {spec.name!r} is {_words(have)}, the schema and labels need {_words(spec)}"
    return f"{what}s {sorted(by_name)[:5]} are none that the agent feeds" if by_name and what == "input" else None


def _words(spec: TensorSpec | None) -> str:
    return "absent" if spec is None else f"{spec.dtype}{list(spec.shape)}"


def unmet(condition: str, installed: str | None) -> str | None:
    """Return why an installed version does not meet a condition such as ``>=1.32,<2``, or None when it does.

    Only release numbers are compared; what follows them (``rc1``, ``+cpu``) is ignored. A condition that cannot be
    read is not met.
    """
    if installed is None:
        return "which is not installed"
    have = _numbers(installed)
    for part in condition.split(","):
        match = _CONDITION.fullmatch(part.strip())
        if match is None:
            return f"a condition this agent cannot read; it has {installed}"
        if not _holds(match[1], have, _numbers(match[2])):
            return f"this appliance has {installed}"
    return None


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(?:\.\d+)*", version)
    parts = tuple(int(part) for part in match[0].split(".")[:_MOST_PARTS]) if match else ()
    return parts + (0,) * (_MOST_PARTS - len(parts))


def _holds(sign: str, have: tuple[int, ...], want: tuple[int, ...]) -> bool:
    return {
        ">=": have >= want,
        "<=": have <= want,
        "==": have == want,
        "!=": have != want,
        "<": have < want,
        ">": have > want,
    }[sign]
