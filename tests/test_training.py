"Training runs survive a kill with the same bytes, and import nothing that a bare compute node lacks."
import os, shutil, signal, subprocess, sys
import numpy as np, pytest
from conftest import root
from cropnb.engine.records import Run, result
from cropnb.engine.recipes import recipe
from cropnb.data import resolve
from cropnb.prepare.seasons import own_task
from cropnb.data import pairs, series
from cropnb.pretrain import encoder, encoders
from cropnb.encoder import load_encoder
from cropnb.downstream import training

code = '''
from cropnb.engine.recipes import recipe
from cropnb.data import resolve
from cropnb.data import pairs
from cropnb.pretrain import encoder
r = recipe('smoke'); p = pairs(resolve('twin', 'smoke', 0), r, 0)
encoder(p, r, 0, 'bimodal', .2, epochs=12).get()
'''
def start(runs): return subprocess.Popen([sys.executable, '-c', code], cwd=root, env=os.environ|dict(CROPNB_RUNS=str(runs)), stdout=subprocess.PIPE, text=True)

def test_killed_and_resumed(tmp_path):
    "kill -9 in the middle; the encoder of the second start is that of a run that was left alone"
    whole = start(tmp_path/'a'); out = whole.communicate()[0]; assert whole.returncode==0
    p = start(tmp_path/'b')
    for line in p.stdout:
        if 'epoch 4 of 12' in line: p.send_signal(signal.SIGKILL); break
    p.wait(); assert not list((tmp_path/'b/pretrain').glob('*/result.json'))
    q = start(tmp_path/'b'); again = q.communicate()[0]; assert q.returncode==0
    assert 'epoch 1 of 12' in out and 'epoch 1 of 12' not in again                  # it did go on, not start anew
    a,b = (next((tmp_path/k/'pretrain').glob('*')) for k in 'ab')
    for f in ('encoder.safetensors', 'result.json'): assert (a/f).read_bytes()==(b/f).read_bytes()
    assert sorted(f.name for f in b.iterdir())==['encoder.safetensors', 'log.json', 'result.json']

def test_two_processes_make_a_run_once(tmp_path):
    both = [start(tmp_path) for _ in range(2)]
    outs = [p.communicate()[0] for p in both]
    assert [p.returncode for p in both]==[0, 0] and sum('epoch 1 of 12' in o for o in outs)==1

def test_missing_data_says_so(tmp_path, fresh_runs):
    "An empty folder is an error, not an endless search"
    r = recipe('smoke'); d = resolve(str(tmp_path))
    with pytest.raises(FileNotFoundError, match='train_labels'): pairs(d, r, 0).get()
    with pytest.raises(FileNotFoundError, match='BreizhCrops'): series(3, d, r, 0).get()
    with pytest.raises(FileNotFoundError, match='gone.txt'): Run('x', {}, lambda folder, recipe: open('gone.txt')).get()

def test_files_beside_the_data_change_nothing(tmp_path, fresh_runs):
    twin = resolve('twin', 'smoke', 0).get(); shutil.copytree(twin, tmp_path/'d'); r = recipe('smoke')
    ids = lambda: [pairs(resolve(str(tmp_path/'d')), r, 0).id, *(series(t, resolve(str(tmp_path/'d')), r, 0).id for t in (1, 2, 3))]
    old = ids(); (tmp_path/'d'/'notes.txt').write_text('x'); (next((tmp_path/'d').rglob('sr.tif')).parent/'qa.tif').write_text('x'); assert ids()==old
    f = next((tmp_path/'d').rglob('*_test_*/**/labels.geojson')); f.write_text(f.read_text()+' '); new = ids()
    assert [a==b for a,b in zip(old, new)]==[True, True, False, True]
    assert pairs(resolve(str(tmp_path/'d')), r, 0).recipe['source']=='SIMULATED twin:smoke'       # a copy of the twin stays simulated

def test_other_data_under_the_same_name(tmp_path, fresh_runs):
    "A task rewritten in place gets new features, not the old ones under a new id"
    r = recipe('smoke', epochs=8); d = resolve('twin', 'smoke', 0); e = encoders(pairs(d, r, 0), r, 0)['supervised']
    rng = np.random.default_rng(0)
    def acc(separable):
        y = np.arange(60)%2+1; x = rng.integers(100, 3000, (60, 4, 12)) if not separable else rng.integers(100, 300, (60, 4, 12))+2000*(y-1)[:,None,None]
        own_task(tmp_path/'t', dict(time_series=x, mask=np.ones((60, 4)), date=np.zeros((60, 4)), label=y, field_id=np.arange(60), classes=['a', 'b']), 'toy')
        return result(training(tmp_path/'t', e, 4, 'lstm', 0, r, 0).get())['accuracy']
    assert acc(True)>.95 and acc(False)<.85

def test_a_result_that_lacks_only_its_name_is_kept(fresh_runs):
    "Killed between result and rename: nothing is made twice"
    made = []
    def make(folder, recipe): made.append(1); return dict(a=1)
    r = Run('x', {}, make); r.get(); r.path.rename(r.path.with_suffix('.part'))
    assert not r.done and result(r.get())==dict(a=1) and made==[1]

def test_a_failed_run_leaves_no_result(fresh_runs):
    def bad(folder, recipe): (folder/'half.txt').write_text('half'); raise RuntimeError('no')
    r = Run('x', {}, bad)
    with pytest.raises(RuntimeError): r.get()
    assert not r.done and not r.path.exists()

def test_same_seed_same_result(fresh_runs, monkeypatch, tmp_path):
    def one(runs, seed):
        monkeypatch.setenv('CROPNB_RUNS', str(runs)); r = recipe('smoke'); d = resolve('twin', 'smoke', 0)
        e = encoder(pairs(d, r, 0), r, seed, 'unimodal', .6); t = training(series(1, d, r, 0), e, 1, 'lstm', 0, r, seed)
        return (t.get()/'result.json').read_bytes(), (e.path/'encoder.safetensors').read_bytes()
    assert one(tmp_path/'a', 1)==one(tmp_path/'b', 1)!=one(tmp_path/'b', 2)

def test_bare_node():
    "Losses, encoders, pre-training and downstream need torch, numpy, h5py and safetensors alone"
    test = '''
import sys
class Deny:
    def find_spec(self, name, *a):
        if name.split('.')[0] in ('fastcore', 'optuna', 'papermill', 'rasterio', 'geopandas', 'pandas', 'matplotlib', 'scipy', 'tqdm', 'IPython', 'nbdev', 'sklearn'): raise ImportError(name)
sys.meta_path.insert(0, Deny())
import cropnb.losses, cropnb.encoders, cropnb.pretrain, cropnb.downstream
cropnb.downstream.sets('paper', 'lstm', 10)
'''
    subprocess.run([sys.executable, '-c', test], cwd=root, check=True)

def test_embed_is_per_date(fresh_runs):
    r = recipe('smoke'); d = resolve('twin', 'smoke', 0)
    e = load_encoder(encoders(pairs(d, r, 0), r, 0)['untrained'].get())
    x = np.random.default_rng(0).integers(100, 6000, (3, 5, 12)).astype('uint16')
    np.testing.assert_allclose(e.embed(x)[1,2], e.embed(x[1,2]), atol=1e-5)
    assert e.net.training is False and np.isfinite(e.embed(x)).all()

def test_supervised_is_the_identity(fresh_runs):
    r = recipe('smoke'); d = resolve('twin', 'smoke', 0)
    run = encoders(pairs(d, r, 0), r, 0)['supervised']; e = load_encoder(run.get())
    x = np.random.default_rng(0).integers(100, 6000, (3, 5, 12))
    np.testing.assert_allclose(e.embed(x), (x/1e4-e.mean.numpy())/e.std.numpy(), rtol=1e-4, atol=1e-5); assert result(run)['method']=='supervised'

def test_probes_are_recorded_and_repeat(fresh_runs):
    "Every epoch, numbers only; the same when run again; the untrained control has one row"
    d = resolve('twin', 'smoke', 0); p = pairs(d, recipe('smoke'), 0); q = recipe('smoke', pretrain_epochs=2)
    res = result(encoder(p, q, 0, 'bimodal', .2).get()); pr = res['probes']
    assert len(pr)==2 and all(np.isfinite(list(m.values())).all() for m in pr) and pr[0]['retrieval_in_date_chance']>pr[0]['retrieval_chance']
    assert len(result(encoder(p, q, 0, epochs=0).get())['probes'])==1
    shutil.rmtree(fresh_runs/'pretrain'); assert result(encoder(p, q, 0, 'bimodal', .2).get())==res

def test_a_collapse_and_a_nan_stop_the_run(fresh_runs, monkeypatch):
    from cropnb import pretrain
    from cropnb.measure.probes import Collapse
    p = pairs(resolve('twin', 'smoke', 0), recipe('smoke'), 0)
    monkeypatch.setitem(pretrain.losses, 'nt_xent', lambda a,b,t: (a-b).square().mean()+100*a.square().mean())   # everything to one point
    with pytest.raises(Collapse, match='embeddings collapsed in epoch'): encoder(p, recipe('smoke', pretrain_lr=.05, pretrain_epochs=60), 0, 'bimodal', 0.).get()
    monkeypatch.undo()
    with pytest.raises((ValueError, FloatingPointError), match='NaN|loss became'): encoder(p, recipe('smoke', pretrain_lr=1e12), 0).get()

def test_sizes_are_free_and_checked(fresh_runs, tmp_path):
    from safetensors.torch import load_file, safe_open, save_file
    p = pairs(resolve('twin', 'smoke', 0), recipe('smoke'), 0); f = encoder(p, recipe('smoke', dim=64, blocks=2, dropout=.1, optimizer='adamw'), 0).get()/'encoder.safetensors'
    e = load_encoder(f); assert e.dim==64 and e.what['parameters']==sum(v.numel() for v in e.net.parameters()) and e.what['pairs']==p.id
    with safe_open(f, 'pt') as s: meta = s.metadata()
    save_file(load_file(f), tmp_path/'e.safetensors', {k: v.replace('"blocks": 2', '"blocks": 3') for k,v in meta.items()})
    with pytest.raises(ValueError, match='not those of a ResMLP of width 64 and 3 blocks'): load_encoder(tmp_path/'e.safetensors')
    with pytest.raises(ValueError, match='optimizer='): encoder(p, recipe('smoke', optimizer='lion'), 0)
