"The losses against oracles in float64 NumPy, and at the corners."
import math
import numpy as np, pytest, torch
from cropnb.methods.decorrelate import barlow_twins
from cropnb.methods.contrast import clip, dcl, nt_xent
from cropnb.views import corrupt
from cropnb.claims import losses

def views(n=6, d=5, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed); return tuple(torch.randn(n, d, generator=g, dtype=torch.float64).to(dtype) for _ in range(2))

def oracle(z0, z1, t, positive=True, rows='both'):
    "Chen et al. 2020, equation 1, written out; `positive=False` leaves the pair out of the denominator"
    z = np.concatenate([z0, z1]).astype('float64'); z /= np.linalg.norm(z, axis=1, keepdims=True); n = len(z0); s = z@z.T/t; out = []
    for i in range(2*n if rows=='both' else n):
        j = (i+n)%(2*n); ks = [k for k in range(2*n) if k!=i and (positive or k!=j)]; m = max(s[i,k] for k in ks)
        out.append(-s[i,j]+m+math.log(sum(math.exp(s[i,k]-m) for k in ks)))
    return np.mean(out)

cases = {'nt_xent': lambda a, b, t: oracle(a, b, t), 'dcl': lambda a, b, t: oracle(a, b, t, False), 'dcl_one_sided': lambda a, b, t: oracle(a, b, t, False, 'first')}
@pytest.mark.parametrize('name', cases)
@pytest.mark.parametrize('t', [.01, .07, 1.])
@pytest.mark.parametrize('n', [2, 7])
def test_oracle(name, t, n):
    a,b = views(n); want = cases[name](a.numpy(), b.numpy(), t)
    assert losses[name](a, b, t).item()==pytest.approx(want, abs=1e-9) and losses[name](a.float(), b.float(), t).item()==pytest.approx(want, rel=1e-5, abs=1e-5)

@pytest.mark.parametrize('name', losses)
def test_gradient(name):
    a,b = (z.requires_grad_() for z in views(4, 3)); assert torch.autograd.gradcheck(lambda x, y: losses[name](x, y, .5), (a, b))

@pytest.mark.parametrize('name', losses)
def test_bf16_is_summed_in_fp32(name):
    a,b = views(32, 16, dtype=torch.bfloat16); x = losses[name](a, b, .07); assert x.dtype==torch.float32 and x.item()==pytest.approx(losses[name](a.double(), b.double(), .07).item(), rel=1e-4, abs=1e-4)

def test_identical_and_opposite_views():
    a = torch.eye(4, 8, dtype=torch.float64)                                      # orthogonal: every similarity but the pair's is 0
    same = math.log(math.exp(1/.07)+6)-1/.07; assert nt_xent(a, a, .07).item()==pytest.approx(same)
    assert nt_xent(a, -a, .07).item()==pytest.approx(math.log(math.exp(-1/.07)+6)+1/.07) and dcl(a, a, .07).item()==pytest.approx(math.log(6)-1/.07)
    assert clip(a, a, .07).item()==pytest.approx(math.log(math.exp(1/.07)+3)-1/.07)
    z,_ = views(64, 4); assert barlow_twins(z, z).item()<barlow_twins(z, -z).item()

def test_chance():
    "Where all embeddings are the same, a network knows nothing"
    z = torch.ones(8, 4, dtype=torch.float64); assert nt_xent(z, z).item()==pytest.approx(math.log(15)) and clip(z, z).item()==pytest.approx(math.log(8))

def test_corruption_is_scarf():
    "Own features for each row, independent draws of each feature's marginal, seeded, the input untouched"
    g = lambda: torch.Generator().manual_seed(3); n = 20_000
    bank = torch.stack([torch.arange(100.)*(j+1) for j in range(12)], 1); x = torch.full((n, 12), -1.); y = corrupt(x, .6, bank, g())
    hit = y!=-1; assert (x==-1).all() and (hit.sum(1)==7).all() and torch.equal(y, corrupt(x, .6, bank, g()))
    assert (hit.float().mean(0)-7/12).abs().max()<.02 and len(hit.unique(dim=0))>700                  # 792 sets of 7 in 12
    for j in (0, 11): v = y[hit[:,j], j]/(j+1); assert abs(v.mean()-49.5)<1.5 and abs(v.std()-28.9)<1 and len(v.unique())==100
    both = hit[:,0] & hit[:,1]; r = np.corrcoef(y[both,0], y[both,1]/2)[0,1]; assert abs(r)<.05       # columns are drawn independently, not whole rows

def lightly(name):
    try: import lightly.loss as l
    except (ImportError, RuntimeError, AttributeError) as e: pytest.skip(f'lightly does not import here ({type(e).__name__}: it needs torchvision)')
    return getattr(l, name)

@pytest.mark.parametrize('ours, theirs, args', [('nt_xent', 'NTXentLoss', dict(temperature=.07)), ('dcl', 'DCLLoss', dict(temperature=.07)), ('barlow_twins', 'BarlowTwinsLoss', dict(lambda_param=5e-3))])
def test_against_lightly(ours, theirs, args):
    a,b = views(64, 16, dtype=torch.float32); assert losses[ours](a, b, .07).item()==pytest.approx(lightly(theirs)(**args)(a, b).item(), rel=1e-5)
