"""Pre-training, pairs per second at batch 2048 on one device: ours against the loop of a user.

    python benchmarks/pretrain.py [cpu | cuda] [steps]

The loop of a user: a torch Dataset over the HDF5 read row by row, DataLoader, lightly's NTXentLoss
where it is installed (else the same loss written with cross_entropy), Adam.
Ours: `cropnb.pretrain`'s step. Same networks, same data, same batch, mode bimodal, corruption 0.2.
Nothing here is a test.
"""
import sys, tempfile, time
from pathlib import Path
import h5py, numpy as np, torch, torch.nn.functional as F
from torch.func import functional_call, stack_module_state
from torch.utils.data import DataLoader, Dataset
from cropnb.engine.tensors import seeded
from cropnb.methods.contrast import SimCLR
from cropnb.pretrain import Step, make_optimizer, start_epoch
from cropnb.views import Bimodal, Pairs

device = sys.argv[1] if len(sys.argv)>1 else 'cpu'
steps = int(sys.argv[2]) if len(sys.argv)>2 else 6
batch = 2048
views = Bimodal(.2)

# ---------------------------------------------------------------- clocks
def wait():
    "Until the device has done what it was asked for"
    if device=='cuda': torch.cuda.synchronize()

def rate_of(step):
    "Pairs per second of a step, after five to warm up"
    for _ in range(5): step()
    wait()
    start = time.time()
    for _ in range(3*steps): step()
    wait()
    return 3*steps*batch/(time.time()-start)

def update(loss, opt):
    opt.zero_grad()
    loss.backward()
    opt.step()

def rate(loss, opt):
    "Pairs per second of a plain step; `loss` is called without arguments"
    return rate_of(lambda: update(loss(), opt))

# ---------------------------------------------------------------- data and networks
def make_pairs(path, n=200_000):
    "Random pairs with the statistics that a training reads"
    rng = np.random.default_rng(0)
    s2 = rng.integers(100, 5000, (n, 12)).astype('uint16')
    ps = rng.integers(100, 5000, (n, 4, 9)).astype('uint16')
    moments = dict(s2_mean=s2.mean(0), s2_std=s2.std(0))
    moments |= dict(ps_mean=ps.mean((0, 2)), ps_std=ps.std((0, 2)))
    with h5py.File(path, 'w') as h:
        h['sentinel2_data'] = s2
        h['planet_data'] = ps
        h.attrs.update({k: v/1e4 for k,v in moments.items()})

def networks(): return SimCLR(views).to(device).train()

def plain_loss(z0, z1, t=.07):
    "NT-Xent with cross_entropy"
    z = F.normalize(torch.cat([z0, z1]), dim=1)
    s = z@z.T/t
    s.fill_diagonal_(-torch.inf)
    n = len(z0)
    return F.cross_entropy(s, torch.arange(2*n, device=s.device).roll(n))

# ---------------------------------------------------------------- the loop of a user
class Rows(Dataset):
    "Corrupted views of a pair, read row by row"
    def __init__(self, path): self.h = h5py.File(path)
    def __len__(self): return len(self.h['sentinel2_data'])
    def view(self, name, i):
        x = self.h[name][i].astype('float32').ravel()/1e4
        k = np.random.permutation(len(x))[:round(.2*len(x))]
        x[k] = np.random.rand(len(k))
        return torch.from_numpy(x)
    def __getitem__(self, i): return self.view('sentinel2_data', i), self.view('planet_data', i)

def loss_of_a_user():
    "The loss and its name"
    try: from lightly.loss import NTXentLoss
    except (ImportError, RuntimeError): return plain_loss, 'cross_entropy'
    return NTXentLoss(temperature=.07), 'lightly'

def user_loop(path):
    "Pairs per second, and the name of the loss"
    torch.manual_seed(0)
    nets = networks()
    opt = torch.optim.Adam(nets.parameters(), 1e-3)
    loss_of, name = loss_of_a_user()
    batches = iter(DataLoader(Rows(path), batch, shuffle=True, drop_last=True))
    def step():
        a,b = next(batches)
        loss = loss_of(*nets(a.to(device), b.to(device)))
        update(loss, opt)
        loss.item()
    step()   # the first warms up
    start = time.time()
    for _ in range(steps): step()
    return steps*batch/(time.time()-start), name

# ---------------------------------------------------------------- ours
def in_memory(path):
    "Data on the device as ours, the loss of a user: what is won by the loss alone"
    p = Pairs(path, device)
    nets = networks()
    g = seeded(device, 0)
    def loss():
        rows = torch.randperm(len(p), generator=g, device=device)[:batch]
        return plain_loss(*nets(*views(p, rows, g)))
    return rate(loss, torch.optim.Adam(nets.parameters(), 1e-3, fused=True))

def step_of(p, precision, plain=False):
    "Our step; `plain`: never recorded as a CUDA graph"
    torch.manual_seed(0)
    method = networks()
    opt = make_optimizer(method, dict(optimizer='adam', lr=1e-3, weight_decay=0.))
    step = Step(method, views, opt, p, batch, precision)
    if plain: step.run.first = None
    return step

def ours(path, precision='fp32'):
    step = step_of(Pairs(path, device), precision)
    rows = torch.randperm(len(step.pairs), device=device)[:batch]
    return rate_of(lambda: step(rows))

# ---------------------------------------------------------------- two encoders at once
def without_statistics(nets):
    "Batch statistics without running ones, which vmap cannot update"
    for m in nets.modules():
        if not isinstance(m, torch.nn.BatchNorm1d): continue
        m.track_running_stats = False
        m.running_mean = m.running_var = m.num_batches_tracked = None
    return nets

def together(k=2):
    "k encoders by vmap over stacked parameters, and one after the other: pairs per second of each"
    nets = [without_statistics(networks()) for _ in range(k)]
    stacked, _ = stack_module_state(nets)
    a = torch.randn(k, batch, 12, device=device)
    b = torch.randn(k, batch, 36, device=device)
    weights = {name: w.detach().requires_grad_() for name,w in stacked.items()}
    def loss_of_one(w, x, y): return plain_loss(*functional_call(nets[0], w, (x, y)))
    def at_once(): return torch.vmap(loss_of_one)(weights, a, b).sum()
    def in_turn(): return sum(plain_loss(*m(x, y)) for m,x,y in zip(nets, a, b))
    every = [w for m in nets for w in m.parameters()]
    vmapped = rate(at_once, torch.optim.Adam(weights.values(), 1e-3))
    return k*vmapped, k*rate(in_turn, torch.optim.Adam(every, 1e-3))

# ---------------------------------------------------------------- whole epochs on a GPU
def one_epoch(step, epoch):
    "Mean loss"
    batches = start_epoch(step, 0, epoch)
    for rows in batches: step(rows)
    return step.total.item()/len(batches)

def whole_epochs(path, precision, plain, epochs=3):
    "Pairs per second of the last of a few epochs over all pairs, and the mean loss of each"
    step = step_of(Pairs(path, device), precision, plain)
    losses = []
    for e in range(epochs):
        wait()
        start = time.time()
        losses.append(one_epoch(step, e))
        wait()
    return len(step.pairs)/(time.time()-start), losses

def matmul_peak(n=8192, times=20):
    "FLOP/s of one large bf16 product"
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16)
    for _ in range(3): a@a
    wait()
    start = time.time()
    for _ in range(times): a@a
    wait()
    return times*2*n**3/(time.time()-start)

def flops_of_a_pair():
    "Forward and backward, of the networks and of the loss's products"
    of_networks = 6*sum(w.numel() for w in SimCLR(views).parameters())
    of_loss = 3*2*2*2*batch*256
    return of_networks+of_loss

def epochs_on_a_gpu(path):
    "At the paper's size"
    make_pairs(path, 14_400_000)
    for precision,plain in (('fp32', True), ('fp32', False), ('bf16', False)):
        pairs, losses = whole_epochs(path, precision, plain)
        share = pairs*flops_of_a_pair()/matmul_peak()
        print(f"14.4 M pairs, {precision}, {'eager' if plain else 'graph'}: {pairs:,.0f} pairs/s, "
              f'{share:.1%} of the measured bf16 matmul peak, '
              f'100 epochs {14.4e8/pairs/60:.1f} min; loss {losses}', flush=True)

# ---------------------------------------------------------------- report
def main(path):
    print(f'{torch.get_num_threads()} threads, torch {torch.__version__}, {device}, batch {batch}')
    make_pairs(path)
    base, name = user_loop(path)
    print(f'loop of a user ({name}): {base:,.0f} pairs/s', flush=True)
    def say(what, pairs):
        step = 1000*batch/pairs
        print(f'{what}: {pairs:,.0f} pairs/s, {pairs/base:.1f} x; a step {step:.2f} ms', flush=True)
    say('data on the device, plain loss', in_memory(path))
    say('ours, fp32', ours(path))
    say('ours, networks in bf16', ours(path, 'bf16'))
    vmapped, in_turn = together()
    print(f'two encoders at once by vmap: {vmapped:,.0f} pairs/s, '
          f'one after the other: {in_turn:,.0f} (plain loss, no data)')
    if device=='cuda': epochs_on_a_gpu(path)

if __name__=='__main__':
    with tempfile.TemporaryDirectory() as d: main(Path(d)/'pairs.h5')
