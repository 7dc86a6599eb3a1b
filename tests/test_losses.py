"The losses against oracles in float64 NumPy, and at the corners"
import functools, math
import numpy as np, pytest, torch
from cropnb.methods.contrast import clip, dcl, nt_xent
from cropnb.methods.decorrelate import barlow_twins
from cropnb.methods.table import find_method
from cropnb.views import Bimodal, corrupt

def barlow_twins_at(z0, z1, temperature):
    "It has no temperature"
    return barlow_twins(z0, z1)

# of two views and a temperature
losses = dict(
    nt_xent = nt_xent,
    dcl = dcl,
    dcl_one_sided = functools.partial(dcl, symmetric=False),
    clip = clip,
    barlow_twins = barlow_twins_at)

def views(n=6, d=5, seed=0, dtype=torch.float64):
    "Two random views of `n` pixels"
    g = torch.Generator().manual_seed(seed)
    one = torch.randn(n, d, generator=g, dtype=torch.float64)
    two = torch.randn(n, d, generator=g, dtype=torch.float64)
    return one.to(dtype), two.to(dtype)

# ---------------------------------------------------------------- oracles
def log_sum_exp(xs):
    largest = max(xs)
    return largest + math.log(sum(math.exp(x-largest) for x in xs))

def oracle(z0, z1, t, positive=True, rows='both'):
    "Chen et al. 2020, equation 1; `positive=False` leaves the pair out of the denominator"
    z = np.concatenate([z0, z1]).astype('float64')
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    s = z@z.T/t
    n = len(z0)
    out = []
    for i in range(2*n if rows=='both' else n):
        pair = (i+n)%(2*n)
        others = [k for k in range(2*n) if k!=i and (positive or k!=pair)]
        out.append(log_sum_exp(s[i,others])-s[i,pair])
    return np.mean(out)

def oracle_dcl(a, b, t): return oracle(a, b, t, positive=False)
def oracle_dcl_one_sided(a, b, t): return oracle(a, b, t, positive=False, rows='first')

oracles = dict(nt_xent=oracle, dcl=oracle_dcl, dcl_one_sided=oracle_dcl_one_sided)

@pytest.mark.parametrize('name', oracles)
@pytest.mark.parametrize('t', [.01, .07, 1.])
@pytest.mark.parametrize('n', [2, 7])
def test_oracle(name, t, n):
    a,b = views(n)
    want = oracles[name](a.numpy(), b.numpy(), t)
    assert losses[name](a, b, t).item()==pytest.approx(want, abs=1e-9)
    in_fp32 = losses[name](a.float(), b.float(), t).item()
    assert in_fp32==pytest.approx(want, rel=1e-5, abs=1e-5)

# ---------------------------------------------------------------- numerics
@pytest.mark.parametrize('name', losses)
def test_gradient(name):
    def loss(x, y): return losses[name](x, y, .5)
    a,b = views(4, 3)
    assert torch.autograd.gradcheck(loss, (a.requires_grad_(), b.requires_grad_()))

@pytest.mark.parametrize('name', losses)
def test_bf16_is_summed_in_fp32(name):
    a,b = views(32, 16, dtype=torch.bfloat16)
    x = losses[name](a, b, .07)
    assert x.dtype==torch.float32
    want = losses[name](a.double(), b.double(), .07).item()
    assert x.item()==pytest.approx(want, rel=1e-4, abs=1e-4)

# ---------------------------------------------------------------- corners
def test_identical_and_opposite_views():
    a = torch.eye(4, 8, dtype=torch.float64)   # orthogonal: every similarity but the pair's is 0
    def close(loss, want): return loss.item()==pytest.approx(want)
    assert close(nt_xent(a, a, .07), math.log(math.exp(1/.07)+6)-1/.07)
    assert close(nt_xent(a, -a, .07), math.log(math.exp(-1/.07)+6)+1/.07)
    assert close(dcl(a, a, .07), math.log(6)-1/.07)
    assert close(clip(a, a, .07), math.log(math.exp(1/.07)+3)-1/.07)

def test_barlow_twins_prefers_identical_views():
    z,_ = views(64, 4)
    assert barlow_twins(z, z).item()<barlow_twins(z, -z).item()

def test_chance():
    "Where all embeddings are the same, a network knows nothing"
    z = torch.ones(8, 4, dtype=torch.float64)
    assert nt_xent(z, z).item()==pytest.approx(math.log(15))
    assert clip(z, z).item()==pytest.approx(math.log(8))

# ---------------------------------------------------------------- methods
chosen = [
    ('simclr', dict(temperature=.5), nt_xent),
    ('dcl', dict(temperature=.5), dcl),
    ('dcl', dict(temperature=.5, symmetric=False), dcl),
    ('clip', dict(temperature=.5), clip),
    ('barlow_twins', dict(weight=.1), barlow_twins)]

@pytest.mark.parametrize('name, options, loss', chosen)
def test_a_method_gives_its_options_to_its_loss(name, options, loss):
    "And without options both have the same defaults"
    a,b = views()
    def ours(**options): return find_method(name)(Bimodal(), 8, 1, **options).loss(a, b).item()
    assert ours(**options)==loss(a, b, **options).item()
    assert ours()==loss(a, b).item()
    assert ours(**options)!=ours()

@pytest.mark.parametrize('name', ['simclr', 'dcl', 'clip'])
def test_chance_of_a_method(name):
    "Its number is the loss of a batch of embeddings that are all the same"
    method = find_method(name)(Bimodal(), 8, 1)
    z = torch.ones(16, 8, dtype=torch.float64)
    assert method.chance(16)==pytest.approx(method.loss(z, z).item())

def test_barlow_twins_has_no_chance():
    assert find_method('barlow_twins')(Bimodal(), 8, 1).chance(16) is None

# ---------------------------------------------------------------- corruption
@pytest.fixture(scope='module')
def corrupted():
    "Input of -1, a bank in which feature j holds (j+1) times 0..99, and the result at 60 %"
    x = torch.full((20_000, 12), -1.)
    bank = torch.stack([torch.arange(100.)*(j+1) for j in range(12)], 1)
    y = corrupt(x, .6, bank, torch.Generator().manual_seed(3))
    return x, bank, y

def test_corruption_is_seeded_and_leaves_its_input_alone(corrupted):
    x, bank, y = corrupted
    assert (x==-1).all()
    assert torch.equal(y, corrupt(x, .6, bank, torch.Generator().manual_seed(3)))

def test_corruption_chooses_features_for_each_row(corrupted):
    hit = corrupted[-1]!=-1
    assert (hit.sum(1)==7).all()
    assert (hit.float().mean(0)-7/12).abs().max()<.02
    assert len(hit.unique(dim=0))>700   # 792 sets of 7 in 12

@pytest.mark.parametrize('j', [0, 11])
def test_corruption_draws_from_the_marginal_of_a_feature(corrupted, j):
    y = corrupted[-1]
    values = y[y[:,j]!=-1, j]/(j+1)
    assert abs(values.mean()-49.5)<1.5
    assert abs(values.std()-28.9)<1
    assert len(values.unique())==100

def test_corruption_draws_features_independently(corrupted):
    "SCARF: not whole rows of the bank"
    y = corrupted[-1]
    both = (y[:,0]!=-1) & (y[:,1]!=-1)
    r = np.corrcoef(y[both,0], y[both,1]/2)[0,1]
    assert abs(r)<.05

# ---------------------------------------------------------------- lightly, where it is installed
def from_lightly(name):
    try: import lightly.loss
    except (ImportError, RuntimeError, AttributeError) as e:
        pytest.skip(f'lightly does not import here ({type(e).__name__}: it needs torchvision)')
    return getattr(lightly.loss, name)

@pytest.mark.parametrize('ours, theirs, args', [
    ('nt_xent', 'NTXentLoss', dict(temperature=.07)),
    ('dcl', 'DCLLoss', dict(temperature=.07)),
    ('barlow_twins', 'BarlowTwinsLoss', dict(lambda_param=5e-3))])
def test_against_lightly(ours, theirs, args):
    a,b = views(64, 16, dtype=torch.float32)
    want = from_lightly(theirs)(**args)(a, b).item()
    assert losses[ours](a, b, .07).item()==pytest.approx(want, rel=1e-5)
