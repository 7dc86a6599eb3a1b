"Losses against plain loops in float64; trainings with few labels: edge cases, resuming, learning"
import math
import numpy as np, pytest, torch
from torch.nn import functional as F
from cropnb import few_labels as room
from cropnb.base_models import families
from cropnb.controls import raw, untrained
from cropnb.data import series
from cropnb.downstream import build, load_model, training
from cropnb.engine.records import result
from cropnb.few_labels import LabelStep, LabelTrainer, Projected, few_labels, label_counts
from cropnb.few_labels import leave_out, seen_by_net, split_labels
from cropnb.methods.labels import Memory, ccssl_loss, class_triplets, fixmatch_loss, graph_loss
from cropnb.methods.labels import label_graph, soft_loss, strong_view, trainer_options, trainers
from cropnb.methods.labels import weak_view
from cropnb.probing import probing

def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))

def units(*shape, seed=0): return F.normalize(drawn(*shape, seed=seed), dim=1)
def labels(n, classes, seed=0, sharp=4.): return (sharp*drawn(n, classes, seed=seed)).softmax(1)
def dot(a, b): return sum(x*y for x,y in zip(a.tolist(), b.tolist()))
def log_softmax(values, i): return values[i]-math.log(sum(map(math.exp, values)))

def close(a, b): assert abs(float(a)-float(b))<1e-10, (float(a), float(b))

# ---------------------------------------------------------------- losses, by loops
def test_fixmatch():
    weak,strong = 3*drawn(20, 4), drawn(20, 4, seed=1)
    total = 0.
    for w,s in zip(weak.tolist(), strong.tolist()):
        label = max(range(4), key=w.__getitem__)
        if math.exp(log_softmax(w, label))>=.8: total -= log_softmax(s, label)
    assert total>0
    close(fixmatch_loss(weak, strong, .8), total/20)

def test_comatch_labels():
    strong,probs = drawn(20, 4), labels(20, 4)
    total = 0.
    for s,q in zip(strong.tolist(), probs.tolist()):
        if max(q)>=.9: total -= sum(q[c]*log_softmax(s, c) for c in range(4))
    assert total>0
    close(soft_loss(strong, probs, .9), total/20)

def graph_by_loops(probs, threshold):
    n = len(probs)
    q = [[1. if i==j else dot(probs[i], probs[j]) for j in range(n)] for i in range(n)]
    q = [[v if v>=threshold else 0. for v in row] for row in q]
    return [[v/sum(row) for v in row] for row in q]

def test_comatch_graph():
    z0,z1,probs = units(12, 5), units(12, 5, seed=1), labels(12, 3, sharp=6.)
    q, total = graph_by_loops(probs, .8), 0.
    for i in range(12):
        row = [dot(z0[i], z1[j])/.2 for j in range(12)]
        total -= sum(q[i][j]*log_softmax(row, j) for j in range(12))
    assert any(0<v<1 for row in q for v in row)
    close(graph_loss(z0, z1, label_graph(probs)), total/12)

def ccssl_by_loops(z0, z1, probs, push, t=.07):
    "Positives by class and weight; oneself is no positive and in no sum"
    m = len(z0)
    z = torch.cat([z0, z1])
    best, label = probs.max(1).values.tolist(), probs.argmax(1).tolist()
    total = 0.
    for a in range(2*m):
        others = [b for b in range(2*m) if b!=a]
        whole = math.log(sum(math.exp(dot(z[a], z[b])/t) for b in others))
        over = weight = 0.
        for b in others:
            i,j = a%m, b%m
            w = 1. if i==j else best[i]*best[j]*(label[i]==label[j])*(min(best[i], best[j])>=push)
            over += w*(dot(z[a], z[b])/t-whole)
            weight += w
        total -= over/weight
    return total/(2*m)

@pytest.mark.parametrize('push', [0., .6, .9])
def test_ccssl(push):
    z0,z1,probs = units(10, 5), units(10, 5, seed=1), labels(10, 3, sharp=1.5)
    close(ccssl_loss(z0, z1, probs, push), ccssl_by_loops(z0, z1, probs, push))

def triplets_by_loops(z, label, margin):
    n, found = len(z), []
    for a in range(n):
        for p in range(n):
            for k in range(n):
                if p==a or label[p]!=label[a] or label[k]==label[a]: continue
                gap = dot(z[a], z[p])-dot(z[a], z[k])
                if 0<gap<margin: found.append(margin-gap)
    return sum(found)/max(len(found), 1), len(found)

def test_triplets():
    z, label = units(18, 4), torch.arange(18)%3
    want,n = triplets_by_loops(z, label, .2)
    assert n>20
    close(class_triplets(z, label), want)

def test_triplets_as_the_letter():
    pytest.importorskip('pytorch_metric_learning', reason='the letter uses it')
    from pytorch_metric_learning import distances, losses, miners, reducers
    z, label = units(18, 4), torch.arange(18)%3
    cosine = distances.CosineSimilarity()
    mine = miners.TripletMarginMiner(margin=.2, distance=cosine, type_of_triplets='semihard')
    loss = losses.TripletMarginLoss(
        margin=.2, distance=cosine, reducer=reducers.ThresholdReducer(low=0))
    close(class_triplets(z, label), loss(z, label, mine(z, label)))

def test_no_triplets_no_gradient():
    "One class alone, and one sample a class"
    for label in (torch.zeros(6).long(), torch.arange(6)):
        z = units(6, 4).requires_grad_()
        loss = class_triplets(z, label)
        loss.backward()
        assert loss==0 and torch.equal(z.grad, torch.zeros_like(z))

class ByHand:
    "CoMatch's memory with lists, as in its description"
    def __init__(self, batches, recent):
        self.batches,self.recent,self.shares,self.queue = batches, recent, [], []
    def align(self, probs):
        self.shares = [*self.shares, probs.mean(0).tolist()][-self.recent:]
        mean = [sum(s[c] for s in self.shares)/len(self.shares) for c in range(probs.shape[1])]
        rows = [[v/m for v,m in zip(row, mean)] for row in probs.tolist()]
        return torch.tensor([[v/sum(row) for v in row] for row in rows], dtype=torch.float64)
    def smooth(self, probs, feats, steps):
        if steps<=self.batches: return probs
        kept = [pair for step in self.queue[-self.batches:] for pair in step]
        out = []
        for f,own in zip(feats, probs):
            near = [math.exp(dot(f, g)/.2) for g,_ in kept]
            voted = [sum(n*q[c] for n,(_,q) in zip(near, kept))/sum(near) for c in range(len(own))]
            out.append([.9*v+.1*w for v,w in zip(own.tolist(), voted)])
        return torch.tensor(out, dtype=torch.float64)

def test_memory():
    "Over more steps than the queue and the recent shares hold"
    ours, own = Memory(5, 3, 6, batches=3, recent=4).double(), ByHand(3, 4)
    for step in range(9):
        probs,feats = labels(6, 3, seed=step), units(6, 5, seed=step+50)
        a,b = ours.align(probs), own.align(probs)
        assert torch.allclose(a, b, atol=1e-12)
        assert torch.allclose(ours.smooth(a, feats), own.smooth(b, feats, step), atol=1e-12)
        ours.add(feats, a)
        own.queue.append(list(zip(feats, b.tolist())))

def test_pseudo_labels_carry_no_gradient():
    "What the weak view says is a target; the strong ones and the labelled learn"
    for name,(method,options) in trainers.items():
        sizes = (4, *[12]*(1+method.strong)) if method.strong else (4,)
        m = method(8, 3, 4, **options|dict(mu=3, tau=.2)) if method.strong else method(8, 3, 4)
        scores = [drawn(n, 3, seed=n+i).float().requires_grad_() for i,n in enumerate(sizes)]
        z = [units(n, 8, seed=n+i).float().requires_grad_() for i,n in enumerate(sizes)]
        m.loss(torch.tensor([0, 1, 2, 0]), scores, z)[0].backward()
        learns = [s.grad is not None for s in scores]
        assert learns==[True, False, True, False][:len(scores)], name

def test_a_class_that_nobody_names():
    "Its share is 0: aligned labels stay finite"
    m = Memory(4, 3, 2)
    probs = torch.tensor([[1., 0., 0.], [0., 1., 0.]])
    assert torch.equal(m.align(probs), probs)

# ---------------------------------------------------------------- views
def season_views(mask):
    g = torch.Generator().manual_seed(3)
    x = torch.arange(float(mask.numel()*2)).view(*mask.shape, 2)
    return x, [view(x, mask, g) for view in (weak_view, strong_view)]

@pytest.mark.parametrize('shape', [(1, 30), (5, 1), (5, 2), (4, 30)])
def test_views_leave_something(shape):
    "One season, one date; a season without any date stays so"
    mask = torch.ones(shape).bool()
    mask[0] = shape[0]==1
    x,views = season_views(mask)
    for v,m in views:
        assert v.shape==x.shape and v.isfinite().all()
        assert torch.equal(m.any(1), mask.any(1))

def test_views_are_those_of_the_generator():
    mask = torch.rand(6, 20)<.7
    (_,first),(_,second) = season_views(mask), season_views(mask)
    for (a,m),(b,n) in zip(first, second): assert torch.equal(a, b) and torch.equal(m, n)

def test_what_was_not_observed_is_never_seen():
    "Whatever lies there, the observed dates of both views are the same"
    mask = torch.rand(6, 40, generator=torch.Generator().manual_seed(0))<.6
    shown = []
    for value in (0., 1e6):
        g = torch.Generator().manual_seed(1)
        x = drawn(6, 40, 3).float().masked_fill(~mask[...,None], value)
        v,m = strong_view(x, mask, g)
        shown.append(v[m])
    assert torch.equal(*shown)

# ---------------------------------------------------------------- trainings of a toy task
def toy(n=48, dates=24, classes=3, seed=0):
    "Waves whose phase is the class, four samples a field, with gaps"
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n)//4%classes
    t = torch.linspace(0, 6.28, dates)
    x = (t+2*y[:,None]).sin()[...,None].repeat(1, 1, 4)
    x = x+.3*torch.randn(x.shape, generator=g)
    mask = torch.rand(n, dates, generator=g)<.8
    return dict(
        x=x.half(), mask=mask, whole=False, day=torch.arange(dates).expand(n, dates), y=y,
        field=np.arange(n)//4, classes=[f'crop {c}' for c in range(classes)], prevalence=None)

def toy_recipe(trainer, **changes):
    options = trainer_options(trainer, **changes.pop('options', {}))
    return dict(
        trainer=trainer, options=options, epochs=4, batch=6, seed=0, position='index',
        family='transformer', frozen=True, fields=1,
        hyper=dict(d_model=16, heads=2, layers=1, dropout=.1)) | changes

def toy_trainer(r, folder, p=None, every=1e9):
    p = p or toy()
    rows = split_labels(p, r['fields'], 0)
    net = Projected(build(r, 4, len(p['classes']), None))
    (folder/'tmp').mkdir(parents=True, exist_ok=True)
    step = LabelStep(net, len(p['classes']), p, r)
    return LabelTrainer(step, toy(seed=9), rows, r, folder, every)

@pytest.mark.parametrize('trainer', trainers)
def test_it_learns(trainer, tmp_path):
    "From one field a class; every parameter that has a part in the loss moves"
    t = toy_trainer(toy_recipe(trainer, epochs=8), tmp_path)
    before = {k: v.clone() for k,v in t.step.net.named_parameters()}
    found = t.run()
    assert found['accuracy'][-1]>.8
    still = {k for k,v in t.step.net.named_parameters() if torch.equal(v, before[k])}
    embeds = trainers[trainer][0].strong==2
    assert still<=({k for k in before if k.startswith('project')} if not embeds else set())
    assert seen_by_net(t.step.ema, t.val)[0]==found['accuracy'][-1]

small = dict(
    lstm=dict(hidden=8, layers=1), inception=dict(hidden=8, layers=1, kernel=5),
    transformer=dict(d_model=8, heads=2, layers=1, dropout=0.))

@pytest.mark.parametrize('family', families)
def test_every_family(family, tmp_path):
    "The head is found, and the position may be a day"
    r = toy_recipe('comatch_triplet', family=family, hyper=small[family], epochs=1, position='day')
    assert math.isfinite(toy_trainer(r, tmp_path).run()['loss'][0])

@pytest.mark.parametrize('position', ['index', 'day'])
@pytest.mark.parametrize('trainer', ['fixmatch', 'comatch_triplet'])
@pytest.mark.parametrize('family', families)
def test_the_unlabelled_weak_view_needs_no_gradient(family, trainer, position, tmp_path):
    "The same gradients, though it goes alone; with batch norm it does not, or it would be another"
    r = toy_recipe(
        trainer, family=family, hyper=small[family], position=position, options=dict(tau=.3))
    apart,together = (toy_trainer(r, tmp_path).step for _ in range(2))
    assert apart.apart==(family!='inception')
    together.apart = False
    rows = torch.arange(6), torch.arange(6, 48)
    for step in (apart, together):
        step.g.manual_seed(0)
        step(*rows, 0.)
    assert torch.equal(apart.counts, together.counts) and apart.counts[1]>0
    for one,other in zip(apart.net.parameters(), together.net.parameters()):
        assert (one.grad is None)==(other.grad is None)
        if one.grad is not None: assert torch.allclose(one.grad, other.grad, atol=1e-6)
    shown = [torch.zeros(7, 24, 4), torch.ones(7, 24).bool(), None]
    scores,_ = apart._see(shown, [1, 2, 4])
    assert [len(s) for s in scores]==[1, 2, 4]
    assert [s.requires_grad for s in scores]==[True, family=='inception', True]

def test_what_the_contrast_counts(tmp_path):
    "CCSSL's share above push by epoch; the others have none"
    for trainer,has in (('ccssl_out', True), ('comatch', False)):
        r = toy_recipe(trainer, epochs=1, options=dict(tau=.3))
        found = toy_trainer(r, tmp_path/trainer).run()
        assert (found['clear'][0] is not None)==has
        if has: assert found['clear'][0]<=found['sure'][0]

def same_state(a, b):
    "Of two checkpoints, however nested"
    if torch.is_tensor(a): return torch.equal(a, b)
    if isinstance(a, dict): return a.keys()==b.keys() and all(same_state(a[k], b[k]) for k in a)
    if isinstance(a, list): return len(a)==len(b) and all(map(same_state, a, b))
    return a==b

class Killed(Exception): "In place of a signal"

@pytest.mark.parametrize('trainer', ['supervised', 'fixmatch', 'comatch', 'comatch_triplet'])
def test_resumed(trainer, tmp_path, monkeypatch):
    "In the middle of the third epoch; dropout, queue, average and optimiser go on"
    r = toy_recipe(trainer)
    whole = toy_trainer(r, tmp_path/'whole')
    want = whole.run()
    cut = toy_trainer(r, tmp_path/'cut', every=0)
    plain = LabelStep.__call__
    def dies(self, *args):
        if self.steps==19: raise Killed
        plain(self, *args)
    monkeypatch.setattr(LabelStep, '__call__', dies)
    with pytest.raises(Killed): cut.run()
    monkeypatch.setattr(LabelStep, '__call__', plain)
    again = toy_trainer(r, tmp_path/'cut', every=0)
    assert again.run()==want
    assert same_state(again.step.state(), whole.step.state())
    for name in ('embedding_first.npy', 'embedding_last.npy'):
        assert (tmp_path/'cut'/name).read_bytes()==(tmp_path/'whole'/name).read_bytes()

def test_a_damaged_checkpoint(tmp_path, capsys):
    r = toy_recipe('comatch', epochs=2)
    first = toy_trainer(r, tmp_path, every=0)
    want = first.run()
    data = bytearray(first.checkpoint.read_bytes())
    data[len(data)//2] ^= 255
    first.checkpoint.write_bytes(data)
    assert toy_trainer(r, tmp_path).run()==want
    assert 'is damaged' in capsys.readouterr().out

def test_a_loss_that_explodes(tmp_path):
    r = toy_recipe('supervised', options=dict(lr=1e30))
    with pytest.raises(FloatingPointError, match='smaller lr among the options'):
        toy_trainer(r, tmp_path).run()

# ---------------------------------------------------------------- edge cases of labels
def test_fewer_fields_than_asked(capsys):
    p = toy()
    p['field'] = np.where(p['y'].numpy()==1, 100, p['field'])   # one field of that crop
    labelled,rest = split_labels(p, 2, 0)
    counts = label_counts(p, labelled, rest, 2)
    assert counts['fields']==[2, 1, 2] and counts['unlabelled'][1]==0
    said = capsys.readouterr().out
    assert 'crop 1: 1 fields are labelled, not 2' in said
    assert 'crop 1: no unlabelled sample' in said

def test_a_class_without_an_unlabelled_sample_is_trained(tmp_path):
    p = toy()
    p['field'] = np.where(p['y'].numpy()==1, 100, p['field'])
    assert toy_trainer(toy_recipe('comatch'), tmp_path, p).run()['accuracy'][-1]>.6

def test_classes_that_are_never_labelled(tmp_path):
    p = leave_out(toy(), ('crop 1',))
    labelled,rest = split_labels(p, 1, 0)
    assert set(p['y'][labelled].tolist())=={0, 1}
    assert label_counts(p, labelled, rest, 1)['unseen']==16
    t = toy_trainer(toy_recipe('ccssl_out', epochs=2), tmp_path, p)
    found = t.run()
    assert found['right'][-1] is None or found['right'][-1]<1   # theirs are never right
    assert t.step.method.memory.probs.shape[1]==2

def test_one_class():
    with pytest.raises(ValueError, match='1 class is left to tell from others'):
        leave_out(toy(classes=1))

# ---------------------------------------------------------------- runs
@pytest.fixture(scope='module')
def world(smoke): return series(1, smoke.data, smoke.recipe, 0), raw(smoke.pairs), smoke.recipe

def few(world, trainer, fields=1, **changes):
    s,e,r = world
    return few_labels(s, e, trainer, 1, 'transformer', r, 0, fields, **changes)

def test_the_name_of_a_run(world):
    plain = few(world, 'comatch')
    assert few(world, 'comatch', tau=.95).id==plain.id
    others = [few(world, 'comatch', tau=.9), few(world, 'fixmatch')]
    others.append(few(world, 'comatch', unseen=('x',)))
    assert len({plain.id, *(o.id for o in others)})==4
    assert all(o.recipe['seed']==plain.recipe['seed'] for o in others)  # the same first weights

def test_refused(world):
    s,e,r = world
    with pytest.raises(ValueError, match='labels every field, and comatch'):
        few(world, 'comatch', 0)
    with pytest.raises(ValueError, match='has no option mu'): few(world, 'supervised', mu=3)
    with pytest.raises(ValueError, match='config=9'): few(world, 'comatch', config=9)
    with pytest.raises(ValueError, match='fields=-1'): few(world, 'comatch', -1)
    with pytest.raises(ValueError, match='unseen names hops'):
        few(world, 'comatch', unseen=('hops',)).get()

def test_the_same_labels_as_a_probe_and_a_base_model(world):
    s,e,r = world
    ours = result(few(world, 'comatch').get())
    probe = result(probing(s, e, 1, 'ridge', r, 0, fields=1).get())
    net = result(training(s, e, 1, 'transformer', 0, r, 0, fields=1).get())
    assert ours['n_train']==probe['n_train']==net['n_train']
    assert ours['n_train']+ours['n_unlabelled']==sum(map(sum, (
        ours['counts']['labelled'], ours['counts']['unlabelled'])))
    assert ours['accuracy']==ours['epoch_accuracy'][-1]

def test_trained_along(world, smoke):
    "The encoder of a fine-tuning learns too; the kept model gives what was recorded"
    s,_,r = world
    enc = untrained(smoke.pairs, r, 0)
    run = few_labels(s, enc, 'comatch', 1, 'transformer', r, 0, 1, frozen=False)
    run.get()
    model = load_model(run.path, enc.get())
    assert np.array_equal(model.predict(s.path/'val.h5')[0], np.load(run.path/'predictions.npy'))
    assert result(run)['training']=='end_to_end'

def test_an_open_set_is_scored_on_its_classes(world):
    s,_,_ = world
    names = result(few(world, 'comatch').get())['classes']
    run = few(world, 'ccssl_out', unseen=tuple(names[:3]))
    found = result(run.get())
    assert found['classes']==names[3:] and len(found['confusion'])==len(names)-3
    assert found['counts']['unseen']>0
    assert found['n_val']<result(few(world, 'comatch'))['n_val']

def test_a_killed_run_has_the_same_bytes(world, runs_with, monkeypatch):
    s,e,r = world
    longer = dict(r, epochs=3)
    def new(): return few_labels(s, e, 'comatch', 1, 'transformer', longer, 0, 1)
    want = {f.name: f.read_bytes() for f in new().get().iterdir() if f.name!='log.json'}
    runs_with(s, e, new().inputs['features'])
    plain = LabelTrainer._end_epoch
    def dies(self, epoch):
        self.every = 0
        if epoch==2: raise Killed
        plain(self, epoch)
    monkeypatch.setattr(room.LabelTrainer, '_end_epoch', dies)
    with pytest.raises(Killed): new().get()
    assert (new().path.with_suffix('.part')/'tmp'/'checkpoint.pt').exists()
    monkeypatch.setattr(room.LabelTrainer, '_end_epoch', plain)
    found = new().get()
    for name,data in want.items(): assert (found/name).read_bytes()==data, name

def test_real_parcels(sample, fresh_runs):
    "Bavaria, four parcels a class: counts add up, and probe and trainer learn from the same"
    from cropnb.studies.few import FewCell, few_row, few_run
    sample('bavaria_s2_parcels')
    size = dict(
        per_date=40, fields=2, dates=6, batch=60, epochs=1,
        task_fields=5, pixels=1, task_dates=6)
    rows = []
    for learner in ('comatch', 'ridge'):
        cell = FewCell('bavaria', 0, 0, 'raw', learner, 4)
        run = few_run(cell, size, 2)
        run.get()
        rows.append(few_row(cell, run))
    ours,probe = rows
    assert ours['n_train']==probe['n_train']==4*len(result(run)['classes'])
    assert ours['source']=='Bavaria 2018' and 0<=ours['accuracy']<=1
