"""Imports and snapshots through the service, over real stores, real children and real captures."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.learning import CAPTURES, DataRoom, data_room, pieces
from vedette.controller.domain.errors import ControllerError, InvalidInput, NotFound, Refused, StoreFailed, TooLarge
from vedette.controller.jobs import flow_table
from vedette.models.flows.captures import read_capture
from vedette.models.flows.netflow import FlowDecoder

SOFTFLOWD = CAPTURES / "base/softflowd-v9.pcap.gz"
RECORDS = 32_289  # of it, as its README says
FLOWS_CSV = b"""src,dst,src_port,dst_port,proto,packets,bytes,start_ms,end_ms
10.0.0.1,10.0.0.2,1,22,6,3,300,1000,2000
not-an-address,10.0.0.2,1,22,6,3,300,1000,2000
10.0.0.1,fe80::1,1,22,6,3,300,5000,2000
10.0.0.1,10.0.0.2,1,70000,6,3,300,1000,2000
10.0.0.3,fe80::1,1,443,17,1,60,1500,1500
"""


@pytest.fixture
def room(tmp_path: Path) -> Iterator[DataRoom]:
    with data_room(tmp_path) as opened:
        yield opened


async def test_capture_becomes_a_part_with_its_provenance(room: DataRoom) -> None:
    done = await room.data("lab", SOFTFLOWD, "flows")
    assert (done.rows, done.rejected, done.already_there) == (RECORDS, 0, False)
    (part,) = room.store.contents("lab").parts
    table = pq.read_table(room.blobs.path(part.digest))
    assert np.array_equal(table["ordinal"].to_numpy(), np.arange(RECORDS))
    assert table["source_file"].unique().to_pylist() == ["softflowd-v9.pcap.gz"]
    assert part.exporters == ("127.0.0.1/0",)
    assert (part.first_ms, part.last_ms) == (int(np.min(table["start_ms"])), int(np.max(table["end_ms"])))


async def test_parts_give_back_the_records_of_the_decoder_bit_for_bit(room: DataRoom) -> None:
    with SOFTFLOWD.open("rb") as file:
        decoded = FlowDecoder().decode_many(read_capture(file))
    await room.data("lab", SOFTFLOWD, "flows")
    (part,) = room.store.contents("lab").parts
    assert flow_table.to_records(pq.read_table(room.blobs.path(part.digest))).tobytes() == decoded.tobytes()


async def test_the_same_bytes_again_add_nothing(room: DataRoom) -> None:
    first = await room.data("lab", FLOWS_CSV, "csv", "a.csv")
    again = await room.data("lab", FLOWS_CSV, "csv", "renamed.csv")
    assert again.already_there
    assert (again.digest, again.file_name) == (first.digest, "a.csv")
    assert (await room.service.dataset("lab")).rows == first.rows


async def test_the_same_bytes_sent_twice_at_once_are_one_import(room: DataRoom) -> None:
    both = await asyncio.gather(*(room.data("lab", FLOWS_CSV, "csv", name) for name in ("a.csv", "b.csv")))
    assert sorted(done.already_there for done in both) == [False, True]
    assert len((await room.service.dataset("lab")).imports) == 1


async def test_a_staging_folder_that_cannot_be_used_is_a_typed_error(room: DataRoom) -> None:
    (room.root / "staging").rmdir()
    with pytest.raises(StoreFailed) as caught:
        await room.data("lab", FLOWS_CSV, "csv", "a.csv")
    assert "staging" in caught.value.why


async def test_flow_csv_rejects_rows_by_reason_and_keeps_the_rest(room: DataRoom) -> None:
    done = await room.data("lab", FLOWS_CSV, "csv", "a.csv")
    assert done.rows == 2
    assert done.reject_reasons == {
        "src is no address": 1,
        "it ends before it starts": 1,
        "dst_port is absent or out of 0 to 65535": 1,
    }


async def test_flow_csv_and_capture_share_a_dataset(room: DataRoom) -> None:
    await room.data("lab", FLOWS_CSV, "csv", "a.csv")
    await room.data("lab", CAPTURES / "shifted/softflowd-v9.pcap.gz", "flows")
    snapshot = await room.service.create_snapshot("lab")
    assert snapshot.sources == ("a.csv", "softflowd-v9.pcap.gz")


async def test_table_keeps_its_types_and_rejects_bad_cells(room: DataRoom) -> None:
    await room.data("table", b"a,b,ok,label\n1,0.5,true,x\n2,,false,y\n", "csv", "first.csv")
    bad = b"a,b,ok,label\n1,0.5,true,x\nthree,1,true,x\n4,1e3,maybe,x\n5,1\n6,-2.5,true,x\n"
    done = await room.data("table", bad, "csv", "second.csv")
    assert done.rows == 2
    assert done.reject_reasons == {
        "a is not a whole number": 1,
        "ok is not true or false": 1,
        "2 values instead of 4": 1,
    }
    assert (await room.service.create_snapshot("table")).labels == {"x": 3, "y": 1}


async def test_gzipped_csv_and_parquet_are_read_alike(room: DataRoom) -> None:
    await room.data("one", b"a,b\n1,x\n2,y\n", "csv", "plain.csv")
    await room.data("one", gzip.compress(b"a,b\n3,z\n"), "csv", "packed.csv.gz")
    await room.data("one", parquet(pa.table({"a": pa.array([4], pa.int32()), "b": ["w"]})), "parquet", "t.parquet")
    assert (await room.service.dataset("one")).rows == 4


def parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


CUT_CAPTURE = gzip.decompress(SOFTFLOWD.read_bytes())[:100_000]
WHOLE_PARQUET = parquet(pa.table({"a": list(range(1000))}))


@pytest.mark.parametrize(
    ("content", "file_format", "says"),
    [
        pytest.param(CUT_CAPTURE, "flows", "ends inside a packet", id="cut capture"),
        pytest.param(SOFTFLOWD.read_bytes()[:50_000], "flows", "compress", id="cut gzip"),
        pytest.param(b"a,b\n1,2\n", "flows", "not a pcap", id="csv as flows"),
        pytest.param(WHOLE_PARQUET[:-9], "parquet", "no Parquet file, or cut", id="cut parquet"),
        pytest.param(b"a,b\n1,2\n", "parquet", "no Parquet file, or cut", id="csv as parquet"),
        pytest.param(WHOLE_PARQUET, "csv", "no CSV", id="parquet as csv"),
        pytest.param(b"a,b\n", "csv", "no rows", id="header alone"),
        pytest.param(b"a,b,a\n1,2,3\n", "csv", "column 'a' is there twice", id="column twice"),
        pytest.param(b"a,,c\n1,2,3\n", "csv", "column 2 has 0 characters", id="column without name"),
        pytest.param(b",".join(b"c%d" % n for n in range(5000)) + b"\n", "csv", "5000 columns", id="5000 columns"),
        pytest.param(parquet(pa.table({"a": [[1, 2]]})), "parquet", "column 'a' is of type list", id="nested"),
        pytest.param(parquet(pa.table({"a": pa.array([], pa.int64())})), "parquet", "no rows", id="empty parquet"),
        pytest.param(
            FLOWS_CSV.replace(b"proto", b"proto,kind").replace(b",6,", b",6,x,"), "csv", "'kind' is none", id="extra"
        ),
        pytest.param(b"a,b\n1,\xff\xfe\n", "csv", "no CSV", id="not UTF-8"),
    ],
)
async def test_unreadable_file_is_a_typed_error_and_makes_no_dataset(
    room: DataRoom, content: bytes, file_format: str, says: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        await room.data("lab", content, file_format, "f")
    assert says in caught.value.why
    assert await room.service.datasets() == ()
    assert room.leftovers() == []


@pytest.mark.parametrize(
    ("dataset", "file_format", "name"),
    [("lab", "pcapng", "f"), ("../lab", "csv", "f"), ("lab", "csv", "a\nb"), ("lab", "csv", "dir/")],
)
async def test_bad_names_are_refused_before_the_upload(
    room: DataRoom, dataset: str, file_format: str, name: str
) -> None:
    with pytest.raises(InvalidInput):
        await room.data(dataset, b"a\n1\n", file_format, name)


async def test_file_of_another_form_is_refused_and_the_column_named(room: DataRoom) -> None:
    await room.data("one", b"a,b\n1,x\n", "csv", "1.csv")
    with pytest.raises(Refused) as caught:
        await room.data("one", b"a,c\n1,x\n", "csv", "2.csv")
    assert "column 'b'" in caught.value.why
    with pytest.raises(Refused) as caught:
        await room.data("one", FLOWS_CSV, "csv", "3.csv")
    assert "holds table" in caught.value.why


async def test_upload_over_the_limit_is_refused_by_announcement_and_by_size(tmp_path: Path) -> None:
    with data_room(tmp_path, max_upload_bytes=1000) as room:
        with pytest.raises(TooLarge) as caught:
            await room.service.import_data("lab", "csv", "f", 5000, pieces(b"a"))
        assert "5000 bytes, limit 1000" in caught.value.why
        with pytest.raises(TooLarge):
            await room.service.import_data("lab", "csv", "f", 0, pieces(b"a" * 5000, 100))
        with pytest.raises(InvalidInput, match="not whole"):
            await room.service.import_data("lab", "csv", "f", 100, pieces(b"a,b\n"))


async def test_file_that_unpacks_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    with data_room(tmp_path, max_upload_bytes=1 << 20) as room, pytest.raises(ControllerError) as caught:
        await room.data("lab", gzip.compress(b"a\n" + b"123456789\n" * 4_000_000), "csv", "bomb.gz")
    assert "over 1048576 bytes" in caught.value.why


async def test_parquet_whose_rows_are_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"a": np.zeros(1_000_000, np.int64)}), sink, compression="zstd")
    with data_room(tmp_path, max_upload_bytes=1 << 20) as room, pytest.raises(TooLarge) as caught:
        await room.data("lab", sink.getvalue(), "parquet", "bomb.parquet")
    assert len(sink.getvalue()) < 1 << 20
    assert "over 1048576 bytes" in caught.value.why


async def test_quoted_column_names_keep_their_commas(room: DataRoom) -> None:
    await room.data("lab", b'"a,b",c\n1,2\n', "csv", "q.csv")
    assert room.store.contents("lab").form.columns == (("a,b", "int64"), ("c", "int64"))


async def test_label_windows_for_a_table_are_refused(room: DataRoom) -> None:
    await room.data("t", b"a,label\n1,x\n", "csv", "t.csv")
    with pytest.raises(Refused) as caught:
        await room.labels("t", CAPTURES / "base/labels.json")
    assert caught.value.code == "labels-unusable"


async def test_list_of_datasets_has_imports_and_the_newest_snapshot_of_each(room: DataRoom) -> None:
    for name in (b"1", b"2"):
        await room.data("t", b"a\n" + name + b"\n", "csv", f"{name.decode()}.csv")
        await room.service.create_snapshot("t")
    (short,) = await room.service.datasets()
    assert [item.file_name for item in short.imports] == ["1.csv", "2.csv"]
    assert [item.snapshot for item in short.snapshots] == ["t@2"]


async def test_snapshot_of_the_same_content_is_the_same_snapshot(room: DataRoom) -> None:
    await room.data("lab", SOFTFLOWD, "flows")
    await room.labels("lab", CAPTURES / "base/labels.json")
    first = await room.service.create_snapshot("lab")
    assert (first.snapshot, first.rows) == ("lab@1", RECORDS)
    await room.labels("lab", CAPTURES / "base/labels.json")
    assert await room.service.create_snapshot("lab") == first
    await room.data("lab", CAPTURES / "base2/softflowd-v9.pcap.gz", "flows", "base2.pcap.gz")
    second = await room.service.create_snapshot("lab")
    assert (second.snapshot, second.sources) == ("lab@2", ("softflowd-v9.pcap.gz", "base2.pcap.gz"))
    assert (await room.service.snapshot("lab@1"))[0] == first


async def test_two_controllers_give_one_digest_to_one_content(tmp_path: Path) -> None:
    digests = set()
    for name in ("a", "b"):
        with data_room(tmp_path / name) as room:
            await room.data("lab", SOFTFLOWD, "flows")
            await room.labels("lab", CAPTURES / "base/labels.json")
            digests.add((await room.service.create_snapshot("lab")).digest)
    assert len(digests) == 1


async def test_label_files_of_two_captures_add_up(room: DataRoom) -> None:
    await room.data("lab", SOFTFLOWD, "flows")
    await room.labels("lab", CAPTURES / "base/labels.json")
    alone = await room.service.create_snapshot("lab")
    await room.data("lab", CAPTURES / "base2/softflowd-v9.pcap.gz", "flows", "base2.pcap.gz")
    await room.labels("lab", CAPTURES / "base2/labels.json")
    both = await room.service.create_snapshot("lab")
    assert all(both.labels[name] >= count for name, count in alone.labels.items())
    assert sum(both.labels.values()) == both.rows
    assert both.findings == ()


async def test_findings_tell_what_a_person_should_know(room: DataRoom) -> None:
    await room.data("lab", CAPTURES / "shifted/softflowd-v9.pcap.gz", "flows")
    unlabelled = await room.service.create_snapshot("lab")
    assert [f.code for f in unlabelled.findings] == ["no-labels"]
    await room.labels("lab", CAPTURES / "base/labels.json")  # of other minutes
    wrong = await room.service.create_snapshot("lab")
    windows = len(json.loads(room.text(CAPTURES / "base/labels.json"))["labels"])
    assert [f.code for f in wrong.findings] == ["no-labels"] + ["label-unmatched"] * windows
    await room.data("t", b"a,label\n,x\n,x\n1,x\n", "csv", "t.csv")
    assert [f.code for f in (await room.service.create_snapshot("t")).findings] == ["one-class", "many-nulls"]


async def test_clock_that_jumps_back_is_a_finding(room: DataRoom) -> None:
    head, row = FLOWS_CSV.split(b"\n")[0], b"10.0.0.1,10.0.0.2,1,22,6,3,300,%d,%d\n"
    times = [100_000, 200_000, 50_000, 60_000, 170_000, 10_000]
    await room.data("lab", head + b"\n" + b"".join(row % (t, t) for t in times), "csv", "j.csv")
    found = [f for f in (await room.service.create_snapshot("lab")).findings if f.code == "clock-jump"]
    assert "j.csv: the record clock jumps back 2 times" in found[0].text


async def test_what_does_not_exist_is_not_found_and_the_text_leads_on(room: DataRoom) -> None:
    for call in (room.service.create_snapshot("lab"), room.service.snapshot("lab@1"), room.service.dataset("lab")):
        with pytest.raises(NotFound) as caught:
            await call
        assert caught.value.remedy
    with pytest.raises(InvalidInput):
        await room.service.snapshot("lab")


async def test_stored_state_is_there_after_a_restart(tmp_path: Path) -> None:
    with data_room(tmp_path) as room:
        await room.data("lab", FLOWS_CSV, "csv", "a.csv")
        before = await room.service.create_snapshot("lab")
    with data_room(tmp_path) as room:
        assert (await room.service.snapshot("lab@1"))[0] == before
        assert (await room.data("lab", FLOWS_CSV, "csv", "a.csv")).already_there
