"""Pre-training, pairs per second at batch 2048 on one device, in one run: ours against the loop a user would write.

    python benchmarks/pretrain.py [cpu | cuda] [steps]

The loop of a user: a torch Dataset over the HDF5 read row by row, DataLoader, lightly's NTXentLoss where it is installed (else the same loss written
with cross_entropy), Adam. Ours: `cropnb.pretrain`'s step. Same networks, same data, same batch, mode bimodal, corruption 0.2. Nothing here is a test.
"""
import sys, tempfile, time
from pathlib import Path
import h5py, numpy as np, torch, torch.nn.functional as F
from cropnb.engine.recipes import recipe
from cropnb.pretrain import Nets, Step, one_epoch, two_views
from cropnb.views import Pairs
from cropnb.engine.tensors import seeded

device = sys.argv[1] if len(sys.argv)>1 else 'cpu'; steps = int(sys.argv[2]) if len(sys.argv)>2 else 6; batch = 2048
sync = torch.cuda.synchronize if device=='cuda' else lambda: None

def make_pairs(path, n=200_000):
    g = np.random.default_rng(0); s = g.integers(100, 5000, (n, 12)).astype('uint16'); p = g.integers(100, 5000, (n, 4, 9)).astype('uint16')
    with h5py.File(path, 'w') as h:
        h['sentinel2_data'], h['planet_data'] = s, p
        h.attrs.update(s2_mean=s.mean(0)/1e4, s2_std=s.std(0)/1e4, ps_mean=p.mean((0, 2))/1e4, ps_std=p.std((0, 2))/1e4)

class Rows(torch.utils.data.Dataset):
    def __init__(self, path): self.h = h5py.File(path)
    def __len__(self): return len(self.h['sentinel2_data'])
    def __getitem__(self, i):
        def view(a):
            x = a.astype('float32').ravel()/1e4; k = np.random.permutation(len(x))[:round(.2*len(x))]; x[k] = np.random.rand(len(k)); return torch.from_numpy(x)
        return view(self.h['sentinel2_data'][i]), view(self.h['planet_data'][i])

def plain(z0, z1, t=.07):
    z = F.normalize(torch.cat([z0, z1]), dim=1); s = z@z.T/t; s.fill_diagonal_(-torch.inf); n = len(z0)
    return F.cross_entropy(s, torch.arange(2*n, device=s.device).roll(n))

def their_loss():
    try: from lightly.loss import NTXentLoss
    except (ImportError, RuntimeError): return plain, 'cross_entropy'
    return NTXentLoss(temperature=.07), 'lightly'

def user_loop(path):
    torch.manual_seed(0); nets = Nets('bimodal').to(device).train(); opt = torch.optim.Adam(nets.parameters(), 1e-3); loss,name = their_loss()
    it = iter(torch.utils.data.DataLoader(Rows(path), batch, shuffle=True, drop_last=True)); t = None
    for k in range(steps+1):
        a,b = next(it); l = loss(*nets(a.to(device), b.to(device))); opt.zero_grad(); l.backward(); opt.step(); l.item()
        if k==0: t = time.time()                         # the first step warms up
    return steps*batch/(time.time()-t), name

def in_memory(path):
    "Data on the device as ours, the loss of a user: what is won by the loss alone"
    p = Pairs(path, device); nets = Nets('bimodal').to(device).train(); opt = torch.optim.Adam(nets.parameters(), 1e-3, fused=True); g = seeded(device, 0)
    return rate(lambda: plain(*nets(*two_views(p, torch.randperm(len(p), generator=g, device=device)[:batch], 'bimodal', .2, g))), opt)

def ours(path, precision='fp32', plain=False):
    s = step_of(Pairs(path, device), precision, plain)
    rows = torch.randperm(len(s.p), device=device)[:batch]; return rate_of(lambda: s(rows))

def step_of(p, precision, plain=False):
    torch.manual_seed(0); nets = Nets('bimodal').to(device).train(); opt = torch.optim.Adam(nets.parameters(), 1e-3, fused=True, capturable=device=='cuda')
    s = Step(nets, opt, p, dict(mode='bimodal', corruption=.2, loss='nt_xent', temperature=.07, precision=precision, batch=batch, seed=0))
    if plain: s.run.first = None
    return s

def whole_epochs(path, precision, plain, epochs=3):
    "Whole epochs over all pairs: pairs/s of the last, mean losses of each"
    s = step_of(Pairs(path, device), precision, plain); losses = []
    for e in range(epochs): sync(); t = time.time(); losses.append(one_epoch(s, e)); sync()
    return len(s.p)/(time.time()-t), losses

def matmul_peak(n=8192):
    "FLOP/s of one large bf16 product"
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16); [a@a for _ in range(3)]; sync(); t = time.time(); [a@a for _ in range(20)]; sync()
    return 20*2*n**3/(time.time()-t)

def together(k=2):
    "k encoders as one: vmap over stacked parameters, batch statistics without running ones; against one after the other"
    from torch.func import functional_call, stack_module_state
    def net():
        m = Nets('bimodal').to(device).train()
        for b in m.modules():
            if isinstance(b, torch.nn.BatchNorm1d): b.track_running_stats, b.running_mean, b.running_var, b.num_batches_tracked = False, None, None, None
        return m
    ms = [net() for _ in range(k)]; params,_ = stack_module_state(ms); a,b = torch.randn(k, batch, 12, device=device), torch.randn(k, batch, 36, device=device)
    leaves = {n: p.detach().requires_grad_() for n,p in params.items()}; opt = torch.optim.Adam(leaves.values(), 1e-3)
    one = lambda p, x, y: plain(*functional_call(ms[0], p, (x, y)))
    at_once = rate(lambda: torch.vmap(one)(leaves, a, b).sum(), opt)*k
    opts = torch.optim.Adam([p for m in ms for p in m.parameters()], 1e-3)
    return at_once, rate(lambda: sum(plain(*m(x, y)) for m,x,y in zip(ms, a, b)), opts)*k

def rate(f, opt):
    def one(): l = f(); opt.zero_grad(); l.backward(); opt.step()
    return rate_of(one)

def rate_of(one):
    for _ in range(5): one()
    sync(); t = time.time()
    for _ in range(3*steps): one()
    sync(); return 3*steps*batch/(time.time()-t)

if __name__=='__main__':
    with tempfile.TemporaryDirectory() as d:
        make_pairs(f := Path(d)/'pairs.h5'); base,name = user_loop(f)
        print(f'{torch.get_num_threads()} threads, torch {torch.__version__}, {device}, batch {batch}')
        print(f'loop of a user ({name}): {base:,.0f} pairs/s', flush=True)
        for what,r in (('data on the device, plain loss', in_memory(f)), ('ours, fp32', ours(f)), ('ours, networks in bf16', ours(f, 'bf16'))): print(f'{what}: {r:,.0f} pairs/s, {r/base:.1f} x; a step {batch/r*1000:.2f} ms', flush=True)
        v,s = together(); print(f'two encoders at once by vmap: {v:,.0f} pairs/s, one after the other: {s:,.0f} (plain loss, no data)')
        if device=='cuda':
            make_pairs(f, 14_400_000); flops = 6*sum(q.numel() for q in Nets('bimodal').parameters())+3*2*2*2*batch*256   # of a pair: networks, and the loss's products
            for precision,plain in (('fp32', True), ('fp32', False), ('bf16', False)):
                r,l = whole_epochs(f, precision, plain); print(f"14.4 M pairs, {precision}, {'eager' if plain else 'graph'}: {r:,.0f} pairs/s, {r*flops/matmul_peak():.1%} of the measured bf16 matmul peak, 100 epochs {14.4e8/r/60:.1f} min; loss {l}", flush=True)
