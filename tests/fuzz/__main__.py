"""Run libFuzzer on `check`; its options follow, such as -runs=100000.

Inputs that reached new code are kept in .fuzz/corpus, findings in .fuzz/finding-*.
"""

import hashlib
import resource
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["consumer"]):
    from tests.fuzz.check import check, seeds

FOLDER = Path(".fuzz")
MAX_MEMORY_MB = 500
"""What reading may take beyond what the program takes without any input."""


def main() -> None:
    """Write the seeds, then fuzz."""
    corpus = FOLDER / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in seeds():
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
        check(seed)
    used_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    options = (
        f"-rss_limit_mb={used_mb + MAX_MEMORY_MB}",
        f"-artifact_prefix={FOLDER}/finding-",
        "-timeout=60",
        "-max_len=65536",
        "-print_final_stats=1",
    )
    atheris.Setup([sys.argv[0], *options, *sys.argv[1:], str(corpus)], check)
    atheris.Fuzz()


main()
