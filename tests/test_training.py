"Runs survive a kill with the same bytes, and are named by all that they depend on"
import os, shutil, signal, subprocess, sys
import numpy as np, pytest
from safetensors.torch import load_file, safe_open, save_file
from conftest import root
from cropnb.controls import untrained
from cropnb.data import pairs, resolve, series
from cropnb.downstream import training
from cropnb.encoder import load_encoder
from cropnb.engine.recipes import recipe
from cropnb.engine.records import Run, result
from cropnb.measure.probes import Collapse
from cropnb.methods.contrast import SimCLR
from cropnb.prepare.seasons import own_task
from cropnb.pretrain import encoder, encoders

# ---------------------------------------------------------------- processes
pretraining = '''
from cropnb.data import pairs, resolve
from cropnb.engine.recipes import recipe
from cropnb.pretrain import encoder
r = recipe('smoke')
p = pairs(resolve('twin', 'smoke', 0), r, 0)
encoder(p, r, 0, 'bimodal', .2, epochs=12).get()
'''
made_files = ['encoder.safetensors', 'log.json', 'result.json']

def start(runs):
    "Pre-train for 12 epochs in a process of its own"
    env = os.environ|dict(CROPNB_RUNS=str(runs))
    cmd = [sys.executable, '-c', pretraining]
    return subprocess.Popen(cmd, cwd=root, env=env, stdout=subprocess.PIPE, text=True)

def output(process):
    "What it printed; it must end well"
    text = process.communicate()[0]
    assert process.returncode==0
    return text

def kill_at(process, words):
    "kill -9 when it prints these words"
    for line in process.stdout:
        if words in line: break
    process.send_signal(signal.SIGKILL)
    process.wait()

@pytest.mark.slow
def test_killed_and_resumed(tmp_path):
    "The encoder of the second start is that of a run that was left alone"
    undisturbed = output(start(tmp_path/'a'))
    kill_at(start(tmp_path/'b'), 'epoch 4 of 12')
    assert not list((tmp_path/'b/pretrain').glob('*/result.json'))
    resumed = output(start(tmp_path/'b'))
    assert 'epoch 1 of 12' in undisturbed
    assert 'epoch 1 of 12' not in resumed
    a,b = (next((tmp_path/k/'pretrain').glob('*')) for k in 'ab')
    for f in ('encoder.safetensors', 'result.json'): assert (a/f).read_bytes()==(b/f).read_bytes()
    assert sorted(f.name for f in b.iterdir())==made_files

@pytest.mark.slow
def test_two_processes_make_a_run_once(tmp_path):
    both = [start(tmp_path), start(tmp_path)]
    texts = [output(p) for p in both]
    assert sum('epoch 1 of 12' in text for text in texts)==1

# ---------------------------------------------------------------- what a run is named by
def test_missing_data_says_so(tmp_path, fresh_runs):
    "An empty folder is an error, not an endless search"
    r = recipe('smoke')
    empty = resolve(str(tmp_path))
    with pytest.raises(FileNotFoundError, match='train_labels'): pairs(empty, r, 0).get()
    with pytest.raises(FileNotFoundError, match='BreizhCrops'): series(3, empty, r, 0).get()
    def read_missing(folder, recipe): return open('gone.txt')
    with pytest.raises(FileNotFoundError, match='gone.txt'): Run('x', {}, read_missing).get()

def pairs_of(folder): return pairs(resolve(str(folder)), recipe('smoke'), 0)

def ids_of(folder):
    "Names of its pairs and of its series of tasks 1, 2, 3"
    data, r = resolve(str(folder)), recipe('smoke')
    return [pairs_of(folder).id, *(series(task, data, r, 0).id for task in (1, 2, 3))]

@pytest.fixture
def copied_scene(smoke, tmp_path):
    "The smallest scene as a folder of files"
    return shutil.copytree(smoke.data.get(), tmp_path/'scene')

def test_files_beside_the_data_change_nothing(copied_scene):
    old = ids_of(copied_scene)
    (copied_scene/'notes.txt').write_text('x')
    beside_an_image = next(copied_scene.rglob('sr.tif')).parent
    (beside_an_image/'qa.tif').write_text('x')
    assert ids_of(copied_scene)==old

def test_the_data_change_what_is_made_of_them(copied_scene):
    "Labels of the test tile: task 2 alone"
    old = ids_of(copied_scene)
    labels = next(copied_scene.rglob('*_test_*/**/labels.geojson'))
    labels.write_text(labels.read_text()+' ')
    same = [a==b for a,b in zip(old, ids_of(copied_scene))]
    assert same==[True, True, False, True]

def test_a_copy_of_the_twin_stays_simulated(copied_scene):
    assert pairs_of(copied_scene).recipe['source']=='SIMULATED twin:smoke'

def write_task(folder, separable):
    "Two classes, four dates; where `separable`, the second is brighter by 0.2"
    rng = np.random.default_rng(0)
    label = np.arange(60)%2+1
    shape = (60, 4, 12)
    if separable: x = rng.integers(100, 300, shape)+2000*(label-1)[:,None,None]
    else: x = rng.integers(100, 3000, shape)
    known = dict(mask=np.ones((60, 4)), date=np.zeros((60, 4)), field_id=np.arange(60))
    own_task(folder, dict(time_series=x, label=label, classes=['a', 'b'], **known), 'toy')

def test_other_data_under_the_same_name(smoke, tmp_path):
    "A task rewritten in place gets new features, not the old ones under a new id"
    r = recipe('smoke', epochs=8)
    identity = encoders(smoke.pairs, r, 0)['supervised']
    def accuracy(separable):
        write_task(tmp_path/'t', separable)
        return result(training(tmp_path/'t', identity, 4, 'lstm', 0, r, 0).get())['accuracy']
    assert accuracy(separable=True)>.95
    assert accuracy(separable=False)<.85

# ---------------------------------------------------------------- records
def test_a_result_that_lacks_only_its_name_is_kept(fresh_runs):
    "Killed between result and rename: nothing is made twice"
    calls = []
    def make(folder, recipe):
        calls.append(1)
        return dict(a=1)
    r = Run('x', {}, make)
    r.get()
    r.path.rename(r.path.with_suffix('.part'))
    assert not r.done
    assert result(r.get())==dict(a=1)
    assert calls==[1]

def test_a_failed_run_leaves_no_result(fresh_runs):
    def make(folder, recipe):
        (folder/'half.txt').write_text('half')
        raise RuntimeError('no')
    r = Run('x', {}, make)
    with pytest.raises(RuntimeError): r.get()
    assert not r.done
    assert not r.path.exists()

def test_same_seed_same_result(smoke, tmp_path, monkeypatch):
    "From nothing, twice; and another seed"
    def made(name, seed):
        monkeypatch.setenv('CROPNB_RUNS', str(tmp_path/name))
        r = smoke.recipe
        e = encoder(smoke.pairs, r, seed, 'unimodal', .6)
        t = training(series(1, smoke.data, r, 0), e, 1, 'lstm', 0, r, seed)
        return (t.get()/'result.json').read_bytes(), (e.path/'encoder.safetensors').read_bytes()
    assert made('a', 1)==made('b', 1)
    assert made('b', 1)!=made('b', 2)

# ---------------------------------------------------------------- encoders
@pytest.fixture(scope='module')
def seasons(): return np.random.default_rng(0).integers(100, 6000, (3, 5, 12)).astype('uint16')

def test_embed_is_per_date(smoke, seasons):
    e = load_encoder(encoders(smoke.pairs, smoke.recipe, 0)['untrained'].get())
    z = e.embed(seasons)
    np.testing.assert_allclose(z[1,2], e.embed(seasons[1,2]), atol=1e-5)
    assert e.net.training is False
    assert np.isfinite(z).all()

def test_supervised_is_the_identity(smoke, seasons):
    run = encoders(smoke.pairs, smoke.recipe, 0)['supervised']
    e = load_encoder(run.get())
    want = (seasons/1e4-e.mean.numpy())/e.std.numpy()
    np.testing.assert_allclose(e.embed(seasons), want, rtol=1e-4, atol=1e-5)
    assert result(run)['mode']=='raw'

def test_probes_are_recorded(smoke):
    "Every epoch, numbers only; the untrained control has one row"
    r = recipe('smoke', pretrain_epochs=2)
    measured = result(encoder(smoke.pairs, r, 0, 'bimodal', .2).get())['probes']
    assert len(measured)==2
    assert all(np.isfinite(list(row.values())).all() for row in measured)
    assert measured[0]['retrieval_in_date_chance']>measured[0]['retrieval_chance']
    assert len(result(untrained(smoke.pairs, r, 0).get())['probes'])==1

def test_no_epochs_are_the_untrained_control(smoke):
    same = (smoke.pairs, smoke.recipe, 0)
    assert encoder(*same, epochs=0).id==untrained(*same).id

def test_probes_repeat(smoke, runs_with):
    runs = runs_with(smoke.data, smoke.pairs)
    run = encoder(smoke.pairs, recipe('smoke', pretrain_epochs=2), 0, 'bimodal', .2)
    first = result(run.get())
    shutil.rmtree(runs/'pretrain')
    assert result(run.get())==first

def to_one_point(self, a, b):
    "A loss that collapses"
    return (a-b).square().mean()+100*a.square().mean()

def test_a_collapse_stops_the_run(smoke, runs_with, monkeypatch):
    runs_with(smoke.pairs)
    monkeypatch.setattr(SimCLR, 'loss', to_one_point)
    r = recipe('smoke', pretrain_lr=.05, pretrain_epochs=60)
    says = 'embeddings collapsed in epoch'
    with pytest.raises(Collapse, match=says): encoder(smoke.pairs, r, 0, 'bimodal', 0.).get()

def test_a_nan_stops_the_run(smoke, runs_with):
    runs_with(smoke.pairs)
    r = recipe('smoke', pretrain_lr=1e12)
    errors = (ValueError, FloatingPointError)
    with pytest.raises(errors, match='NaN|loss became'): encoder(smoke.pairs, r, 0).get()

def test_sizes_are_free(smoke):
    r = recipe('smoke', dim=64, blocks=2, dropout=.1, optimizer='adamw')
    e = load_encoder(encoder(smoke.pairs, r, 0).get())
    assert e.dim==64
    assert e.what['parameters']==sum(v.numel() for v in e.net.parameters())
    assert e.what['pairs']==smoke.pairs.id

def test_sizes_are_checked(smoke, tmp_path):
    r = recipe('smoke', dim=64, blocks=2, dropout=.1, optimizer='adamw')
    good = encoder(smoke.pairs, r, 0).get()/'encoder.safetensors'
    with safe_open(good, 'pt') as f: meta = f.metadata()
    meta = {k: v.replace('"blocks": 2', '"blocks": 3') for k,v in meta.items()}
    bad = tmp_path/'e.safetensors'
    save_file(load_file(good), bad, meta)
    says = 'not those of a ResMLP of width 64 and 3 blocks'
    with pytest.raises(ValueError, match=says): load_encoder(bad)

def test_an_unknown_optimizer(smoke):
    "In a recipe, and in a table that never was one"
    says = "optimizer='lion' is not one of adam, adamw"
    with pytest.raises(ValueError, match=says): recipe('smoke', optimizer='lion')
    r = smoke.recipe|dict(optimizer='lion')
    with pytest.raises(ValueError, match=says): encoder(smoke.pairs, r, 0)
