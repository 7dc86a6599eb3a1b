"Pre-training: cut and resumed, judged on the way, seen through its own views; files of before"
import functools, json, math
import numpy as np, pytest, torch
from safetensors.torch import load_file, save_file
from cropnb import pretrain
from cropnb.data import series
from cropnb.encoder import load_encoder
from cropnb.encoders import ResMLP
from cropnb.engine.bands import s2_bands
from cropnb.engine.recipes import recipe
from cropnb.engine.records import result
from cropnb.features import features
from cropnb.methods.table import find_method, methods
from cropnb.pretrain import Step, Trainer, at_step, encoder, make_optimizer, probe, start_epoch
from cropnb.views import Bimodal, Pairs, Unimodal, modes

small = dict(dim=32, blocks=2, pretrain_batch=64)   # 480 pairs: 7 steps an epoch
per_epoch = 7

def run_of(smoke, mode='bimodal', epochs=3, judge=(), views=None, **changes):
    "A small training as a run"
    r = recipe('smoke', **small|changes)
    return encoder(smoke.pairs, r, 0, mode, .2, epochs, judge=judge, views=views)

# ---------------------------------------------------------------- cut and resumed
class Killed(BaseException): "In place of a kill"

def killed_after(f, calls):
    "`f`, until it has been called so many times"
    left = [calls]
    def called(*args, **kwargs):
        if not left[0]: raise Killed
        left[0] -= 1
        return f(*args, **kwargs)
    return called

def make(run, folder):
    "Make a run in a folder of one's choice, and keep its last checkpoint"
    (folder/'tmp').mkdir(parents=True, exist_ok=True)
    found = run.make(folder, run.recipe, run.inputs['pairs'].get())
    files = {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob('*.safetensors')}
    return found, files, torch.load(folder/'tmp'/'checkpoint.pt')

def same(a, b):
    "To the bit, in whatever nest"
    if isinstance(a, dict): return a.keys()==b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list): return len(a)==len(b) and all(map(same, a, b))
    return torch.equal(a, b) if torch.is_tensor(a) else a==b

# in the middle of the second epoch: before a step, or when its checkpoint is written
cuts = dict(step=(Step, '__call__', per_epoch+3), checkpoint=(pretrain, 'save_state', per_epoch+3))

@pytest.mark.parametrize('cut', cuts)
@pytest.mark.parametrize('mode', modes)
@pytest.mark.parametrize('method', ['simclr', 'barlow_twins'])
def test_a_cut_epoch_is_gone_on_with(smoke, tmp_path, monkeypatch, method, mode, cut):
    "Losses, probes, judged steps, weights, optimiser and generators, with dropout"
    run = run_of(smoke, mode, method=method, dropout=.1, judge=[5, per_epoch+2, per_epoch+5])
    found, files, state = make(run, tmp_path/'whole')
    assert len(found['loss'])==len(found['probes'])==3
    kept = [f'steps/{k:08d}/encoder.safetensors' for k in (5, 9, 12)]
    assert sorted(files)==['encoder.safetensors', *kept]

    monkeypatch.setattr(pretrain, 'Trainer', functools.partial(Trainer, every=0.))
    with monkeypatch.context() as m:
        where, name, calls = cuts[cut]
        m.setattr(where, name, killed_after(getattr(where, name), calls))
        with pytest.raises(Killed): make(run, tmp_path/'cut')
    at = torch.load(tmp_path/'cut'/'tmp'/'checkpoint.pt')['at']
    assert per_epoch<at<2*per_epoch

    steps = []
    once = Step.__call__
    monkeypatch.setattr(Step, '__call__', lambda *args: [steps.append(1), once(*args)])
    resumed = make(run, tmp_path/'cut')
    assert len(steps)==3*per_epoch-at
    assert resumed[0]==found
    assert resumed[1]==files
    assert same(resumed[2], state)

def test_a_checkpoint_of_another_run_is_refused(smoke, tmp_path):
    "Another method in the same folder"
    make(run_of(smoke), tmp_path)
    with pytest.raises(ValueError, match='checkpoint.pt belongs to another run: delete it'):
        make(run_of(smoke, method='dcl'), tmp_path)

# ---------------------------------------------------------------- judged steps
def weights(folder): return load_file(folder/'encoder.safetensors')

@pytest.mark.parametrize('mode', modes)
def test_a_judged_step_is_the_end_of_a_shorter_run(smoke, mode):
    judged = run_of(smoke, mode, judge=[2*per_epoch], dropout=.1)
    short = run_of(smoke, mode, epochs=2, dropout=.1)
    assert same(weights(at_step(judged, 2*per_epoch).get()), weights(short.get()))
    found, last = result(judged), result(short)
    assert found['judged']=={str(2*per_epoch): last['probes'][-1]}
    assert last['judged']=={}

def test_a_judged_step_within_an_epoch(smoke):
    "Against as many plain steps"
    at = per_epoch+3
    run = run_of(smoke, judge=[at], dropout=.1)
    kept = load_encoder(at_step(run, at).get())
    views, p, own = Bimodal(.2), Pairs(smoke.pairs.get()), run.recipe
    torch.manual_seed(own['seed'])
    method = find_method('simclr')(views, own['dim'], own['blocks'], own['dropout']).train()
    step = Step(method, views, make_optimizer(method, own), p, own['batch'])
    for epoch, n in ((0, per_epoch), (1, at-per_epoch)):
        for rows in start_epoch(step, own['seed'], epoch)[:n]: step(rows)
    assert same(dict(kept.net.state_dict()), dict(method.encoder.state_dict()))

def test_judging_changes_nothing_else(smoke):
    plain, judged = run_of(smoke, dropout=.1), run_of(smoke, dropout=.1, judge=[1, 3, per_epoch])
    assert same(weights(plain.get()), weights(judged.get()))
    a,b = result(plain), result(judged)
    assert a.pop('judged')=={}
    assert list(b.pop('judged'))==['1', '3', str(per_epoch)]
    assert a==b
    assert plain.id!=judged.id

def test_the_encoder_of_a_step_serves_downstream(smoke):
    run = run_of(smoke, judge=[2])
    kept = at_step(run, 2)
    enc = load_encoder(kept.get())
    assert (enc.what['mode'], enc.what['method'], enc.dim)==('bimodal', 'simclr', 32)
    task = series(1, smoke.data, smoke.recipe, 0)
    seen = np.load(features(task, kept).get()/'val.npy')
    end = np.load(features(task, run).get()/'val.npy')
    assert seen.shape==end.shape==(54, 8, 32)
    assert (seen!=end).any()
    assert result(kept)==dict(step=2)

def test_a_step_that_is_not_judged(smoke):
    with pytest.raises(ValueError, match='step=3 is not judged by pretrain/.*: 1, 2'):
        at_step(run_of(smoke, judge=[2, 1]), 3)
    with pytest.raises(ValueError, match='step=3 is not judged by pretrain/.*: none is'):
        at_step(run_of(smoke), 3)

# ---------------------------------------------------------------- views of a study
class Twice(Unimodal):
    "The same tensor twice"
    def __call__(self, pairs, rows, g): return [super().__call__(pairs, rows, g)[0]]*2

def test_probes_look_through_the_views_of_the_run(smoke):
    run = run_of(smoke, 'unimodal', epochs=1, views=Twice)
    own, = result(run.get())['probes']
    assert own['alignment']==0
    assert own['retrieval']==own['retrieval_in_date']==1
    plain, = result(run_of(smoke, 'unimodal', epochs=1).get())['probes']
    assert plain['alignment']>0
    assert plain['retrieval']<1
    assert run.id!=run_of(smoke, 'unimodal', epochs=1).id

def test_a_probe_draws_nothing_and_changes_nothing(smoke):
    "But the mode of the networks"
    p, views = Pairs(smoke.pairs.get()), Bimodal(.2)
    method = find_method('simclr')(views, 32, 2, .1).train()
    before = {k: v.clone() for k,v in method.state_dict().items()}
    generator = torch.get_rng_state()
    first = probe(method, views, p, 0)
    assert same(dict(method.state_dict()), before)
    assert torch.equal(torch.get_rng_state(), generator)
    assert probe(method, views, p, 0)==first
    assert probe(method, views, p, 1)!=first
    assert not method.training

# ---------------------------------------------------------------- the record
chances = dict(simclr=math.log(127), dcl=math.log(126), clip=math.log(64), barlow_twins=None)

@pytest.mark.parametrize('method', chances)
def test_chance_is_recorded(smoke, method):
    "Of a batch of 64; where there is no such number, none is"
    found = result(run_of(smoke, epochs=1, method=method).get())
    assert found['chance']==chances[method]
    assert found['method']==method
    assert found['steps']==per_epoch

def test_options_are_recorded_where_they_differ(smoke):
    def found(**options):
        run = run_of(smoke, epochs=1, method='dcl', options=options)
        return run, result(run.get())
    run, plain = found()
    same_run, written_out = found(symmetric=True, temperature=.07)
    other, one_sided = found(symmetric=False)
    assert same_run.id==run.id
    assert plain['options']==written_out['options']=={}
    assert one_sided['options']==load_encoder(other.path).what['options']==dict(symmetric=False)
    assert one_sided['loss']!=plain['loss']

def test_wrong_options_are_named(smoke):
    says = 'DCL has no option weight: it has temperature=0.07, symmetric=True'
    with pytest.raises(ValueError, match=says): run_of(smoke, method='dcl', options=dict(weight=1.))
    says = 'option symmetric=1 is not of the type of its default True'
    wrong = dict(symmetric=1)
    with pytest.raises(ValueError, match=says): run_of(smoke, method='dcl', options=wrong)
    says = f"method='cpc' is not one of {', '.join(methods)}"
    with pytest.raises(ValueError, match=says): run_of(smoke, method='cpc')

# ---------------------------------------------------------------- files of an earlier version
def write_old(folder, **what):
    "An encoder file as it was: `method` is the mode, the loss is in the recipe"
    net = torch.nn.Identity() if what['method']=='supervised' else ResMLP(12, 32, 2)
    about = dict(bands=s2_bands, kind=type(net).__name__, source='toy', pairs='0'*12, **what)
    tensors = dict(net.state_dict(), _mean=torch.full((12,), .2), _std=torch.full((12,), .1))
    folder.mkdir()
    save_file(tensors, folder/'encoder.safetensors', dict(cropnb=json.dumps(about, sort_keys=True)))
    return folder, net.eval()

was = [
    (dict(method='bimodal', loss='dcl_one_sided'), ('bimodal', 'dcl', dict(symmetric=False))),
    (dict(method='unimodal', loss='nt_xent'), ('unimodal', 'simclr', {})),
    (dict(method='bimodal', loss='barlow_twins'), ('bimodal', 'barlow_twins', {})),
    (dict(method='untrained', loss='nt_xent'), ('untrained', None, {})),
    (dict(method='supervised', loss='nt_xent'), ('raw', None, {}))]

@pytest.mark.parametrize('old, now', was)
def test_an_old_encoder_file_is_read(smoke, tmp_path, old, now):
    "In today's words; and it is used as ever"
    own = dict(dim=32, blocks=2, dropout=0., loss=old['loss'], temperature=.07)
    folder, net = write_old(tmp_path/'old', method=old['method'], corruption=None, recipe=own)
    e = load_encoder(folder)
    assert tuple(e.what[k] for k in ('mode', 'method', 'options'))==now
    x = torch.full((3, 12), 1500.)
    with torch.no_grad(): want = net((x/10_000-.2)/.1)
    torch.testing.assert_close(e.embed(x), want)
    made = features(series(1, smoke.data, smoke.recipe, 0), folder).get()
    assert result(made)['what']['mode']==now[0]
