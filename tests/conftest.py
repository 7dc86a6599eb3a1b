import os
from pathlib import Path
import pytest

root = Path(__file__).resolve().parents[1]
samples = Path(os.environ.get('CROPNB_SAMPLES') or root.parent/'shared'/'data')

@pytest.fixture
def sample():
    "Path of a real sample; the test is skipped where it is not at hand"
    def get(name):
        if not (samples/name).exists(): pytest.skip(f'real sample {name} is not in {samples} (set CROPNB_SAMPLES)')
        return samples/name
    return get

@pytest.fixture
def fresh_runs(tmp_path, monkeypatch):
    "An empty folder of runs"
    monkeypatch.setenv('CROPNB_RUNS', str(tmp_path/'runs'))
    return tmp_path/'runs'
