"""One suite for every method of `cropnb.methods.table`: a new method is a line there, and one in
`oracles` below; one that holds something large gets a line in `sizes`.
Two processes against one: tests/test_distributed.py, which goes through the same table."""
import math, sys
import numpy as np, pytest, torch
from torch.utils._python_dispatch import TorchDispatchMode
from test_losses import log_sum_exp, oracle as nt_xent_of, oracle_dcl
from cropnb.engine.tensors import seeded
from cropnb.measure.probes import Collapse, check_collapse
from cropnb.methods.table import find_method, methods
from cropnb.prepare.years import years
from cropnb.pretrain import Step, Trainer, load_state, make_optimizer, probe, save_state
from cropnb.views import Pairs, modes

dim, batch = 16, 24
sizes = dict(
    moco=dict(queue=128),
    swav=dict(prototypes=16, epsilon=.02),   # with .05, two sensors do not get below chance
    dino=dict(prototypes=16))
cases = [(name, mode) for name in methods for mode in find_method(name).modes if mode in modes]
alone = [name for name,mode in cases if mode=='unimodal']

# ---------------------------------------------------------------- networks and what they see
def usual(name):
    "Both sensors where a method takes them"
    own = find_method(name).modes
    return 'bimodal' if 'bimodal' in own else own[0]

def views_of(cls, mode, corruption=.2):
    "A method may have views of its own"
    return getattr(cls, 'views', {}).get(mode, modes[mode])(corruption)

def method_of(name, mode=None, cls=None, width=dim, dropout=0.):
    cls = cls or find_method(name)
    torch.manual_seed(0)
    views = views_of(cls, mode or usual(name))
    return cls(views, width, 1, dropout, **sizes.get(name, {})).train(), views

def noise(views, n=batch, seed=1):
    "A view each, in float64; seasons are of six dates"
    g = torch.Generator().manual_seed(seed)
    of_dates = getattr(views, 'of_dates', False)
    shapes = [(n, 6, w+2) if of_dates else (n, w) for w in views.widths]
    return [torch.randn(shape, generator=g, dtype=torch.float64) for shape in shapes]

def told(method, n=batch):
    "What it needs to know of each pair: crops 0 (not known) to 3"
    return [torch.arange(n)%4 for _ in method.needs]

def trained(method): return {k: p for k,p in method.named_parameters() if p.requires_grad}

@pytest.fixture(scope='module')
def p(smoke):
    p = Pairs(smoke.pairs.get())
    p.years = years(smoke.data, smoke.recipe, 0)
    return p

def set_of(p, method):
    "A method may want another set than pairs"
    return method.bank(p.years.get()) if method.bank else p

def step_of(p, name, mode=None, n=batch, lr=1e-3, precision='fp32', **more):
    "On simulated pairs"
    method, views = method_of(name, mode, **more)
    opt = make_optimizer(method, dict(optimizer='adam', lr=lr, weight_decay=0.))
    return Step(method, views, opt, set_of(p, method), n, precision)

def go_on(step, first, last, total=10):
    "Rows one after the other"
    for i in range(first, last): step(torch.arange(i*step.batch, (i+1)*step.batch), i/total)

def state(step):
    "All that a step has changed"
    tensors = {f'opt {i} {k}': v for i,s in enumerate(step.opt.state_dict()['state'].values())
               for k,v in s.items()}
    return tensors | step.method.state_dict() | dict(total=step.total, drawn=torch.rand(()))

# ---------------------------------------------------------------- gradients
@pytest.mark.parametrize('name, mode', cases)
def test_a_gradient_reaches_all_that_is_trained(name, mode):
    "And nothing else; at the end of a training, when nothing is held any more"
    method, views = method_of(name, mode)
    method.double()
    for seed in (1, 2):
        method.zero_grad()
        method.loss(*method(*noise(views, seed=seed)), *told(method)).backward()
        with torch.no_grad(): method.after(torch.ones(()))
    lacking = [k for k,p in trained(method).items() if p.grad is None or not p.grad.any()]
    assert lacking==[]
    frozen = [p for p in method.parameters() if not p.requires_grad]
    assert all(p.grad is None for p in frozen)
    assert bool(frozen)==hasattr(method, 'teachers')

@pytest.mark.parametrize('name', [n for n in methods if hasattr(method_of(n)[0], 'teachers')])
def test_a_teacher_follows(p, name):
    "Between what it was and what its student is, in place"
    step = step_of(p, name, lr=1e-2)
    teacher = next(step.method.teachers.parameters())
    student = next(step.method.encoders.parameters())
    before = teacher.clone()
    assert torch.equal(before, student)
    go_on(step, 0, 1)
    assert next(step.method.teachers.parameters()) is teacher
    moved = (teacher-before)/(student-before)
    assert ((moved>0) & (moved<.02)).all()

# ---------------------------------------------------------------- oracles
def numbers(*tensors): return [t.detach().numpy().astype('float64') for t in tensors]
def unit(z): return z/np.linalg.norm(z, axis=-1, keepdims=True)

def samples(z0, z1):
    "Each sample of both views: itself, its other view, all others"
    z, n = unit(np.concatenate([z0, z1])), len(z0)
    for i in range(2*n):
        pair = (i+n)%(2*n)
        yield z[i], z[pair], z[[k for k in range(2*n) if k not in (i, pair)]]

def apart(a, b): return math.sqrt(((a-b)**2).sum())
def mean_or_0(found): return sum(found)/len(found) if found else 0.

def clip_of(m, a, b):
    def one_way(x, y):
        s = unit(x)@unit(y).T/m.temperature
        return mean_or_0([log_sum_exp(s[i])-s[i,i] for i in range(len(s))])
    return (one_way(a, b)+one_way(b, a))/2

def barlow_of(m, a, b):
    total = 0
    for i in range(a.shape[1]):
        for j in range(b.shape[1]):
            c = np.mean((a[:,i]-a[:,i].mean())*(b[:,j]-b[:,j].mean()))/(a[:,i].std()*b[:,j].std())
            total += (1-c)**2 if i==j else m.weight*c**2
    return total

def moco_of(m, q0, q1, k0, k1):
    terms = []
    for queries,keys,queue in ((q0, k1, m.queue[1]), (q1, k0, m.queue[0])):
        for q,k in zip(unit(queries), unit(keys)):
            s = [q@k/m.temperature, *(q@old/m.temperature for old in queue.numpy())]
            terms.append(log_sum_exp(s)-s[0])
    return mean_or_0(terms)

def supcon_of(m, a, b, crop):
    z, n, terms = unit(np.concatenate([a, b])), len(a), []
    for i in range(2*n):
        others = [k for k in range(2*n) if k!=i]
        def alike(k): return k%n==i%n or crop[k%n]==crop[i%n]!=0
        s = {k: z[i]@z[k]/m.temperature for k in others}
        whole = log_sum_exp(list(s.values()))
        terms.append(mean_or_0([whole-s[k] for k in others if alike(k)]))
    return mean_or_0(terms)

def triplet_of(m, a, b):
    short = [x@other-x@pair+m.margin for x,pair,rest in samples(a, b) for other in rest]
    return mean_or_0([s for s in short if 0<s<m.margin])

def margin_of(m, a, b):
    pulled, pushed = [], []
    for x,pair,rest in samples(a, b):
        pulled.append(apart(x, pair)**2)
        pushed += [(m.margin-apart(x, y))**2 for y in rest if apart(x, y)<m.margin]
    return (mean_or_0(pulled)+mean_or_0(pushed))/2

def lifted_of(m, a, b):
    found = list(samples(a, b))
    sums = [sum(math.exp(m.margin-apart(x, y)) for y in rest) for x,_,rest in found]
    n, terms = len(a), []
    for i in range(n):
        j = math.log(sums[i]+sums[i+n])+apart(*found[i][:2])
        terms.append(max(0, j)**2/2)
    return mean_or_0(terms)

def npair_of(m, a, b):
    s = a@b.T
    lengths = [(x@x+y@y)/2 for x,y in zip(a, b)]
    terms = [log_sum_exp(s[i])-s[i,i] for i in range(len(s))]
    return mean_or_0(terms)+m.weight/2*mean_or_0(lengths)

def codes(scores, epsilon, n_times=3):
    q = np.exp(scores/epsilon)
    for _ in range(n_times):
        for j in range(q.shape[1]): q[:,j] /= q[:,j].sum()
        for i in range(len(q)): q[i] /= q[i].sum()
    return q

def cross_entropy_of(wanted, logits):
    return mean_or_0([w.sum()*log_sum_exp(s)-w@s for w,s in zip(wanted, logits)])

def swav_of(m, z0, z1, s0, s1):
    w = m.prototypes.detach().numpy()
    c0,c1 = unit(z0)@w.T, unit(z1)@w.T
    one = cross_entropy_of(codes(c1, m.epsilon), c0/m.temperature)
    return (one+cross_entropy_of(codes(c0, m.epsilon), c1/m.temperature))/2

def cosines_of(*pairs):
    return mean_or_0([x@y for a,b in pairs for x,y in zip(unit(a), unit(b))])

def byol_of(m, q0, t1, q1, t0): return 2-2*cosines_of((q0, t1), (q1, t0))
def simsiam_of(m, q0, z1, q1, z0): return -cosines_of((q0, z1), (q1, z0))

def dino_of(m, s0, t1, s1, t0):
    "Before the first step: nothing is centred yet"
    def wanted(t):
        e = np.exp(t/m.teacher_t.item())
        return e/e.sum(1, keepdims=True)
    pairs = (wanted(t1), s0/m.student_t), (wanted(t0), s1/m.student_t)
    return mean_or_0([cross_entropy_of(*pair) for pair in pairs])

def vicreg_of(m, a, b):
    alike, vary, spread_out = m.weights
    n,d = a.shape
    same = mean_or_0([(x-y)**2 for x,y in zip(a.flat, b.flat)])
    narrow = redundant = 0
    for z in (a, b):
        for i in range(d):
            narrow += max(0, 1-math.sqrt(z[:,i].var(ddof=1)+1e-4))/d/2
            for j in range(d):
                if i!=j: redundant += np.cov(z[:,i], z[:,j])[0,1]**2/d
    return alike*same+vary*narrow+spread_out*redundant

def squares_of(a, b): return mean_or_0([(x-y)**2 for x,y in zip(a.flat, b.flat)])
def rebuilt_of(m, rebuilt, wanted): return squares_of(rebuilt, wanted)

def vae_of(m, rebuilt, wanted, mu, log_var):
    "Minus the evidence: a Gaussian of the spectrum, and the divergence of the code from a normal"
    far = [v+mean**2-1-math.log(v) for mean,v in zip(mu.flat, np.exp(log_var).flat)]
    return (squares_of(rebuilt, wanted)*wanted.shape[1]+m.beta*sum(far)/len(mu))/2

def mae_of(m, *outs):
    errors = []
    for rebuilt,wanted,hidden in zip(outs[::3], outs[1::3], outs[2::3]):
        three = zip(rebuilt.flat, wanted.flat, hidden.flat)
        errors.append(mean_or_0([(x-y)**2 for x,y,out in three if out]))
    return mean_or_0(errors)

def mae_dates_of(m, rebuilt, wanted, hidden):
    three = zip(rebuilt.flat, wanted.flat, hidden.flat)
    return mean_or_0([(x-y)**2 for x,y,out in three if out])

def seco_of(m, *outs):
    total = 0
    for q,k,*others in (outs[:2], outs[2:6], outs[6:]):
        q,k,*others = map(unit, (q, k, *others))
        for i in range(len(q)):
            near = [*(k@q[i]), *(z[i]@q[i] for z in others)]
            total += log_sum_exp([x/m.temperature for x in near])-near[i]/m.temperature
    return total/len(outs[0])/3

def vime_of(m, rebuilt, wanted, logits, replaced):
    p = 1/(1+np.exp(-logits))
    which = [-math.log(x if hit else 1-x) for x,hit in zip(p.flat, replaced.flat)]
    return mean_or_0(which)+m.alpha*squares_of(rebuilt, wanted)

# what a loss of these outputs is: loops over samples, in float64
oracles = dict(
    simclr=lambda m, a, b: nt_xent_of(a, b, m.temperature),
    dcl=lambda m, a, b: oracle_dcl(a, b, m.temperature),
    clip=clip_of, barlow_twins=barlow_of, moco=moco_of, supcon=supcon_of, triplet=triplet_of,
    npair=npair_of, lifted=lifted_of, margin=margin_of, swav=swav_of,
    byol=byol_of, simsiam=simsiam_of, dino=dino_of, vicreg=vicreg_of,
    ae=rebuilt_of, dae=rebuilt_of, crossmodal=rebuilt_of, vae=vae_of, mae=mae_of, vime=vime_of,
    seco=seco_of, mae_dates=mae_dates_of)

@pytest.mark.parametrize('name, mode', cases)
def test_oracle(name, mode):
    method, views = method_of(name, mode)
    method.double()
    outs, known = method(*noise(views, 8)), told(method, 8)
    want = oracles[name](method, *numbers(*outs), *(k.tolist() for k in known))
    assert method.loss(*outs, *known).item()==pytest.approx(want, rel=1e-9)

# ---------------------------------------------------------------- going on
@pytest.mark.parametrize('name', methods)
def test_going_on_gives_the_same_bytes(p, tmp_path, name):
    "With dropout; from a method that was drawn otherwise"
    step, again = (step_of(p, name, dropout=.1) for _ in range(2))
    go_on(step, 0, 3)
    save_state(tmp_path/'checkpoint.pt', step)
    go_on(step, 3, 6)
    want = state(step)
    go_on(again, 8, 9)
    load_state(tmp_path/'checkpoint.pt', again)
    go_on(again, 3, 6)
    found = state(again)
    assert found.keys()==want.keys()
    assert [k for k in want if not torch.equal(found[k], want[k])]==[]

# ---------------------------------------------------------------- the device is asked nothing
class Asks(TorchDispatchMode):
    "Lists what would make a GPU wait, but for checks that are made on a CPU alone"
    words = ('_local_scalar_dense', 'nonzero', 'masked_select', 'unique', 'equal', 'is_nonzero',
             'repeat_interleave.Tensor', 'bincount', 'histc')
    def __init__(self):
        super().__init__()
        self.found = []
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        by_mask = name.startswith('aten.index') and any(map(is_mask, args[1:2]))
        if (by_mask or any(f'aten.{w}' in name for w in self.words)) and not on_cpu_alone():
            self.found.append(name)
        return func(*args, **(kwargs or {}))

def is_mask(index):
    return isinstance(index, (list, tuple)) and any(
        i is not None and i.dtype==torch.bool for i in index)

def on_cpu_alone():
    "Is this the check of finite values, or the optimiser's step?"
    frame = sys._getframe(2)
    while frame:
        known = frame.f_code.co_name=='check_batches', 'torch/optim' in frame.f_code.co_filename
        if any(known): return True
        frame = frame.f_back
    return False

@pytest.mark.parametrize('name, mode', cases)
def test_a_step_asks_the_device_nothing(p, name, mode):
    step = step_of(p, name, mode)
    with Asks() as asks: step.plain()
    assert asks.found==[]

def test_asking_is_seen():
    x = torch.arange(3.)
    with Asks() as asks:
        x[x>1]
        bool(x.sum())
    assert asks.found==['aten.index.Tensor', 'aten._local_scalar_dense.default']

# ---------------------------------------------------------------- corners
def is_well(step):
    "Everything is a number, in fp32"
    kept = [v for v in state(step).values() if v.is_floating_point()]
    return all(v.isfinite().all() and v.dtype!=torch.bfloat16 for v in kept)

@pytest.mark.parametrize('name, mode', cases)
def test_networks_in_bf16(p, name, mode):
    step = step_of(p, name, mode, precision='bf16')
    go_on(step, 0, 3)
    assert is_well(step)
    plain = step_of(p, name, mode)
    go_on(plain, 0, 3)
    assert step.total.item()==pytest.approx(plain.total.item(), rel=.1, abs=.1)
    assert step.total.item()!=plain.total.item()

@pytest.mark.parametrize('name, mode', cases)
def test_a_batch_of_two(p, name, mode):
    step = step_of(p, name, mode, n=2)
    go_on(step, 0, 4)
    assert is_well(step)

@pytest.mark.parametrize('name', alone)
def test_identical_views(name):
    method, views = method_of(name, 'unimodal')
    x = noise(views)[0].float()
    loss = method.loss(*method(*[x]*len(views.widths)), *told(method))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in trained(method).values())

def test_what_does_not_exist():
    known = ', '.join(methods)
    with pytest.raises(ValueError, match=f"method='cpc' is not one of {known}"): find_method('cpc')

class Unnamed:
    "Pairs that know no crops"
    def __init__(self, p): self.p, self.about = p, {}
    def __getattr__(self, name): return getattr(self.p, name)
    def __repr__(self): return 'Pairs(480)'

def test_crops_that_are_not_known(p):
    says = r'SupCon is told the crop of each pair; Pairs\(480\) has none: make pairs that name it'
    with pytest.raises(ValueError, match=says): step_of(Unnamed(p), 'supcon')

# ---------------------------------------------------------------- it learns
def wrong_triplets(m, a, b):
    "Share in which another is more alike; the loss says only how hard the semi-hard ones are"
    found = samples(*numbers(a, b))
    wrong = [x@other>x@pair for x,pair,rest in found for other in rest]
    return torch.tensor(np.mean(wrong))

comparable = dict(triplet=wrong_triplets) # in place of the loss
least = dict(mae=4, mae_dates=4)        # RankMe: what stands for others needs fewer dimensions

@torch.no_grad()
def held_out(step, rows):
    "Loss and probes, looked at as a probe does"
    found = probe(step.method, step.views, step.pairs, 0)
    outs = step.method(*step.views(step.pairs, rows, seeded('cpu', 0, 'held out')))
    return outs, [label[rows] for label in step.known], found

def after_some_steps(p, name, lr, steps=60, n=60):
    "Loss of a quarter of the pairs after steps on the others, and what a probe finds"
    step = step_of(p, name, n=n, lr=lr, width=64)
    rows = torch.arange(len(p))
    kept = rows[rows%4>0]
    g = torch.Generator().manual_seed(0)
    for i in range(steps): step(kept[torch.randperm(len(kept), generator=g)[:n]], i/steps)
    outs, known, found = held_out(step, rows[rows%4==0])
    with torch.no_grad():
        judge = comparable.get(name, type(step.method).loss)
        return judge(step.method, *outs, *known).item(), found

@pytest.mark.parametrize('name', methods)
def test_it_learns(p, name):
    "Against the same network, whose weights do not move while its queue or centre does"
    before,_ = after_some_steps(p, name, lr=0.)
    after,found = after_some_steps(p, name, lr=3e-3)
    check_collapse(found, 1)
    assert after<before
    assert found['rankme']>least.get(name, 5)

# ---------------------------------------------------------------- collapse is seen
def without_stop(cls):
    "SimSiam whose targets are trained too"
    class Open(cls):
        def target(self, z): return z
    return Open

def without_predictor(cls):
    "BYOL that is held against its teacher as it is, a quick one"
    class Bare(cls):
        def __init__(self, views, dim, blocks, dropout):
            super().__init__(views, dim, blocks, dropout, tau=.9)
            self.predictors = torch.nn.ModuleList(torch.nn.Identity() for _ in self.encoders)
    return Bare

broken = dict(simsiam=without_stop, byol=without_predictor)

def train(p, folder, name, cls):
    "Until it stops; what was found in each epoch"
    step = step_of(p, name, 'bimodal', cls=cls, n=120, lr=.03, width=32)
    r = dict(epochs=40, seed=0, judge=[])
    trainer = Trainer(step, r, folder, save=None)
    (folder/'tmp').mkdir(exist_ok=True)
    try: trainer.run()
    except Collapse as e: return trainer.state, str(e)
    return trainer.state, ''

@pytest.mark.parametrize('name', sorted(broken.keys() & methods))
def test_a_collapse_is_seen_though_the_loss_falls(p, tmp_path, name):
    "In 160 steps; SimSiam that shares one network takes longer, the usual ones stay spread out"
    found, said = train(p, tmp_path, name, broken[name](find_method(name)))
    assert 'The embeddings collapsed in epoch' in said
    assert 'mean cosine' in said
    assert found['loss'][-1]<found['loss'][0]
    assert found['probes'][-2]['rankme']>1.5    # which alone would not have seen it
    assert found['probes'][-2]['cosine']>.9
    with pytest.raises(Collapse): check_collapse(found['probes'][-1], 1) # that epoch is kept too
    again,said_again = train(p, tmp_path, name, broken[name](find_method(name)))
    assert (again['at'], again['loss'], said_again)==(found['at'], found['loss'], said)
    (tmp_path/'whole').mkdir()
    whole, said = train(p, tmp_path/'whole', name, find_method(name))
    assert said==''
    assert whole['probes'][-1]['sd']>.05
