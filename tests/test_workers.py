"A grid among processes: every run once, a dead worker's taken over, the same bytes however shared"
import os, signal, subprocess, sys, time
import optuna, pytest
from conftest import root
from cropnb.data import pairs, resolve, series
from cropnb.downstream import grid
from cropnb.engine.recipes import recipe
from cropnb.engine.records import Run
from cropnb.engine.workers import queue, share, work
from cropnb.pretrain import encoders

def start(script, *args):
    "Run a script in a process group of its own, with its runs beside it"
    env = os.environ|dict(CROPNB_RUNS=str(script.parent/'runs'))
    cmd = [sys.executable, script, *args]
    return subprocess.Popen(cmd, cwd=root, env=env, start_new_session=True)

# ---------------------------------------------------------------- a killed worker
toy = '''
import os, sys, time
from pathlib import Path
from cropnb.engine.records import Run
from cropnb.engine.workers import work

def make(folder, recipe):
    with open(Path(sys.argv[2])/'starts', 'a') as f: f.write(f"{recipe['k']} {os.getpid()}\\n")
    time.sleep(.7)
    return dict(square=recipe['k']**2)

if __name__=='__main__':
    runs = [Run('toy', dict(k=k), make) for k in range(8)]
    work(runs, 1, sys.argv[1], beat=1)
'''

def starts(folder):
    "Run and process of each start, in order"
    f = folder/'starts'
    return [line.split() for line in f.read_text().splitlines()] if f.exists() else []

def wait_until(condition, seconds=60):
    end = time.time()+seconds
    while not condition() and time.time()<end: time.sleep(.02)

def both_at_work(folder): return len({pid for _,pid in starts(folder)})==2

@pytest.mark.slow
def test_a_killed_worker_is_taken_over(tmp_path):
    "Two workers at one SQLite queue; one is killed (-9) inside a run"
    script = tmp_path/'toy.py'
    script.write_text(toy)
    db = f'sqlite:///{tmp_path}/grid.db'
    workers = [start(script, db, tmp_path) for _ in range(2)]
    wait_until(lambda: both_at_work(tmp_path))
    k, pid = starts(tmp_path)[-1]
    group = os.getpgid(int(pid))
    victim, = [w for w in workers if w.pid==group]
    other, = [w for w in workers if w.pid!=group]
    os.killpg(group, signal.SIGKILL)
    victim.wait()
    assert other.wait(timeout=90)==0
    runs = tmp_path/'runs'/'toy'
    assert len(list(runs.glob('*/result.json')))==8
    assert not list(runs.glob('*.part'))
    begun = [k for k,_ in starts(tmp_path)]
    assert begun.count(k)==2, begun   # the killed run twice
    assert len(begun)==9, begun       # every other once

# ---------------------------------------------------------------- the same bytes
def small_grid():
    "Trainings on two encoders"
    r = recipe('smoke', epochs=2)
    data = resolve('twin', 'smoke', 0)
    variants = encoders(pairs(data, r, 0), r, 0)
    two = {k: variants[k] for k in ('supervised', 'untrained')}
    return list(grid(series(1, data, r, 0), two, 1, 'inception', r, 0).values())

def contents(runs):
    names = ('result.json', 'predictions.npy', 'votes.npy')
    return {(run.id, name): (run.path/name).read_bytes() for run in runs for name in names}

@pytest.mark.slow
def test_shared_or_alone_the_bytes_are_the_same(tmp_path, monkeypatch):
    def made(name, *how):
        monkeypatch.setenv('CROPNB_RUNS', str(tmp_path/name))
        runs = small_grid()
        seen = []
        work(runs, *how, show=seen.append, beat=2)
        assert set(seen)==set(runs)
        return contents(runs)
    alone = made('a')
    assert made('b', 2)==alone
    assert made('c', 2, f'sqlite:///{tmp_path}/grid.db')==alone

# ---------------------------------------------------------------- failures
def make_toy(folder, recipe): return recipe
def make_bad(folder, recipe): open('not there')
def make_two_of_three(folder, recipe):
    if recipe['k']==1: raise ValueError('one is bad')
    return recipe

def three_runs(make): return [Run('toy', dict(k=k), make) for k in range(3)]

def test_one_failure_does_not_stop_the_others(fresh_runs):
    runs = three_runs(make_two_of_three)
    says = '^1 of 3 runs failed; what is done stays done. ValueError: one is bad'
    with pytest.raises(RuntimeError, match=says): work(runs)
    assert [run.done for run in runs]==[True, False, True]

def test_a_failure_through_a_database(tmp_path, fresh_runs):
    db = f'sqlite:///{tmp_path}/g.db'
    says = '^3 of 3 runs failed; what is done stays done. FileNotFoundError'
    with pytest.raises(RuntimeError, match=says): work(three_runs(make_bad), 1, db, beat=1)

# ---------------------------------------------------------------- the queue
queuer = '''
import sys
from cropnb.engine.records import Run
from cropnb.engine.workers import queue
def make(folder, recipe): return recipe
queue([Run('toy', dict(k=k), make) for k in range(60)], sys.argv[1])
'''

def test_joining_together_queues_nothing_twice(tmp_path):
    script = tmp_path/'queuer.py'
    script.write_text(queuer)
    db = f'sqlite:///{tmp_path}/q.db'
    together = [start(script, db) for _ in range(3)]
    assert [p.wait() for p in together]==[0]*3
    study, = optuna.get_all_study_summaries(db)
    assert study.n_trials==60

def test_a_run_that_was_taken_and_forgotten(tmp_path, fresh_runs):
    "Taken by a worker that died before its first sign of life"
    runs = three_runs(make_toy)
    db = f'sqlite:///{tmp_path}/g.db'
    queue(runs, db, 1).ask()
    share(runs, db, 1)
    assert all(run.done for run in runs)
