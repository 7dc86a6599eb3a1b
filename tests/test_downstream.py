"Base models, features, records and probes."
import json
import numpy as np, pytest, torch
from torch import nn
from cropnb.core import recipe, resolve, result
from cropnb.data import own_task, pairs, series
from cropnb.downstream import EndToEnd, build, fit, predict, training
from cropnb.encoders import ResMLP, families
from cropnb.evaluate import scores
from cropnb.features import features, load_part
from cropnb.pretrain import encoder
from cropnb.probing import label_grid, probes, probing

@pytest.fixture(scope='module')
def world(tmp_path_factory):
    "A task and three encoders of the smallest scene"
    mp = pytest.MonkeyPatch(); mp.setenv('CROPNB_RUNS', str(tmp_path_factory.mktemp('runs'))); d, r = resolve('twin', 'smoke', 0), recipe('smoke', epochs=2); p = pairs(d, r, 0)
    yield r, series(1, d, r, 0), dict(supervised=encoder(p, r, 0, 'none'), untrained=encoder(p, r, 0, epochs=0), bimodal=encoder(p, r, 0, 'bimodal', .2))
    mp.undo()

@pytest.mark.parametrize('f', families)
def test_every_parameter_is_registered_moved_and_trained(f):
    m = families[f](12, 4); before = {k: v.clone() for k,v in m.state_dict().items()}; g = torch.Generator().manual_seed(0)
    assert {n for n,_ in m.named_parameters()}<=before.keys() and all(v.dtype==torch.float64 for v in m.double().state_dict().values() if v.is_floating_point())
    x,y = torch.randn(64, 20, 12, generator=g).half(), torch.arange(64)%4; p = dict(x=x, y=y, mask=torch.rand(64, 20, generator=g)<.7, day=torch.arange(20).expand(64, 20), whole=False)
    m.load_state_dict(before); m.float(); fit(m, dict(train=p, val=p), dict(hyper=dict(lr=1e-3), epochs=2, batch=64, seed=0, position='index', frozen=True), torch.arange(64))
    assert [n for n,q in m.named_parameters() if torch.equal(q, before[n])]==[]
    assert not any(k.training for k in (predict(m, p), m)[1].modules())                               # eval mode reaches every norm

def norms(m): return [k for k in m.modules() if isinstance(k, (nn.BatchNorm1d, nn.LayerNorm))]

@pytest.mark.parametrize('f', families)
def test_prediction_changes_no_statistics(f):
    m = families[f](12, 4); old = {k: v.clone() for k,v in m.state_dict().items()}; assert norms(m)
    predict(m, dict(x=torch.randn(8, 5, 12).half(), y=torch.zeros(8), mask=torch.ones(8, 5).bool(), day=torch.zeros(8, 5), whole=True))
    assert all(torch.equal(v, old[k]) for k,v in m.state_dict().items())

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
    c = training(s, e['bimodal'], 1, 'lstm', 0, r, 0, frozen=False); m = build(c.recipe, 12, 9, e['bimodal'].path); assert isinstance(m, EndToEnd) and all(p.requires_grad for p in m.parameters())

def test_probes_leave_records_like_trainings(world):
    r,s,e = world; runs = [probing(s, e['bimodal'], 1, f, r, 0) for f in probes]+[training(s, e['bimodal'], 1, 'transformer', 0, r, 0)]
    for c in runs: c.get()
    t = scores(runs); assert list(t.family)==[*probes, 'transformer'] and t[['accuracy', 'kappa', 'macro_f1', 'weighted_accuracy', 'field_accuracy']].notna().all(None) and set(t.method)=={'bimodal'}
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
    v = result(training(tmp_path/'t', e['supervised'], 4, 'lstm', 0, r, 0).get()); assert np.isnan(v['field_accuracy']) and np.isnan(v['weighted_accuracy']) and v['until']==[]
    with pytest.raises(ValueError, match='do not name their fields'): training(tmp_path/'t', e['supervised'], 4, 'lstm', 0, r, 0, fields=1).get()
