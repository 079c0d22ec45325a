"""Verbs on data, labels, training runs and models."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from vedette.controller.cli import complete
from vedette.controller.cli.frame import noun, verb
from vedette.controller.cli.output import Column
from vedette.controller.cli.problems import Exit, Failed, Missing, Usage, nearest
from vedette.controller.cli.progress import Meter
from vedette.controller.cli.session import Session, current
from vedette.controller.cli.words import ago, clean, count, pairs, size, three, when
from vedette.wire import views
from vedette.wire.limits import CHUNK_BYTES, SCHEMA_CHARACTERS
from vedette.wire.views import RunState

FORMATS = ("flows", "csv", "parquet")
_MOST_TENSORS = 8

data = noun(
    "data",
    "Import data and fix snapshots of it to train on.",
    "vedette data import monday.pcap.gz tuesday.pcap.gz --dataset lab --format flows",
    "vedette data snapshot lab",
)


@verb(
    data,
    "import",
    "Add files to a dataset, which is made if there is none. A file that is there already adds nothing.",
    "vedette data import export.pcap.gz --dataset lab --format flows",
    "vedette data import monday.csv tuesday.csv --dataset plant",
)
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=click.Path())
@click.option("--dataset", required=True, metavar="N", help="Its name.", shell_complete=complete.datasets)
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    help="flows: a capture of NetFlow or IPFIX datagrams; by the file's ending for csv and parquet.",
)
def data_import(paths: Sequence[str], dataset: str, form: str | None) -> None:
    """Import files."""
    files = [existing_file(path) for path in paths]
    forms = [form or _form_of(path) for path in files]
    session = current()
    done = []
    for path, kind in zip(files, forms, strict=True):
        done.append(_import_one(session, path, dataset, kind))
    added = [item for item in done if not item.already_there]
    result = {
        "dataset": dataset,
        "rows": sum(item.rows for item in added),
        "rejected": sum(item.rejected for item in added),
        "imports": done,
    }
    if session.output.is_json:
        session.output.json(result)
        return
    for item in done:
        session.output.line(_import_line(item))
    session.output.line(
        f"Next: vedette data snapshot {dataset}   (labels first: vedette label import FILE --dataset {dataset})"
    )


def existing_file(path: str) -> Path:
    """Return a file that is there.

    Raises:
        Missing: It is not; the nearest is named.
        Usage: It is a folder.
    """
    found = Path(path)
    if not found.exists():
        siblings = [item.name for item in found.parent.iterdir()] if found.parent.is_dir() else []
        close = nearest(found.name, siblings)
        raise Missing(f"file {path} does not exist", "", f"did you mean {found.parent / close}?" if close else "")
    if not found.is_file():
        raise Usage(f"{path} is not a file", "", "name the files in it, for example with *")
    return found


def _form_of(path: Path) -> str:
    form = path.suffix.lower().lstrip(".")
    if form not in ("csv", "parquet"):
        raise Usage(f"what is in {path.name}?", "its ending does not say", f"add --format {'|'.join(FORMATS)}")
    return form


def _import_one(session: Session, path: Path, dataset: str, form: str) -> views.DataImport:
    from vedette.wire.convert import DATA_IMPORT
    from vedette.wire.v1 import admin_pb2

    head = admin_pb2.ImportDataRequest.Header(
        dataset=dataset, format=form, file_name=path.name, total_bytes=path.stat().st_size
    )
    first = admin_pb2.ImportDataRequest(header=head)
    answer = uploaded(session, "ImportData", first, path, lambda piece: admin_pb2.ImportDataRequest(data=piece))
    return DATA_IMPORT.from_wire(answer)


def uploaded(session: Session, method: str, first: Any, path: Path, wrap: Callable[[bytes], Any]) -> Any:
    """Send a file in pieces behind its header, showing how far it is."""
    meter = Meter(path.name, path.stat().st_size)

    def requests() -> Iterator[Any]:
        yield first
        sent = 0
        with path.open("rb") as source:
            while piece := source.read(CHUNK_BYTES):
                yield wrap(piece)
                sent += len(piece)
                meter.update(sent, "the controller reads it" if sent >= path.stat().st_size else "")

    try:
        return session.client.send(method, requests())
    finally:
        meter.close()


def _import_line(item: views.DataImport) -> str:
    if item.already_there:
        return f"{item.file_name}: already there, nothing added"
    line = f"{item.file_name}: {count(item.rows, 'row')}"
    if item.first and item.last:
        line += f" from {when(item.first)} to {when(item.last)}"
    if item.rejected:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in sorted(item.reject_reasons.items()))
        line += f"; {item.rejected:,} rejected ({reasons})"
    return clean(line)


@verb(data, "ls", "List datasets.", "vedette data ls")
def data_ls() -> None:
    """List datasets."""
    from vedette.wire.convert import DATASET
    from vedette.wire.v1 import admin_pb2

    session = current()
    answer = session.client.ask("ListDatasets", admin_pb2.ListDatasetsRequest())
    items = [DATASET.from_wire(item) for item in answer.datasets]
    out = session.output
    if out.is_json:
        out.json(items)
    elif not items:
        out.line("No datasets yet. Import one: vedette data import PATH --dataset NAME --format flows")
    else:
        columns = (
            Column("NAME"), Column("FORMAT", 2), Column("ROWS", 0, right=True), Column("FILES", 3, right=True),
            Column("LABEL WINDOWS", 3, right=True), Column("NEWEST SNAPSHOT"),
        )  # fmt: skip
        out.table(columns, [_dataset_row(item) for item in items])


def _dataset_row(item: views.Dataset) -> list[str]:
    newest = item.snapshots[-1].snapshot if item.snapshots else "–"
    return [item.name, item.format, f"{item.rows:,}", str(len(item.imports)), f"{item.label_windows:,}", newest]


@verb(data, "show", "Show a dataset, or a snapshot DATASET@N.", "vedette data show lab", "vedette data show lab@1")
@click.argument("name", metavar="DATASET[@N]", shell_complete=complete.datasets)
def data_show(name: str) -> None:
    """Show a dataset or snapshot."""
    from vedette.wire.convert import DATASET, SNAPSHOT
    from vedette.wire.v1 import admin_pb2

    session = current()
    if "@" in name:
        item = SNAPSHOT.from_wire(session.client.ask("GetSnapshot", admin_pb2.GetSnapshotRequest(name=name)))
        _show_snapshot(session, item)
        return
    dataset = DATASET.from_wire(session.client.ask("GetDataset", admin_pb2.GetDatasetRequest(name=name)))
    out = session.output
    if out.is_json:
        out.json(dataset)
        return
    out.facts([
        ("dataset", dataset.name), ("format", dataset.format), ("rows", f"{dataset.rows:,}"),
        ("label windows", f"{dataset.label_windows:,}"),
        ("snapshots", ", ".join(item.snapshot for item in dataset.snapshots) or "none yet"),
    ])  # fmt: skip
    for file in dataset.imports:
        out.line(_import_line(file))


def _show_snapshot(session: Session, item: views.Snapshot) -> None:
    out = session.output
    if out.is_json:
        out.json(item)
        return
    out.facts([
        ("snapshot", item.snapshot), ("digest", item.digest), ("created", when(item.created)),
        ("rows", f"{item.rows:,} in {size(item.bytes)}"), ("sources", ", ".join(item.sources)),
        ("labels", ", ".join(f"{label} {n:,}" for label, n in sorted(item.labels.items(), key=lambda pair: -pair[1]))),
    ])  # fmt: skip
    for finding in item.findings:
        out.line(clean(f"{finding.severity}: {finding.text} ({finding.code})"))


@verb(
    data,
    "snapshot",
    "Fix what a dataset holds now, to train on it. The same content is the same snapshot.",
    "vedette data snapshot lab",
)
@click.argument("dataset", shell_complete=complete.datasets)
def data_snapshot(dataset: str) -> None:
    """Make a snapshot."""
    from vedette.wire.convert import SNAPSHOT
    from vedette.wire.v1 import admin_pb2

    session = current()
    request = admin_pb2.CreateSnapshotRequest(dataset=dataset)
    item = SNAPSHOT.from_wire(session.client.ask("CreateSnapshot", request, timeout_s=1800))
    _show_snapshot(session, item)
    session.output.note(f"Next: vedette train RECIPE --data {item.snapshot}")


label = noun("label", "Say what the data was.", "vedette label import labels.json --dataset lab")


@verb(
    label,
    "import",
    "Add windows of time with their labels to a dataset.",
    "vedette label import labels.json --dataset lab",
)
@click.argument("path", metavar="FILE", type=click.Path())
@click.option("--dataset", required=True, metavar="N", help="Whose data they label.", shell_complete=complete.datasets)
def label_import(path: str, dataset: str) -> None:
    """Import labels."""
    from vedette.wire.convert import LABEL_IMPORT
    from vedette.wire.v1 import admin_pb2

    session, file = current(), existing_file(path)
    head = admin_pb2.ImportLabelsRequest.Header(dataset=dataset, file_name=file.name, total_bytes=file.stat().st_size)
    first = admin_pb2.ImportLabelsRequest(header=head)
    answer = uploaded(session, "ImportLabels", first, file, lambda piece: admin_pb2.ImportLabelsRequest(data=piece))
    item = LABEL_IMPORT.from_wire(answer)
    if session.output.is_json:
        session.output.json(item)
        return
    kinds = ", ".join(f"{name} {n:,}" for name, n in sorted(item.windows_by_label.items()))
    session.output.line(clean(f"{item.dataset}: {count(item.windows, 'label window')} ({kinds})"))


@click.argument("recipe")
@click.option(
    "--data",
    "snapshot",
    required=True,
    metavar="DATASET@N",
    help="What to train on.",
    shell_complete=complete.snapshots,
)
@click.option("--set", "settings", multiple=True, metavar="K=V", help="A parameter of the recipe; may be repeated.")
@click.option(
    "--model",
    default="",
    metavar="N",
    help="The line the version joins; the recipe's name when absent.",
    shell_complete=complete.models,
)
def _train(recipe: str, snapshot: str, settings: Sequence[str], model: str) -> int:
    from vedette.wire.convert import RUN
    from vedette.wire.v1 import admin_pb2

    session = current()
    request = admin_pb2.StartRunRequest(
        recipe=recipe, snapshot=snapshot, parameters=pairs(settings, "--set"), model=model
    )
    run = RUN.from_wire(session.client.ask("StartRun", request))
    try:
        run = _followed(session, run)
    except KeyboardInterrupt:
        session.output.note(f"\nThe run goes on without you. How it stands: vedette run show {run.run}")
        return Exit.INTERRUPTED
    if session.output.is_json:
        session.output.json(run)
    if run.state is RunState.FAILED:
        log = "\n".join(clean(line) for line in run.log_tail[-20:])
        session.output.note(log)
        raise Failed(f"run {run.run} failed", run.error, f"its log: vedette run show {run.run}")
    if not session.output.is_json:
        session.output.facts([("run", run.run), ("version", run.version), *_metric_facts(run.metrics)])
        session.output.line(f"Next: vedette rollout start {run.version} --to SELECTOR")
    return Exit.DONE


def _followed(session: Session, run: views.Run) -> views.Run:
    """Return a run once it has ended, showing how far it is meanwhile."""
    from vedette.wire.convert import RUN
    from vedette.wire.v1 import admin_pb2

    meter = Meter(f"run {run.run}", 1.0, is_bytes=False)
    try:
        for message in session.follow("WatchRun", admin_pb2.GetRunRequest(run=run.run)):
            run = RUN.from_wire(message)
            meter.update(run.progress, run.step or str(run.state))
    finally:
        meter.close()
    if run.state not in (RunState.SUCCEEDED, RunState.FAILED):
        raise Failed(f"lost sight of run {run.run}", f"it was {run.state}", f"vedette run show {run.run}")
    return run


def train_command(group: click.Group) -> None:
    """Add ``train`` to a group."""
    verb(
        group,
        "train",
        "Train a model by a recipe on a snapshot, and register the version. Waits for the end.",
        "vedette train flow-threat --data lab@1",
        "vedette train flow-threat --data lab@1 --set rounds=200",
    )(_train)


def _metric_facts(metrics: Any) -> list[tuple[str, str]]:
    return [(name, three(value)) for name, value in sorted(metrics.items())]


run = noun("run", "Look at training runs.", "vedette run ls", "vedette run show 4")


@verb(run, "ls", "List training runs.", "vedette run ls")
def run_ls() -> None:
    """List runs."""
    from vedette.wire.convert import RUN
    from vedette.wire.v1 import admin_pb2

    session = current()
    items = [RUN.from_wire(item) for item in session.client.ask("ListRuns", admin_pb2.ListRunsRequest()).runs]
    out = session.output
    if out.is_json:
        out.json(items)
    elif not items:
        out.line("No runs yet. Start one: vedette train RECIPE --data DATASET@N")
    else:
        columns = (
            Column("RUN"), Column("RECIPE", 2), Column("DATA", 2), Column("STATE"), Column("VERSION", 1),
            Column("STARTED", 3), Column("NOW", 4, free=True),
        )  # fmt: skip
        out.table(columns, [_run_row(item, session) for item in items])


def _run_row(item: views.Run, session: Session) -> list[str]:
    started = ago(item.created, session.now())
    return [
        item.run,
        item.recipe,
        item.snapshot,
        str(item.state),
        item.version or "–",
        started,
        item.error or item.step,
    ]


@verb(run, "show", "Show a training run: parameters, metrics, the end of its log.", "vedette run show 4")
@click.argument("run_id", metavar="ID", shell_complete=complete.runs)
def run_show(run_id: str) -> None:
    """Show a run."""
    from vedette.wire.convert import RUN
    from vedette.wire.v1 import admin_pb2

    session = current()
    item = RUN.from_wire(session.client.ask("GetRun", admin_pb2.GetRunRequest(run=run_id)))
    out = session.output
    if out.is_json:
        out.json(item)
        return
    out.facts([
        ("run", item.run), ("recipe", item.recipe), ("data", item.snapshot), ("state", str(item.state)),
        ("step", item.step), ("version", item.version), ("error", item.error),
        ("started", when(item.created)), ("ended", when(item.ended) if item.ended else ""),
        *((f"set {name}", value) for name, value in sorted(item.parameters.items())),
        *_metric_facts(item.metrics),
    ])  # fmt: skip
    for line in item.log_tail:
        out.line(f"  {clean(line)}")


model = noun(
    "model",
    "Look at models and their versions, and register finished ones.",
    "vedette model ls",
    "vedette model register plain.onnx --name plain",
    "vedette model register health.onnx --name host-health --schema health.json",
)


@verb(
    model,
    "register",
    "Register a finished ONNX file as the next version of a model.",
    "vedette model register plain.onnx --name plain",
)
@click.argument("path", metavar="FILE", type=click.Path())
@click.option(
    "--name", required=True, metavar="N", help="The model it becomes a version of.", shell_complete=complete.models
)
@click.option(
    "--schema",
    metavar="F",
    type=click.Path(),
    help="A JSON file with kind, labels and threshold, for a model whose own metadata does not say what rows it reads.",
)
def model_register(path: str, name: str, schema: str | None) -> None:
    """Register a model."""
    from vedette.wire.convert import VERSION
    from vedette.wire.v1 import admin_pb2

    session, file = current(), existing_file(path)
    told = _start_of(existing_file(schema)) if schema else ""
    head = admin_pb2.RegisterModelRequest.Header(
        model=name, total_bytes=file.stat().st_size, file_name=file.name, schema=told
    )
    first = admin_pb2.RegisterModelRequest(header=head)
    answer = uploaded(session, "RegisterModel", first, file, lambda piece: admin_pb2.RegisterModelRequest(data=piece))
    item = VERSION.from_wire(answer)
    if session.output.is_json:
        session.output.json(item)
        return
    session.output.line(
        f"{item.version} is registered, {item.kind}, {size(item.builds[0].bytes)}."
        if item.builds
        else f"{item.version} is registered."
    )
    session.output.facts(_tensor_facts(item))
    session.output.line(f"Next: vedette rollout start {item.version} --to SELECTOR")


def _tensor_facts(item: views.Version) -> list[tuple[str, str]]:
    """Return what a program may ask, as it was learnt from the model's own answers."""
    is_open = any(-1 in tensor.shape for tensor in item.inputs)
    whole = "a request whole, of any length where it says *" if is_open else "one request of these shapes at a time"
    return [
        *_sided("input", item.inputs),
        *_sided("output", item.outputs),
        ("answers", "each row for itself" if item.row_wise else whole if item.inputs else ""),
        *((key.replace("_", " "), text) for key, text in item.lineage.items() if key.startswith("repaired")),
    ]


def _sided(side: str, tensors: Sequence[views.Tensor]) -> list[tuple[str, str]]:
    told = [(f"{side} {tensor.name}", _shaped(tensor)) for tensor in tensors[:_MOST_TENSORS]]
    more = len(tensors) - _MOST_TENSORS
    return [*told, (f"{side}s", f"{more} more, all of them with --output json")] if more > 0 else told


def _shaped(tensor: views.Tensor) -> str:
    lengths = ", ".join("*" if length == -1 else str(length) for length in tensor.shape)
    return f"{tensor.dtype} [{lengths}]" if tensor.shape else f"{tensor.dtype}, a single value"


def _start_of(file: Path) -> str:
    """Return no more of a text than the controller would look at."""
    with file.open(errors="replace") as text:
        return text.read(SCHEMA_CHARACTERS + 1)


@verb(model, "ls", "List versions, of all models or of one.", "vedette model ls", "vedette model ls flow-threat")
@click.argument("name", default="", metavar="[N]", shell_complete=complete.models)
def model_ls(name: str) -> None:
    """List versions."""
    session = current()
    items = _versions(session, name)
    out = session.output
    if out.is_json:
        out.json(items)
    elif not items:
        out.line(
            "No models yet. Train one: vedette train RECIPE --data DATASET@N"
            "   or register one: vedette model register FILE.onnx --name N"
        )
    else:
        columns = (
            Column("VERSION"), Column("KIND", 2), Column("CREATED", 1), Column("SIZE", 3, right=True),
            Column("BUILDS", 4), Column("SIGNED BY", 5),
        )  # fmt: skip
        out.table(columns, [_version_row(item, session) for item in items])


def _versions(session: Session, name: str) -> list[views.Version]:
    from vedette.wire.convert import VERSION
    from vedette.wire.v1 import admin_pb2

    answer = session.client.ask("ListVersions", admin_pb2.ListVersionsRequest(model=name))
    return [VERSION.from_wire(item) for item in answer.versions]


def _version_row(item: views.Version, session: Session) -> list[str]:
    kinds = ", ".join(build.kind for build in item.builds)
    total = size(sum(build.bytes for build in item.builds))
    return [
        item.version,
        item.kind,
        ago(item.created, session.now()),
        total,
        kinds,
        ", ".join(item.signed_by) or "nobody",
    ]


@verb(
    model,
    "show",
    "Show a version: lineage, metrics, builds, who signed. Without a number the newest.",
    "vedette model show flow-threat",
    "vedette model show flow-threat:2",
)
@click.argument("name", metavar="N[:V]", shell_complete=complete.versions)
def model_show(name: str) -> None:
    """Show a version."""
    session = current()
    item = _version(session, name)
    out = session.output
    if out.is_json:
        out.json(item)
        return
    out.facts([
        ("version", item.version), ("kind", item.kind), ("created", when(item.created)), ("release", item.digest),
        ("signed by", ", ".join(item.signed_by) or "nobody"), ("schema", item.schema_digest),
        ("labels", ", ".join(item.labels)), ("threshold", three(item.threshold) if item.threshold else ""),
        *((f"made from {key}", value) for key, value in sorted(item.lineage.items())),
        *_tensor_facts(item), *_metric_facts(item.metrics),
    ])  # fmt: skip
    for build in item.builds:
        needs = ", ".join(f"{key}{value}" for key, value in sorted(build.requires.items()))
        out.line(clean(f"build   {build.kind}   {size(build.bytes)}   needs {needs or 'nothing'}   {build.digest}"))


def _version(session: Session, name: str) -> views.Version:
    from vedette.wire.convert import VERSION
    from vedette.wire.v1 import admin_pb2

    if ":" in name:
        return VERSION.from_wire(session.client.ask("GetVersion", admin_pb2.GetVersionRequest(version=name)))
    found = _versions(session, name)
    if not found:
        close = nearest(name, {item.model for item in _versions(session, "")})
        raise Missing(f"there is no model {name}", "", f"did you mean {close}?" if close else "see: vedette model ls")
    return max(found, key=lambda item: item.number)


@verb(
    model,
    "export",
    "Write a version into a file; with --for also what these appliances shall run from now on.",
    "vedette model export flow-threat:2 flow-threat-2.bundle --for site=island",
    "vedette model export flow-threat:2 edge-7.bundle --for name=edge-7",
    "vedette model export flow-threat:2 flow-threat-2.bundle",
)
@click.argument("name", metavar="N[:V]", shell_complete=complete.versions)
@click.argument("path", metavar="FILE.bundle", type=click.Path(dir_okay=False))
@click.option(
    "--for",
    "selector",
    metavar="SELECTOR",
    help="Appliances that no network reaches; '' is everyone. None that is connected.",
    shell_complete=complete.selectors,
)
def model_export(name: str, path: str, selector: str | None) -> None:
    """Export a version."""
    from vedette.wire.v1 import admin_pb2

    session, target = current(), Path(path)
    if not target.absolute().parent.is_dir():
        raise Missing(f"folder {target.parent} does not exist")
    version = _version(session, name).version
    request = admin_pb2.ExportModelRequest(version=version, assign=selector is not None, selector=selector or "")
    head = written_bundle(target, session.client.follow("ExportModel", request))
    out = session.output
    if out.is_json:
        out.json({"version": head.version, "file": str(target), "bytes": head.bytes, "agents": head.agents})
        return
    if selector is None:
        out.line(f"{target}: {head.version}, {size(head.bytes)}. No appliance takes it: it says for none to run it.")
        return
    out.line(f"{target}: {head.version} for {count(len(head.agents), 'appliance')}, {size(head.bytes)}.")
    for agent in head.agents[:_SHOWN_AGENTS]:
        out.line(clean(f"  {agent.agent}   assignment {agent.sequence}"))
    if len(head.agents) > _SHOWN_AGENTS:
        out.line(f"  … and {len(head.agents) - _SHOWN_AGENTS:,} more")
    out.line("They shall run it from now on, however it reaches them. Next, on each: vedette-agent import FILE.bundle")


_SHOWN_AGENTS = 20


def written_bundle(target: Path, messages: Iterator[Any]) -> views.ModelExport:
    """Write a bundle as it comes and return what it holds; what was there stays until the new one is whole.

    Raises:
        Failed: It cannot be written, or did not come whole.
    """
    from vedette.models.bundle import Bundle, BundleError
    from vedette.wire.convert import MODEL_EXPORT

    fresh = target.with_name(f".{target.name}.new")
    meter: Meter | None = None
    try:
        head = MODEL_EXPORT.from_wire(next(messages).head)
        meter, done = Meter(target.name, head.bytes), 0
        with fresh.open("wb") as file:
            for message in messages:
                done += file.write(message.data)
                meter.update(done)
            file.flush()
            os.fsync(file.fileno())
        with fresh.open("rb") as file:
            for _ in Bundle(file):
                pass
        fresh.replace(target)
    except BundleError as exc:
        raise Failed("the bundle did not come whole", str(exc), "vedette-controller check looks at the files") from exc
    except OSError as exc:
        raise Failed(f"{target} cannot be written", exc.strerror or str(exc), "choose another place") from exc
    finally:
        if meter is not None:
            meter.close()
        fresh.unlink(missing_ok=True)
    return head
