"""Archives of every layout give the same messages; files are complete or not there."""

import base64
import gzip
import io
import json
import tarfile
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import fastavro
import pyarrow.parquet
import pytest

from consumer import files, writers
from consumer import message as message_module
from consumer.avro import Decoder, decode_summary, encode_body
from consumer.container import MAX_BYTES, read_blocks, read_header
from consumer.errors import ArchiveError
from consumer.files import ArchiveSource, FileSink
from consumer.message import Message, Window
from consumer.step import Step
from consumer.writers import AvroWriter, ParquetWriter
from sedflow_core import Artifact

Record = dict[str, Any]
Write = Callable[..., bytes]


def read(*archives: Path | str, **options: Any) -> list[Message]:
    source = ArchiveSource([str(archive) for archive in archives], **options)
    messages: list[Message] = []
    while not source.exhausted:
        messages += source.poll(3, 0.01)
    source.close()
    return messages


def alert_ids(messages: Iterable[Message]) -> list[int]:
    decoder = Decoder()
    return [decoder.decode(message.value, message.key).record["alertId"] for message in messages]


@pytest.fixture
def alerts(make_alert: Callable[..., Record]) -> list[Record]:
    return [make_alert(i) for i in range(10)]


@pytest.fixture
def packets(alerts: list[Record], write_container: Write) -> dict[str, bytes]:
    """One container per alert, by file name."""
    return {f"{i:02d}.avro": write_container([alert]) for i, alert in enumerate(alerts)}


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("codec", ["null", "deflate", "snappy"])
def test_container_of_several(
    tmp_path: Path, alerts: list[Record], write_container: Write, codec: str
) -> None:
    path = tmp_path / "night.avro"
    path.write_bytes(write_container(alerts, codec))
    messages = read(path)
    assert alert_ids(messages) == list(range(10))
    assert [message.value for message in messages] == [
        encode_body(alert, "hostAlert") for alert in alerts
    ]
    assert {message.topic for message in messages} == {"night.avro"}
    assert [message.offset for message in messages] == list(range(10))


def test_container_of_one_keeps_its_bytes(tmp_path: Path, packets: dict[str, bytes]) -> None:
    path = tmp_path / "one.avro"
    path.write_bytes(packets["03.avro"])
    (message,) = read(path)
    assert (message.value, message.key) == (packets["03.avro"], None)


def test_folder_glob_and_gzip(tmp_path: Path, packets: dict[str, bytes]) -> None:
    (tmp_path / "sub").mkdir()
    for i, (name, packet) in enumerate(packets.items()):
        if i % 2:
            (tmp_path / "sub" / f"{name}.gz").write_bytes(gzip.compress(packet))
        else:
            (tmp_path / name).write_bytes(packet)
    (tmp_path / "notes.txt").write_text("not an alert")
    assert alert_ids(read(tmp_path)) == [0, 2, 4, 6, 8, 1, 3, 5, 7, 9]
    assert alert_ids(read(tmp_path / "*.avro")) == [0, 2, 4, 6, 8]
    assert alert_ids(read(tmp_path / "**" / "*.gz")) == [1, 3, 5, 7, 9]


def test_what_is_written_meanwhile_is_not_read(tmp_path: Path, packets: dict[str, bytes]) -> None:
    """Such as the replay's own output, beside the alerts that a glob names."""
    (tmp_path / "00.avro").write_bytes(packets["00.avro"])
    (tmp_path / "left.avro.partial").write_bytes(packets["02.avro"])
    source = ArchiveSource([str(tmp_path / "*")])
    (tmp_path / "summaries.avro.partial").write_bytes(packets["01.avro"])
    assert alert_ids(source.poll(10, 0.0)) == [0]


@pytest.mark.parametrize(
    ("name", "mode"), [("n.tar", "w"), ("n.tar.gz", "w:gz"), ("n.tgz", "w:gz")]
)
def test_tar(tmp_path: Path, packets: dict[str, bytes], name: str, mode: str) -> None:
    members = packets | {"readme.txt": b"not an alert"}
    path = write_tar(tmp_path / name, members, mode)
    messages = read(path)
    assert [message.value for message in messages] == list(packets.values())
    assert {message.topic for message in messages} == {name}


def test_tar_member_names_are_never_paths(tmp_path: Path, packets: dict[str, bytes]) -> None:
    path = write_tar(tmp_path / "n.tar.gz", {"../../escape.avro": packets["00.avro"]})
    assert alert_ids(read(path)) == [0]
    assert [entry.name for entry in tmp_path.iterdir()] == ["n.tar.gz"]


def test_several_archives_and_a_limit(
    tmp_path: Path, alerts: list[Record], write_container: Write
) -> None:
    for name in "ab":
        (tmp_path / f"{name}.avro").write_bytes(write_container(alerts))
    messages = read(tmp_path / "a.avro", tmp_path / "b.avro", limit=13)
    assert alert_ids(messages) == [*range(10), 0, 1, 2]
    assert (messages[-1].topic, messages[-1].offset) == ("b.avro", 2)


def test_rolled_back_messages_are_handed_out_again(
    tmp_path: Path, alerts: list[Record], write_container: Write
) -> None:
    path = tmp_path / "a.avro"
    path.write_bytes(write_container(alerts))
    source = ArchiveSource([str(path)], limit=7)
    first, last = source.poll(4, 0.0), source.poll(4, 0.0)
    assert source.exhausted
    source.rewind(last)
    assert not source.exhausted
    assert (alert_ids(first), source.poll(4, 0.0)) == ([0, 1, 2, 3], last)
    assert alert_ids(last) == [4, 5, 6]


def test_a_window_is_bounded_in_bytes(
    tmp_path: Path, alerts: list[Record], write_container: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.avro"
    path.write_bytes(write_container(alerts))
    size = len(read(path)[0].value or b"")
    monkeypatch.setattr(message_module, "MAX_WINDOW_BYTES", int(2.5 * size))
    source, windows = ArchiveSource([str(path)]), []
    while not source.exhausted:
        windows.append(alert_ids(source.poll(4, 0.0)))
    assert windows == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]


def test_rate(tmp_path: Path, alerts: list[Record], write_container: Write) -> None:
    path = tmp_path / "a.avro"
    path.write_bytes(write_container(alerts))
    start = time.monotonic()
    assert len(read(path, rate=50)) == 10
    assert time.monotonic() - start >= 9 / 50


def test_a_rate_below_one_in_each_wait(
    tmp_path: Path, alerts: list[Record], write_container: Write
) -> None:
    """Nothing is handed out while a wait is cut short so that a stop is heard."""
    path = tmp_path / "a.avro"
    path.write_bytes(write_container(alerts))
    start = time.monotonic()
    assert len(read(path, rate=1.25, limit=2)) == 2
    assert time.monotonic() - start >= 0.8


def test_a_rate_waits_whatever_the_delay_of_a_batch(
    tmp_path: Path, alerts: list[Record], write_container: Write
) -> None:
    path = tmp_path / "a.avro"
    path.write_bytes(write_container(alerts))
    source, n_polls = ArchiveSource([str(path)], rate=20), 0
    while not source.exhausted:
        source.poll(4, 0.0)
        n_polls += 1
    assert n_polls <= 2 * len(alerts)


def test_unreadable_members_become_messages(tmp_path: Path, packets: dict[str, bytes]) -> None:
    """What cannot be unpacked is passed on as it is: its dead letter shows the bytes."""
    cut = gzip.compress(packets["00.avro"])[:-20]
    bomb = gzip.compress(bytes(MAX_BYTES + 1))
    path = write_tar(
        tmp_path / "n.tar", {"cut.avro.gz": cut, "bomb.avro.gz": bomb, "bad.avro": b"rubbish"}, "w"
    )
    assert [message.value for message in read(path)] == [cut, bomb, b"rubbish"]


@pytest.mark.parametrize("level", [0, 9])
def test_a_large_packed_container_is_split(
    tmp_path: Path,
    alerts: list[Record],
    write_container: Write,
    monkeypatch: pytest.MonkeyPatch,
    level: int,
) -> None:
    """Packed it may be small or as large as before."""
    path = tmp_path / "night.avro.gz"
    whole = write_container(alerts)
    members = (gzip.compress(part, level) for part in (whole[:1000], whole[1000:]))
    path.write_bytes(b"".join(members))
    monkeypatch.setattr(files, "MAX_BYTES", len(whole) - 1)
    assert alert_ids(read(path)) == list(range(10))


def test_what_is_no_alert_may_be_large(tmp_path: Path, packets: dict[str, bytes]) -> None:
    members = {"image.fits": bytes(MAX_BYTES + 1), **packets}
    path = write_tar(tmp_path / "n.tar.gz", members)
    assert len(read(path)) == len(packets)
    with pytest.raises(ArchiveError, match=r"large\.avro: expected a member of at most"):
        read(write_tar(tmp_path / "m.tar", {"large.avro": bytes(MAX_BYTES + 1)}, "w"))


def test_a_broken_container_loses_nothing_in_silence(
    tmp_path: Path, alerts: list[Record], write_container: Write
) -> None:
    path = tmp_path / "a.avro"
    path.write_bytes(write_container(alerts[:5]) + b"rubbish")
    messages = read(path)
    assert alert_ids(messages[:5]) == list(range(5))
    assert [message.value for message in messages[5:]] == [b"rubbish"]


def test_a_cut_container_keeps_its_bytes(tmp_path: Path, packets: dict[str, bytes]) -> None:
    """What breaks before its first alert is passed on whole, header included."""
    path = tmp_path / "a.avro"
    path.write_bytes(packets["00.avro"][:-1])
    assert [(message.value, message.key) for message in read(path)] == [(path.read_bytes(), None)]


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ({"type": tarfile.REGTYPE, "name": "huge.avro"}, "huge.avro: expected a member of at most"),
        ({"type": tarfile.XHDTYPE, "name": "pax"}, "pax: expected a member of at most"),
        ({"type": tarfile.GNUTYPE_LONGNAME, "name": "long"}, "long: expected a member of at most"),
    ],
)
def test_huge_tar_members_are_refused_unread(tmp_path: Path, member: Record, message: str) -> None:
    """The header alone promises terabytes."""
    info = tarfile.TarInfo(member["name"])
    info.type, info.size = member["type"], 2**42
    path = tmp_path / "n.tar"
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(ArchiveError, match=message):
        read(path)


def test_broken_tar(tmp_path: Path, packets: dict[str, bytes]) -> None:
    path = write_tar(tmp_path / "n.tar.gz", packets)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ArchiveError, match=r"n\.tar\.gz: expected a readable archive"):
        read(path)


@pytest.mark.parametrize(
    "harm",
    [
        lambda first, rest: first,
        lambda first, rest: first + rest[:100],
        lambda first, rest: first + rest[:600],
        lambda first, rest: first + bytes([rest[0] ^ 1]) + rest[1:],
    ],
    ids=["cut before a header", "cut in a header", "cut in an alert", "broken header"],
)
def test_unpacked_tar_harmed_after_its_first_member(
    tmp_path: Path, packets: dict[str, bytes], harm: Callable[[bytes, bytes], bytes]
) -> None:
    path = write_tar(tmp_path / "n.tar", packets, "w")
    with tarfile.open(path) as archive:
        second = archive.getmembers()[1].offset
    whole = path.read_bytes()
    path.write_bytes(harm(whole[:second], whole[second:]))
    with pytest.raises(ArchiveError, match=r"n\.tar: expected a readable archive"):
        read(path)


def test_what_stands_behind_the_end_of_a_tar_is_not_left_in_silence(
    tmp_path: Path, packets: dict[str, bytes]
) -> None:
    """A hole of zeros at a header, or a second archive, looks like the end to tarfile."""
    path = write_tar(tmp_path / "n.tar", packets, "w")
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(ArchiveError, match=r"n\.tar: expected the archive's end"):
        read(path)


def test_a_packed_tar_is_checked_to_its_end(tmp_path: Path, packets: dict[str, bytes]) -> None:
    path = write_tar(tmp_path / "n.tar.gz", packets)
    whole = bytearray(path.read_bytes())
    whole[-8] ^= 1  # of the checksum
    path.write_bytes(whole)
    with pytest.raises(ArchiveError, match=r"n\.tar\.gz: expected a readable archive"):
        read(path)


def test_missing_archive(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"expected a file, folder or glob with alerts"):
        ArchiveSource([str(tmp_path / "no*.avro")])


def test_real_archive(shared_data: Path) -> None:
    messages = read(shared_data / "alerts" / "fink_lsst_part-2-918301.avro")
    decoder = Decoder()
    names = {decoder.decode(message.value, message.key).schema_name for message in messages}
    assert (len(messages), names) == (7, {"topLevelRecord.value"})


@pytest.fixture
def window(step: Step, make_message: Callable[..., Message], now: Callable[[], datetime]) -> Window:
    good = [make_message(1), make_message(2, redshift=None), make_message(3, redshift=5.0)]
    bad = Message(b"\xff\x00rubbish", b"k", (("h", b"v"), ("n", None)), "hosts", 1, 9, 7)
    return step([*good, bad], replay=True, now=now)


def test_avro_file(tmp_path: Path, window: Window) -> None:
    path = tmp_path / "out.avro"
    sink = FileSink(path, AvroWriter)
    sink.publish(window)
    sink.publish(window)
    assert not path.exists()
    sink.close()
    with path.open("rb") as stream:
        records = list(fastavro.reader(stream))
    assert records == [decode_summary(result.value) for result in window.results] * 2
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out.avro", "out.avro.dead.jsonl"]


def test_avro_blocks_are_bounded(
    tmp_path: Path, window: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many summaries are written at once: a reader bounds the blocks that it takes."""
    monkeypatch.setattr(writers, "BLOCK_BYTES", 3_000)
    path = tmp_path / "out.avro"
    writer = AvroWriter(path)
    values = [result.value for result in window.results] * 4
    writer.write(values)
    writer.finish()
    with path.open("rb") as stream:
        sizes = [len(block.records) for block in read_blocks(stream, read_header(stream))]
        stream.seek(0)
        records = list(fastavro.reader(stream))
    assert len(sizes) > 1
    assert max(sizes) <= max(3_000, *map(len, values))
    assert records == [decode_summary(value) for value in values]


def test_avro_file_is_reproducible(tmp_path: Path, window: Window) -> None:
    for name in "ab":
        sink = FileSink(tmp_path / name, AvroWriter)
        sink.publish(window)
        sink.close()
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_dead_letters_keep_their_bytes(tmp_path: Path, window: Window) -> None:
    sink = FileSink(tmp_path / "out.avro", AvroWriter)
    sink.publish(window)
    sink.close()
    (line,) = (tmp_path / "out.avro.dead.jsonl").read_text().splitlines()
    letter = json.loads(line)
    assert base64.b64decode(letter["value"]) == b"\xff\x00rubbish"
    assert base64.b64decode(letter["key"]) == b"k"
    assert letter["headers"] == [["h", base64.b64encode(b"v").decode()], ["n", None]]
    assert (letter["topic"], letter["partition"], letter["offset"]) == ("hosts", 1, 9)
    assert (letter["stage"], letter["class"], letter["timestampMs"]) == ("decode", "DecodeError", 7)


def test_no_dead_letters_no_file(tmp_path: Path, window: Window) -> None:
    """Nor one of an earlier run."""
    for published in (window, Window(window.consumed[:3], window.results, ())):
        sink = FileSink(tmp_path / "out.avro", AvroWriter)
        sink.publish(published)
        sink.close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.avro"]


def test_unwritable_file(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="expected a writable file"):
        FileSink(tmp_path / "no" / "out.avro", AvroWriter)


def test_parquet_file(tmp_path: Path, window: Window, tiny: Artifact) -> None:
    path = tmp_path / "out.parquet"
    sink = FileSink(path, lambda partial: ParquetWriter(partial, tiny))
    sink.publish(window)
    sink.close()
    rows = pyarrow.parquet.read_table(path).to_pylist()
    summaries = [decode_summary(result.value) for result in window.results]
    for row, summary in zip(rows, summaries, strict=True):
        assert (row["alertId"], row["status"]) == (summary["alertId"], summary["status"])
        assert row["inputs_flux"] == summary["inputs"]["flux"]
        assert row["host_catalog"] == summary["host"]["catalog"]
        assert row["artifactSha256"] == tiny.sha256
        assert row["startTimestamp"] == summary["startTimestamp"]
        assert row["statusReasons"] == summary["statusReasons"]
    first = summaries[0]["posterior"]
    assert rows[0]["log_mstar_q50"] == first["parameters"]["log_mstar"]["q50"]
    assert rows[0]["a_v_std"] == first["derived"]["a_v"]["std"]
    assert rows[0]["p_quiescent"] == first["probabilities"]["quiescent"]
    assert rows[0]["covariance"] == first["covariance"]
    assert rows[1]["log_mstar_q50"] is rows[1]["covariance"] is None
    assert rows[0].keys() >= {f"assumption_{name}" for name in tiny.assumptions}
