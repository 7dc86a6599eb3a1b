"A grid among processes: every run once, a dead worker's taken over, the same bytes however it was shared."
import os, signal, subprocess, sys, time
import pytest
from conftest import root
from cropnb.engine.recipes import recipe
from cropnb.data import resolve
from cropnb.data import pairs, series
from cropnb.downstream import grid
from cropnb.pretrain import encoders
from cropnb.engine.workers import work

toy = '''
import os, sys, time
from pathlib import Path
from cropnb.engine.records import Run
from cropnb.engine.workers import work

def make(folder, recipe):
    with open(Path(sys.argv[2])/'starts', 'a') as f: f.write(f"{recipe['k']} {os.getpid()}\\n")
    time.sleep(.7); return dict(square=recipe['k']**2)

if __name__=='__main__': work([Run('toy', dict(k=k), make) for k in range(8)], 1, sys.argv[1], beat=1)
'''
def test_a_killed_worker_is_taken_over(tmp_path):
    "Two workers at one SQLite queue; one is killed (-9) inside a run"
    (f := tmp_path/'toy.py').write_text(toy); db = f'sqlite:///{tmp_path}/grid.db'; starts = tmp_path/'starts'; runs = tmp_path/'runs'
    worker = lambda: subprocess.Popen([sys.executable, str(f), db, str(tmp_path)], cwd=root, env=os.environ|dict(CROPNB_RUNS=str(runs)), start_new_session=True)
    begun = lambda: [l.split() for l in starts.read_text().splitlines()] if starts.exists() else []
    ps = [worker(), worker()]; end = time.time()+60
    while len({pid for _,pid in begun()})<2 and time.time()<end: time.sleep(.02)
    k, pid = begun()[-1]; victim = min(ps, key=lambda p: os.getpgid(int(pid))!=p.pid); os.killpg(victim.pid, signal.SIGKILL); victim.wait()
    other, = [p for p in ps if p is not victim]; assert other.wait(timeout=90)==0
    assert len(list(runs.glob('toy/*/result.json')))==8 and not list(runs.glob('toy/*.part'))
    n = [k for k,_ in begun()]; assert n.count(k)==2 and len(n)==9, n                                       # the killed run twice, every other once

def test_shared_or_alone_the_bytes_are_the_same(tmp_path, monkeypatch):
    r = recipe('smoke', epochs=2)
    def made(name, *how):
        monkeypatch.setenv('CROPNB_RUNS', str(tmp_path/name)); d = resolve('twin', 'smoke', 0); e = {k: v for k,v in encoders(pairs(d, r, 0), r, 0).items() if k in ('supervised', 'untrained')}
        cs = list(grid(series(1, d, r, 0), e, 1, 'inception', r, 0).values()); seen = []; work(cs, *how, show=seen.append, beat=2); assert set(seen)==set(cs)
        return {(c.id, n): (c.path/n).read_bytes() for c in cs for n in ('result.json', 'predictions.npy', 'votes.npy')}
    assert made('a')==made('b', 2)==made('c', 2, f'sqlite:///{tmp_path}/grid.db')

def test_one_failure_does_not_stop_the_others(tmp_path, fresh_runs):
    (tmp_path/'toybad.py').write_text("def make(folder, recipe):\n    if recipe['k']==1: raise ValueError('one is bad')\n    return recipe\n")
    sys.path.insert(0, str(tmp_path))
    try: from toybad import make
    finally: sys.path.pop(0)
    from cropnb.engine.records import Run
    runs = [Run('toy', dict(k=k), make) for k in range(3)]
    with pytest.raises(RuntimeError, match='^1 of 3 runs failed; what is done stays done. ValueError: one is bad'): work(runs)
    assert [c.done for c in runs]==[True, False, True]

queuer = """
import sys
from cropnb.engine.records import Run
from cropnb.engine.workers import queue
def make(folder, recipe): return recipe
queue([Run('toy', dict(k=k), make) for k in range(60)], sys.argv[1])
"""
def test_joining_together_queues_nothing_twice(tmp_path):
    (f := tmp_path/'queuer.py').write_text(queuer); db = f'sqlite:///{tmp_path}/q.db'
    ps = [subprocess.Popen([sys.executable, str(f), db], cwd=root, env=os.environ|dict(CROPNB_RUNS=str(tmp_path/'runs'))) for _ in range(3)]; assert [p.wait() for p in ps]==[0]*3
    import optuna; study, = optuna.get_all_study_summaries(db); assert study.n_trials==60

def make_toy(folder, recipe): return recipe

def test_a_run_that_was_taken_and_forgotten(tmp_path, fresh_runs):
    "Taken by a worker that died before its first sign of life"
    from cropnb.engine.records import Run
    from cropnb.engine.workers import queue, share
    runs = [Run('toy', dict(k=k), make_toy) for k in range(3)]; db = f'sqlite:///{tmp_path}/g.db'; queue(runs, db, 1).ask()
    share(runs, db, 1); assert all(r.done for r in runs)

def test_a_failure_through_a_database(tmp_path, fresh_runs):
    runs = [Run_(k) for k in range(3)]
    with pytest.raises(RuntimeError, match='^3 of 3 runs failed; what is done stays done. FileNotFoundError'): work(runs, 1, f'sqlite:///{tmp_path}/g.db', beat=1)

def make_bad(folder, recipe): open('not there')
def Run_(k):
    from cropnb.engine.records import Run
    return Run('toy', dict(k=k), make_bad)
