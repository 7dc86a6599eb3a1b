"""Runs heal, and say what they cannot heal: half-written files, damaged records, full disks.

A disk is a tmpfs of some megabytes in a mount namespace of its own (`unshare`), which goes with the
process; where the machine does not allow that, these tests are skipped."""
import errno, json, os, pickle, shutil, subprocess, sys
import numpy as np, pytest
from conftest import root
from cropnb.data import series, split
from cropnb.downstream import load_model, training
from cropnb.encoder import load_encoder
from cropnb.engine.files import NoRoom, kept
from cropnb.engine.gate import load_npz
from cropnb.engine.records import Run, result
from cropnb.features import load_part, read_part
from cropnb.pretrain import encoder
from cropnb.twin.sample import write_published
from cropnb.twin.scene import scene
from cropnb.views import Pairs

def cut(path): path.write_bytes(path.read_bytes()[:path.stat().st_size//2])
def empty(path): path.write_bytes(b'')
def page(path): path.write_bytes(b'<html>Not found</html>'*40)
def flip(path):
    "Change a byte in the middle"
    a = bytearray(path.read_bytes())
    a[len(a)//2] ^= 1
    path.write_bytes(a)

damages = [cut, empty, page, flip]

def files_of(run):
    "Name -> hash of the files of a record"
    return json.loads((run.path/'result.json').read_text())['files']

class Stop(Exception): pass

def stopped(run, monkeypatch, where, name, after):
    "Make a run that stops at the n-th call of a function, as if it had been killed there"
    calls, real = [], getattr(where, name)
    def until(*args, **kwargs):
        calls.append(name)
        if len(calls)>after: raise Stop
        return real(*args, **kwargs)
    with monkeypatch.context() as m:
        m.setattr(where, name, until)
        with pytest.raises(Stop): run.get()
    return run.path.with_suffix('.part')

# ---------------------------------------------------------------- what a run goes on with
@pytest.fixture
def elsewhere(smoke, runs_with):
    "A folder of runs that holds the smallest scene and its split, and nothing more"
    return runs_with(smoke.data, split(smoke.data, 'train', smoke.recipe, 0))

@pytest.mark.parametrize('damage', damages)
def test_a_damaged_shard_of_pairs(smoke, elsewhere, monkeypatch, capfd, damage):
    from cropnb.prepare import pairs as module
    smoke.pairs.get()
    want = files_of(smoke.pairs)
    shutil.rmtree(smoke.pairs.path)
    part = stopped(smoke.pairs, monkeypatch, module, 'merge', 0)
    shards = sorted((part/'tmp').glob('*.npz'))
    damage(shards[1])
    smoke.pairs.get()
    out = capfd.readouterr().out
    assert f'{shards[1]} is damaged' in out
    assert out.count('is damaged')==1        # the others were not made again
    assert files_of(smoke.pairs)==want

@pytest.mark.parametrize('damage', damages)
def test_a_damaged_shard_of_series(smoke, elsewhere, monkeypatch, capfd, damage):
    from cropnb.prepare import seasons as module
    task = series(1, smoke.data, smoke.recipe, 0)
    task.get()
    want = files_of(task)
    shutil.rmtree(task.path)
    part = stopped(task, monkeypatch, module, 'write_series', 0)
    shards = sorted((part/'tmp').glob('train*.npz'))
    damage(shards[1])
    task.get()
    assert f'{shards[1]} is damaged' in capfd.readouterr().out
    assert files_of(task)==want

@pytest.mark.parametrize('damage', damages)
def test_a_damaged_checkpoint(smoke, runs_with, monkeypatch, capfd, damage):
    from cropnb import pretrain as module
    runs_with(smoke.pairs)
    run = encoder(smoke.pairs, smoke.recipe, 0, epochs=2)
    run.get()
    want = files_of(run)
    shutil.rmtree(run.path)
    part = stopped(run, monkeypatch, module, 'start_epoch', 1)
    damage(part/'tmp'/'checkpoint.pt')
    run.get()
    assert 'checkpoint.pt is damaged' in capfd.readouterr().out
    assert files_of(run)==want

@pytest.mark.parametrize('name', ['bands.npy', 'clp.npy'])
@pytest.mark.parametrize('damage', [cut, empty, page])
def test_a_damaged_array_of_a_scene(fresh_runs, monkeypatch, capfd, name, damage):
    "Mapped to be written, a file that is cut would be filled up with zeros, which are no data"
    from cropnb.twin import scene as module
    run = scene('tiny,extent=240,dates=4,parcels=2', 3)
    run.get()
    want = files_of(run)
    shutil.rmtree(run.path)
    part = stopped(run, monkeypatch, module, '_write_day', 2)
    damage(next(part.rglob(name)))
    run.get()
    assert f'{name} is damaged' in capfd.readouterr().out
    assert files_of(run)==want

def test_other_errors_are_not_taken_for_damage(tmp_path):
    "A file that may not be read is not thrown away"
    path = tmp_path/'0.npz'
    np.savez(path, a=[1])
    def refuse(path): raise PermissionError(errno.EACCES, 'no', str(path))
    with pytest.raises(PermissionError): kept(path, refuse)
    assert kept(path, load_npz)['a']==[1]

def test_an_empty_mark_of_the_twin(tmp_path):
    small = dict(pairs=144, train=10, per_field=5, parcels=0, dates=2)
    (tmp_path/'SIMULATED.txt').write_text('')
    write_published(tmp_path, **small)
    assert 'simulator' in (tmp_path/'SIMULATED.txt').read_text()

# ---------------------------------------------------------------- files of records
@pytest.fixture(scope='module')
def made(smoke):
    "A record of every stage"
    r = smoke.recipe
    task = series(1, smoke.data, r, 0)
    enc = encoder(smoke.pairs, r, 0, epochs=1)
    run = training(task, enc, 1, 'lstm', 0, r|dict(epochs=1), 0)
    run.get()
    return dict(pairs=smoke.pairs, series=task, pretrain=enc, downstream=run,
                features=run.inputs['features'])

def read_features(folder, made): return load_part(folder, made['series'].path, 'train')
def read_model(folder, made): return load_model(folder, made['pretrain'].path)

of_records = [
    ('pairs', 'pairs.h5', lambda folder, made: Pairs(folder), 'nbs/00_data.ipynb'),
    ('series', 'train.h5', lambda folder, made: read_part(folder/'train.h5'), 'nbs/00_data.ipynb'),
    ('pretrain', 'encoder.safetensors', lambda folder, made: load_encoder(folder),
        'nbs/03_pretrain.ipynb'),
    ('features', 'train.npy', read_features, 'nbs/04_downstream.ipynb'),
    ('downstream', 'model.safetensors', read_model, 'nbs/04_downstream.ipynb'),
    ('pretrain', 'result.json', lambda folder, made: result(folder), 'nbs/03_pretrain.ipynb')]

@pytest.mark.parametrize('damage', [cut, empty])
@pytest.mark.parametrize('stage,name,read,notebook', of_records, ids=[n for _,n,*_ in of_records])
def test_a_damaged_file_of_a_record(made, tmp_path, stage, name, read, notebook, damage):
    "Which file, and what makes it anew"
    folder = tmp_path/stage/'0123456789ab'
    shutil.copytree(made[stage].path, folder)
    read(folder, made)
    damage(folder/name)
    with pytest.raises(ValueError) as e: read(folder, made)
    assert f'{folder/name}' in str(e.value)
    assert f'delete the folder {folder} and run {notebook} again' in str(e.value)

# ---------------------------------------------------------------- disks
reasons = [
    (errno.ENOSPC, 'the disk is full'), (errno.EROFS, 'the disk is read-only'),
    (errno.EDQUOT, 'your quota is used up'), (errno.EFBIG, 'larger than is allowed')]

@pytest.mark.parametrize('code,says', reasons, ids=[says for _,says in reasons])
def test_a_reason_is_named_once(fresh_runs, code, says):
    "Also through an input, through a library's own error, and from another process"
    def fail(folder, recipe):
        try: raise OSError(code, os.strerror(code))
        except OSError: raise RuntimeError('cannot write')
    inner = Run('a', {}, fail)
    outer = Run('b', {}, lambda folder, recipe, inner: {}, inner=inner)
    with pytest.raises(NoRoom) as e: outer.get()
    said = str(pickle.loads(pickle.dumps(e.value)))
    assert said.count(says)==1
    assert f'a/{inner.id}.part' in said
    assert isinstance(e.value, OSError) and e.value.errno==code

def test_other_errors_stay_as_they_are(fresh_runs):
    def fail(folder, recipe): raise RuntimeError('cannot write')
    with pytest.raises(RuntimeError, match='^cannot write$'): Run('a', {}, fail).get()

on_a_small_disk = '''
import gc, json, os, shutil, sys
from pathlib import Path
from cropnb.data import OnDisk, pairs, series, split
from cropnb.downstream import training
from cropnb.engine.files import NoRoom
from cropnb.engine.recipes import recipe
from cropnb.features import features
from cropnb.pretrain import encoder
from cropnb.twin.sample import write_published
from cropnb.twin.scene import scene
os.environ['CROPNB_RUNS'] = runs = '/mnt/runs'
told = json.loads(sys.argv[1])
home = {k: Path(v) for k,v in told['home'].items()}
data, r = OnDisk(home['data']), recipe('smoke', epochs=1)
seen = features(home['series'], home['pretrain'])
model = training(home['series'], home['pretrain'], 1, 'lstm', 0, r, 0)
model.inputs['features'] = home['features']

class Published:
    "The published files, made like a run"
    path = Path('/mnt/runs/published')
    def get(self): write_published(self.path, 144*20, 10, 5, 2, dates=12)

stages = dict(
    twin=scene('tiny,extent=480,dates=4,parcels=40', 0),
    published=Published(),
    split=split(data, 'train', r, 0),
    pairs=pairs(data, r, 0),
    series=series(1, data, r, 0),
    parcels=series(3, data, r, 0),
    pretrain=encoder(home['pairs'], r, 0, epochs=1),
    features=seen,
    downstream=model)

def free(): return (s := os.statvfs('/mnt')).f_bavail*s.f_frsize

def fill(left):
    "Leave so many bytes"
    ballast = Path('/mnt/ballast')
    with open(ballast, 'wb') as f: os.posix_fallocate(f.fileno(), 0, max(free()-left, 1))

def reads_only(yes): os.system(f'mount -o remount,{"ro" if yes else "rw"} /mnt')

def contents(path):
    "All that is the same on every run"
    found = sorted(f for f in path.rglob('*') if f.is_file() and f.name!='log.json')
    return {f.name: f.read_bytes() for f in found}

def clear(stage):
    "Forget all of a stage"
    for path in (stage.path, stage.path.with_suffix('.part')):
        shutil.rmtree(path, ignore_errors=True)

def refused(stage):
    "What it says; `None` where it went through"
    try: stage.get()
    except NoRoom as e: return str(e)
    finally: gc.collect()

for name in told['stages']:
    stage = stages[name]
    for input in getattr(stage, 'inputs', {}).values():
        if hasattr(input, 'get'): input.get()
    before = free()
    stage.get()
    need, want = before-free(), contents(stage.path)
    for share in (0, .1, .3, .6, .9):
        clear(stage)
        fill(int(need*share)//4096*4096)
        print(json.dumps([name, share, need, refused(stage)]), flush=True)
        Path('/mnt/ballast').unlink()
    reads_only(True)
    print(json.dumps([name, 'ro', need, refused(stage)]), flush=True)
    reads_only(False)
    stage.get()
    print(json.dumps([name, 'same', need, contents(stage.path)==want]), flush=True)
'''

def mounted(command, size='64m', **kwargs):
    "Run a command with a small disk at /mnt, which is seen by this command alone"
    script = f'mount -t tmpfs -o size={size} none /mnt && exec "$@"'
    words = ['unshare', '-rm', 'sh', '-c', script, 'sh', *command]
    return subprocess.run(words, cwd=root, capture_output=True, text=True, **kwargs)

def needs_a_disk():
    "Skip where no disk can be mounted"
    why = 'a small disk cannot be mounted here (unshare -rm, mount -t tmpfs)'
    try: fine = mounted(['true']).returncode==0
    except FileNotFoundError: fine = False
    if not fine: pytest.skip(why)

all_stages = 'twin published split pairs series parcels pretrain features downstream'.split()

@pytest.mark.parametrize('stage', all_stages)
def test_a_disk_that_is_too_small(smoke, made, stage):
    "Full at any point, or read-only: one sentence and no crash; with room it goes on, same bytes"
    needs_a_disk()
    home = {k: str(run.path) for k,run in made.items()}|dict(data=str(smoke.data.get()))
    told = json.dumps(dict(home=home, stages=[stage]))
    python = [sys.executable, '-c', on_a_small_disk, told]
    done = mounted(python, env=os.environ|dict(PYTHONPATH=str(root)))
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('["')]
    assert done.returncode==0, (done.returncode, lines, done.stderr[-3000:])
    *tried, again = lines
    assert len(tried)==6
    for _,share,need,said in tried:
        want = 'the disk is read-only' if share=='ro' else 'the disk is full'
        assert said and want in said, (share, need, said)
        assert '/mnt/runs' in said and 'MB are free there' in said
    assert again[3] is True
