"Base models, features, records and probes."
import json
import numpy as np, pytest, torch
from torch import nn
from cropnb.core import recipe, resolve, result
from cropnb.data import own_task, pairs, series
from cropnb.downstream import EndToEnd, build, fit, predict, training
from cropnb.encoders import ResMLP, families
from cropnb.evaluate import scores
from cropnb.features import features, load_part, read_part
from cropnb.pretrain import encoder, load_encoder
from cropnb.probing import label_grid, probes, probing

@pytest.fixture(scope='module')
def world(tmp_path_factory):
    "A task and three encoders of the smallest scene"
    mp = pytest.MonkeyPatch(); mp.setenv('CROPNB_RUNS', str(tmp_path_factory.mktemp('runs'))); d, r = resolve('twin', 'smoke', 0), recipe('smoke', epochs=2); p = pairs(d, r, 0)
    yield r, series(1, d, r, 0), dict(supervised=encoder(p, r, 0, 'none'), untrained=encoder(p, r, 0, epochs=0), bimodal=encoder(p, r, 0, 'bimodal', .2))
    mp.undo()

def part(n=64, dates=20, gaps=True, device='cpu'):
    "A toy task"
    g = torch.Generator().manual_seed(0); p = dict(x=torch.randn(n, dates, 12, generator=g).half(), y=torch.arange(n)%4, mask=torch.rand(n, dates, generator=g)<.7, day=torch.arange(dates).expand(n, dates))
    return {k: v.to(device) for k,v in p.items()}|dict(whole=not gaps)

def trained(m, p, **change):
    r = dict(hyper=dict(lr=1e-3), epochs=2, batch=24, seed=0, position='index', frozen=True)|change
    return fit(m, dict(train=p, val=p), r, torch.arange(len(p['y']), device=p['y'].device))

def unregistered(m):
    "Is there a layer that `.double()` does not reach? Then float64 meets float32"
    try: m.double()(torch.randn(4, 9, 12, dtype=torch.float64))
    except RuntimeError: return True
    finally: m.float()

@pytest.mark.parametrize('f', families)
def test_every_parameter_is_registered_moved_and_trained(f):
    m = families[f](12, 4); assert not unregistered(m); before = {k: v.clone() for k,v in m.state_dict().items()}; trained(m, part())
    assert [n for n,q in m.named_parameters() if torch.equal(q, before[n])]==[] and not any(k.training for k in (predict(m, part()), m)[1].modules())

def test_a_frozen_inception_would_be_seen():
    "The released snapshot's: blocks in a plain list are in no state_dict"
    m = families['inception'](12, 4); blocks = list(m.mods); del m.mods; m.__dict__['mods'] = blocks; assert unregistered(m)

@pytest.mark.parametrize('f', families)
def test_prediction_changes_nothing_and_draws_nothing(f):
    m = families[f](12, 4, **(dict(dropout=.5, layers=2) if f!='inception' else {})); old = {k: v.clone() for k,v in m.state_dict().items()}; p = part()
    assert torch.equal(predict(m, p), predict(m, p)) and all(torch.equal(v, old[k]) for k,v in m.state_dict().items())

@pytest.mark.parametrize('f', families)
def test_a_recorded_training_is_the_plain_one(f, monkeypatch):
    "With a last batch that is short and a learning rate that falls; on a CPU with a recorder that replays the plain step"
    from cropnb import graph
    def one(): torch.manual_seed(0); return (m := families[f](12, 4)), trained(m, part(gaps=False))
    (a,x), seen = one(), []
    class Played:
        def __init__(self, g): self.g = g
        def replay(self): seen.append('replayed'); self.g()
    monkeypatch.setattr(graph, 'record', lambda g, generators: Played(g)); monkeypatch.setattr(graph, 'aside', lambda g: (seen.append('plain'), g()))
    old = graph.Recorded.__init__; monkeypatch.setattr(graph.Recorded, '__init__', lambda self, *a, **k: (old(self, *a, **k), setattr(self, 'first', 3))[0])
    b,y = one(); assert seen==['plain']*3+['replayed'] and x==y and all(torch.equal(v, a.state_dict()[k]) for k,v in b.state_dict().items())

@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU here: what runs on one is not yet measured')
@pytest.mark.parametrize('f', families)
def test_on_a_gpu_too(f, monkeypatch):
    def one(): torch.manual_seed(0); return trained(families[f](12, 4).cuda(), part(n=240, gaps=False, device='cuda'))[1]
    a = one(); monkeypatch.setenv('CROPNB_EAGER', '1'); assert a==pytest.approx(one(), rel=1e-3)

def test_a_training_lets_go_of_its_data():
    "No cycle keeps the embeddings until the collector comes"
    import gc, weakref
    p = part(); w = weakref.ref(p['x']); gc.disable()
    try: trained(families['lstm'](12, 4), p); del p; assert w() is None
    finally: gc.enable()

def test_a_season_may_have_any_length_and_gaps():
    for f in families.values():
        m = f(12, 4).eval()
        for t in (1, 7, 144, 200): assert m(torch.randn(2, t, 12), torch.rand(2, t)<.5, torch.arange(t).expand(2, t)).isfinite().all()
    with torch.no_grad(): x,k = torch.randn(2, 9, 12), torch.ones(2, 9).bool(); m = families['transformer'](12, 4).eval(); far = 7*torch.arange(9).expand(2, 9); assert not torch.allclose(m(x, k, far), m(x, k))

def test_embedded_once_for_all_families(world, monkeypatch):
    r,s,e = world; import cropnb.pretrain as p; seen = []; old = p.Encoder.embed
    monkeypatch.setattr(p.Encoder, 'embed', lambda self, *a, **k: (seen.append(self.net.training), old(self, *a, **k))[1])
    made = [training(s, e['bimodal'], 1, f, 0, r, 0) for f in families]+[probing(s, e['bimodal'], 1, 'ridge', r, 0)]; fs = {c.inputs['features'].id for c in made}
    for c in made: c.get()
    assert len(fs)==1 and seen==[False]*2                                                              # train and val, in eval mode
    f = features(s, e['bimodal']).path; part = load_part(f, s.path, 'train'); assert part['x'].dtype==torch.float16 and sorted(x.name for x in f.glob('*.npy'))==['train.npy', 'val.npy']

def test_the_record(world):
    r,s,e = world; c = training(s, e['supervised'], 1, 'lstm', 0, r, 0); v = result(c.get()); y,p = load_part(features(s, e['supervised']).get(), s.path, 'val')['y'].numpy(), np.load(c.path/'predictions.npy')
    assert len(v['epoch_accuracy'])==2 and v['accuracy']==pytest.approx((y==p).mean())==pytest.approx(v['epoch_accuracy'][-1]) and len(v['until'])==len(v['without'])==12
    votes = np.load(c.path/'votes.npy'); assert len(votes)==v['n_fields_val'] and v['field_accuracy']==(votes[:,1]==votes[:,2]).mean() and 0<=v['weighted_accuracy']<=1
    assert v['until'][-1]==v['accuracy'] and {'producer', 'user', 'kappa', 'macro_f1', 'confusion', 'parameters'}<=v.keys() and not any(k in json.dumps(v) for k in ('seconds', 'host'))
    assert {'seconds', 'host', 'peak_mb'}<=json.loads((c.path/'log.json').read_text()).keys()

def test_fine_tuning_and_from_scratch(world):
    r,s,e = world; names = [result(training(s, e[k], 1, 'lstm', 0, r, 0, frozen=False).get())['method'] for k in ('untrained', 'bimodal')]; assert names==['end_to_end', 'bimodal_tuned']
    with pytest.raises(ValueError, match='nothing to train'): training(s, e['supervised'], 1, 'lstm', 0, r, 0, frozen=False).get()
    with pytest.raises(ValueError, match='config=3: profile smoke has 1 sets of lstm'): training(s, e['supervised'], 1, 'lstm', 3, r, 0)
    c = training(s, e['untrained'], 1, 'lstm', 0, r, 0); base = [build(c.recipe|dict(frozen=k), 256, 9, e['untrained'].path) for k in (True, False)]; assert all(torch.equal(v, base[1].base.state_dict()[k]) for k,v in base[0].state_dict().items())
    c = training(s, e['bimodal'], 1, 'lstm', 0, r, 0, frozen=False); m = build(c.recipe, 12, 9, e['bimodal'].path); assert isinstance(m, EndToEnd) and all(p.requires_grad for p in m.parameters())
    enc, x = load_encoder(e['bimodal'].path), read_part(s.path/'val.h5')['x'][:5]; seen = load_part(features(s, e['bimodal'], frozen=False).get(), s.path, 'val')['x'][:5].float()
    assert (m.enc.eval()(seen.flatten(0, 1)).unflatten(0, x.shape[:2])-enc.embed(x)).abs().max()<.01*enc.embed(x).std()   # it starts as what was pre-trained

def test_probes_leave_records_like_trainings(world):
    r,s,e = world; runs = [probing(s, e['bimodal'], 1, f, r, 0) for f in probes]+[training(s, e['bimodal'], 1, 'transformer', 0, r, 0)]
    for c in runs: c.get()
    t = scores(runs); assert list(t.family)==[*probes, 'transformer'] and t[['accuracy', 'kappa', 'macro_f1', 'weighted_accuracy', 'field_accuracy']].notna().all(None) and set(t.variant)=={'bimodal'}
    with pytest.raises(ValueError, match="family='svm' is not one of linear, ridge, knn, forest"): probing(s, e['bimodal'], 1, 'svm', r, 0)

def test_labels_by_fields(world):
    r,s,e = world; runs = label_grid(s, dict(supervised=e['supervised']), 1, r, 0, families=('ridge', 'lstm')); v = {k: result(c.get()) for k,c in runs.items()}
    for f in ('ridge', 'lstm'):
        n = [v['supervised',f,k]['n_fields_train'] for k in (1, 2, 5, 10, 0)]; assert n[0]==9 and n==sorted(n) and len({c.id for c in runs.values()})==10
    assert v['supervised','ridge',1]['n_fields_val']==v['supervised','ridge',0]['n_fields_val']

def test_day_of_year(world):
    r,s,e = world; day = training(s, e['supervised'], 1, 'transformer', 0, r|dict(position='day'), 0); i = training(s, e['supervised'], 1, 'transformer', 0, r, 0)
    assert result(day.get())['epoch_loss']!=result(i.get())['epoch_loss']
    with pytest.raises(ValueError, match="position='week' is not one of index, day"): training(s, e['supervised'], 1, 'lstm', 0, r|dict(position='week'), 0)

def test_series_that_name_nothing(world, tmp_path):
    "The authors' files have neither fields nor dates nor prevalence: what cannot be known is NaN or empty, and few fields are an error"
    r,_,e = world; rng = np.random.default_rng(0); y = np.arange(40)%2+1; own = dict(time_series=rng.integers(100, 3000, (40, 6, 12)), mask=np.ones((40, 6)), date=np.zeros((40, 6)), label=y, field_id=np.arange(40), classes=['a', 'b'])
    own_task(tmp_path/'t', own, 'toy'); import h5py
    for k in ('train', 'val'):
        with h5py.File(tmp_path/'t'/f'{k}.h5', 'a') as h: h['field_id'][:] = -1
    v = result(training(tmp_path/'t', e['supervised'], 4, 'lstm', 0, r, 0).get()); assert v['n_fields_val'] is None and np.isnan(v['field_accuracy']) and np.isnan(v['weighted_accuracy']) and v['until']==[]
    with pytest.raises(ValueError, match='do not name their fields'): training(tmp_path/'t', e['supervised'], 4, 'lstm', 0, r, 0, fields=1).get()
