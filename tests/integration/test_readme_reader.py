"""The documents' reader and writer need nothing of this project but the schemas."""

import json
import re
import subprocess
import sys
from pathlib import Path

from confluent_kafka import Consumer, Producer

from consumer.avro import Decoder, encode, schemas_path

from .conftest import Topics

ROOT = Path(__file__).parents[2]
SAMPLES = schemas_path() / "1" / "2" / "sample_data"


def find_program(path: str, elsewhere: dict[str, str]) -> str:
    """Return the program of a document, with what it names replaced by what is here."""
    text = (ROOT / path).read_text()
    (program,) = re.findall(r"```python\n(import io.*?)```", text, flags=re.DOTALL)
    for old, new in elsewhere.items():
        assert old in program
        program = program.replace(old, new)
    return str(program)


def test_the_writer_makes_an_alert(bootstrap: str, topics: Topics) -> None:
    elsewhere = {"localhost:9092": bootstrap, "sedflow.v1_0.hostAlert": topics.alerts}
    program = find_program("schemas/README.md", elsewhere)
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
    consumer = Consumer(
        {"bootstrap.servers": bootstrap, "group.id": "r", "auto.offset.reset": "earliest"}
    )
    consumer.subscribe([topics.alerts])
    message = consumer.poll(30)
    consumer.close()
    assert message is not None
    alert = json.loads((SAMPLES / "hostAlert.json").read_text())
    decoded = Decoder().decode(message.value())
    expected = Decoder().decode(encode(alert, "hostAlert"))
    assert (decoded, message.key().decode()) == (expected, alert["objectId"])


def test_the_reader_prints_a_trusted_mass(bootstrap: str, topics: Topics) -> None:
    elsewhere = {"localhost:9092": bootstrap, "sedflow.v1_0.posteriorSummary": topics.summaries}
    program = find_program("README.md", elsewhere)
    summary = json.loads((SAMPLES / "posteriorSummary.json").read_text()) | {"status": "OK"}
    doubted = {**summary, "objectId": "doubted", "trust": {**summary["trust"], "trusted": False}}
    producer = Producer({"bootstrap.servers": bootstrap})
    for record in (doubted, summary):
        producer.produce(topics.summaries, encode(record, "posteriorSummary"), partition=0)
    assert producer.flush(30) == 0
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        try:
            name, *quantiles = reader.stdout.readline().split()
        finally:
            reader.kill()
    mass = summary["posterior"]["derived"]["log_mstar_surviving"]
    assert name == summary["objectId"]
    assert [float(q) for q in quantiles] == [mass["q16"], mass["q50"], mass["q84"]]
