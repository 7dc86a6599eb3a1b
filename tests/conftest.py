"What the tests share: where things lie, real samples, and folders of runs"
import os, shutil, tempfile
from pathlib import Path
from types import SimpleNamespace
import pytest

root = Path(__file__).resolve().parents[1]
samples = Path(os.environ.get('CROPNB_SAMPLES') or root.parent/'shared'/'data')

def pytest_configure(config):
    "All workers share one folder of runs: what `CROPNB_RUNS` names, else one for this session"
    if os.environ.get('CROPNB_RUNS'): return
    folder = tempfile.TemporaryDirectory(prefix='cropnb-runs-')
    os.environ['CROPNB_RUNS'] = folder.name
    config.add_cleanup(folder.cleanup)

@pytest.fixture
def sample():
    "Path of a real sample; the test is skipped where it is not available"
    def get(name):
        if not (samples/name).exists():
            pytest.skip(f'real sample {name} is not in {samples} (set CROPNB_SAMPLES)')
        return samples/name
    return get

@pytest.fixture
def fresh_runs(tmp_path, monkeypatch):
    "An empty folder of runs"
    monkeypatch.setenv('CROPNB_RUNS', str(tmp_path/'runs'))
    return tmp_path/'runs'

@pytest.fixture(scope='session')
def smoke():
    "The smallest simulated world as runs, made once for all workers: recipe, data, pairs"
    from cropnb.data import pairs, resolve
    from cropnb.engine.recipes import recipe
    r = recipe('smoke')
    data = resolve('twin', 'smoke', 0)
    return SimpleNamespace(recipe=r, data=data, pairs=pairs(data, r, 0))

@pytest.fixture
def runs_with(tmp_path, monkeypatch):
    "Called with shared runs: from now on a new folder is used, which holds these runs alone"
    def copy(*runs):
        fresh = tmp_path/'runs'
        for run in runs: shutil.copytree(run.get(), fresh/run.stage/run.id)
        monkeypatch.setenv('CROPNB_RUNS', str(fresh))
        return fresh
    return copy

@pytest.fixture
def record_steps(monkeypatch):
    "Called: from now on steps are recorded as on a GPU, replayed plainly, and listed"
    from cropnb.engine import graph
    seen = []
    class Played:
        "In place of a CUDA graph"
        def __init__(self, step): self.step = step
        def replay(self):
            seen.append('replayed')
            self.step()
    def record(step, generators):
        seen.append('recorded')
        return Played(step)
    def on_own_stream(step):
        seen.append('plain')
        step()
    init = graph.Recorded.__init__
    def init_anywhere(self, *args, **kwargs):
        init(self, *args, **kwargs)
        self.first = 3
    def start():
        monkeypatch.setattr(graph, 'record', record)
        monkeypatch.setattr(graph, 'on_own_stream', on_own_stream)
        monkeypatch.setattr(graph.Recorded, '__init__', init_anywhere)
        return seen
    return start
