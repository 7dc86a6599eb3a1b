"A grid among processes: every run once, a dead worker's taken over, the same bytes however shared"
import os, random, signal, subprocess, sys, time
import pytest
from conftest import root
from cropnb.data import pairs, resolve, series
from cropnb.downstream import grid
from cropnb.engine.recipes import recipe
from cropnb.engine.records import Run
from cropnb.engine.workers import work
from cropnb.pretrain import encoders

toy = '''
import os, sys, time
from cropnb.engine.records import Run
from cropnb.engine.workers import work

def make(folder, recipe):
    with open(sys.argv[1], 'a') as f: f.write(f"{recipe['k']}\\n")
    time.sleep(recipe['seconds'])
    return dict(square=recipe['k']**2)

if __name__=='__main__':
    n, seconds = int(sys.argv[2]), float(sys.argv[3])
    work([Run('toy', dict(k=k, seconds=seconds), make) for k in range(n)], 4)
'''

def start(folder, n, seconds):
    "Four workers in a session of their own, with their runs beside them"
    script = folder/'toy.py'
    script.write_text(toy)
    env = os.environ|dict(CROPNB_RUNS=str(folder/'runs'))
    cmd = [sys.executable, script, folder/'starts', str(n), str(seconds)]
    return subprocess.Popen(cmd, cwd=root, env=env, start_new_session=True)

def session(leader):
    "Processes of a session, without its leader"
    found = subprocess.run(['pgrep', '-s', str(leader)], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split() if int(pid)!=leader]

def starts(folder):
    "The run of each start, in order"
    f = folder/'starts'
    return f.read_text().split() if f.exists() else []

def wait_until(condition, seconds=90):
    end = time.time()+seconds
    while not condition() and time.time()<end: time.sleep(.05)
    assert condition()

# ---------------------------------------------------------------- kills
@pytest.mark.slow
def test_killed_workers_are_replaced(tmp_path):
    "60 runs among four workers, one of which is killed (-9) every two seconds"
    parent = start(tmp_path, 60, .3)
    dice, killed = random.Random(0), 0
    wait_until(lambda: starts(tmp_path))
    while parent.poll() is None and killed<30:
        victims = session(parent.pid)
        if victims:
            os.kill(dice.choice(victims), signal.SIGKILL)
            killed += 1
        time.sleep(2)
    assert parent.wait(timeout=120)==0
    runs = tmp_path/'runs'/'toy'
    assert len(list(runs.glob('*/result.json')))==60
    assert not list(runs.glob('*.part'))
    assert killed
    again = len(starts(tmp_path))-60
    assert 0<=again<=killed # only what was cut is begun twice

@pytest.mark.slow
def test_no_worker_outlives_its_parent(tmp_path):
    parent = start(tmp_path, 20, 30)
    wait_until(lambda: len(starts(tmp_path))>=4)
    assert session(parent.pid)
    parent.kill()
    parent.wait()
    time.sleep(5)
    assert session(parent.pid)==[]

# ---------------------------------------------------------------- the same bytes
def small_grid():
    "Trainings on two encoders"
    r = recipe('smoke', epochs=2)
    data = resolve('twin', 'smoke', 0)
    variants = encoders(pairs(data, r, 0), r, 0)
    two = {k: variants[k] for k in ('supervised', 'untrained')}
    return list(grid(series(1, data, r, 0), two, 1, 'inception', r, 0).values())

def contents(runs):
    names = ('result.json', 'predictions.npy', 'votes.npy', 'model.safetensors')
    return {(run.id, name): (run.path/name).read_bytes() for run in runs for name in names}

@pytest.mark.slow
def test_shared_or_alone_the_bytes_are_the_same(tmp_path, monkeypatch):
    def made(name, *how):
        monkeypatch.setenv('CROPNB_RUNS', str(tmp_path/name))
        runs, seen = small_grid(), []
        work(runs, *how, show=seen.append)
        assert set(seen)==set(runs)
        return contents(runs)
    alone = made('a')
    assert made('b', 2)==alone
    with scheduler(tmp_path) as address: assert made('c', 1, address)==alone

def scheduler(folder):
    "A Dask cluster that somebody else has started"
    from contextlib import contextmanager
    from distributed import LocalCluster
    @contextmanager
    def running():
        how = dict(n_workers=2, threads_per_worker=1, dashboard_address=':0')
        with LocalCluster(**how, local_directory=folder) as cluster:
            yield cluster.scheduler_address
    return running()

# ---------------------------------------------------------------- failures
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

@pytest.mark.slow
def test_a_failure_in_another_process(fresh_runs):
    says = '^3 of 3 runs failed; what is done stays done. FileNotFoundError'
    with pytest.raises(RuntimeError, match=says): work(three_runs(make_bad), 2)

def test_a_scheduler_that_is_not_there(fresh_runs):
    says = "scheduler='tcp://127.0.0.1:1' does not answer"
    with pytest.raises(ConnectionError, match=says):
        work(three_runs(make_bad), scheduler='tcp://127.0.0.1:1')

def test_a_file_system_without_locks(fresh_runs, monkeypatch):
    "It is named and refused: two processes would do the same work"
    import errno, fcntl
    def no_locks(*args): raise OSError(errno.ENOLCK, 'No locks available')
    monkeypatch.setattr(fcntl, 'flock', no_locks)
    with pytest.raises(RuntimeError, match='this file system has no locks'):
        work(three_runs(make_two_of_three))
