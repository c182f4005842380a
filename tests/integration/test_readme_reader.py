"""The README's reader of summaries needs nothing of this project to print what was published."""

import json
import re
import subprocess
import sys
from pathlib import Path

from confluent_kafka import Producer

from consumer.avro import encode, schemas_path

from .conftest import Topics

ROOT = Path(__file__).parents[2]
SAMPLE = schemas_path() / "1" / "2" / "sample_data" / "posteriorSummary.json"


def test_the_reader_prints_a_trusted_mass(bootstrap: str, topics: Topics) -> None:
    text = (ROOT / "README.md").read_text()
    (program,) = re.findall(r"```python\n(import io, json\n.*?)```", text, flags=re.DOTALL)
    for old, new in (
        ("localhost:9092", bootstrap),
        ("sedflow.v1_0.posteriorSummary", topics.summaries),
    ):
        assert old in program
        program = program.replace(old, new)
    summary = json.loads(SAMPLE.read_text()) | {"status": "OK"}
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
