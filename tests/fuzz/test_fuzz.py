"""Some of the cases of ``make fuzz``: damaged files give right work or a clear error."""

import pytest

from tests.fuzz.cases import run_case
from tests.fuzz.kinds import KINDS
from tests.fuzz.material import material

CASES = {"csv": 60, "jsonl": 60, "json": 40, "conll": 40, "parquet": 30, "yaml": 6, "checkpoint-cli": 5}
OTHERS = 12


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_damaged_files(kind, tmp_path, monkeypatch):
    material()
    wrong = {}
    for seed in range(CASES.get(kind.name, OTHERS)):
        folder = tmp_path / str(seed)
        folder.mkdir()
        monkeypatch.chdir(folder)
        outcome = run_case(kind, seed, folder)
        if outcome.startswith("WRONG"):
            wrong[seed] = outcome
    assert not wrong
