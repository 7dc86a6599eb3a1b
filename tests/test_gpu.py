"What is claimed of a GPU. Skipped where there is none; not yet run on one."
import pytest, torch
from cropnb import graph
from cropnb.views import corrupt
from cropnb.claims import losses
from cropnb.pretrain import Nets, Step, one_epoch

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU here: what runs on one is not yet measured')
how = dict(mode='bimodal', corruption=.2, loss='nt_xent', temperature=.07, precision='fp32', batch=64, seed=3)

class Set:
    "A pre-training set without a file"
    def __init__(self, device, n=64*9+5):
        g = torch.Generator().manual_seed(0); self.s2,self.ps = (torch.randint(0, 9000, (n, f), generator=g).short().to(device) for f in (12, 36))
        self.norm = [(torch.full((f,), .4, device=device), torch.full((f,), .3, device=device)) for f in (12, 36)]
    def __len__(self): return len(self.s2)

def trained(device, epochs=2, plain=False, **change):
    torch.manual_seed(0); nets = Nets('bimodal', 32, 2).to(device).train()
    opt = torch.optim.Adam(nets.parameters(), 1e-3, fused=True, capturable=device=='cuda'); step = Step(nets, opt, Set(device), how|change)
    if plain: step.run.first = None
    return [one_epoch(step, e) for e in range(epochs)], {k: v.cpu() for k,v in nets.state_dict().items()}, step

def test_the_recorder_takes_each_batch_once(monkeypatch):
    "The order of plain, recorded and replayed steps, on a CPU with a recorder that replays the plain step"
    want, w, _ = trained('cpu'); seen = []
    class Played:
        def __init__(self, f): self.f = f
        def replay(self): seen.append('replayed'); self.f()
    monkeypatch.setattr(graph, 'record', lambda f, generators: (seen.append('recorded'), Played(f))[1]); monkeypatch.setattr(graph, 'aside', lambda f: (seen.append('plain'), f()))
    old = graph.Recorded.__init__
    monkeypatch.setattr(graph.Recorded, '__init__', lambda self, *a, **k: (old(self, *a, **k), setattr(self, 'first', 3))[0])
    got, v, _ = trained('cpu'); assert seen==['plain']*3+['recorded']+['replayed']*15 and got==want and all(torch.equal(v[k], w[k]) for k in w)

@gpu
@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
def test_a_recorded_epoch_is_the_plain_one(precision):
    a,v,s = trained('cuda', precision=precision); b,w,_ = trained('cuda', plain=True, precision=precision)
    assert s.run.graph is not None and a==pytest.approx(b, rel=1e-4)
    for k in v: torch.testing.assert_close(v[k], w[k], rtol=1e-2, atol=1e-3)

@gpu
@pytest.mark.parametrize('name', losses)
def test_losses(name):
    g = torch.Generator().manual_seed(0); a,b = (torch.randn(300, 64, generator=g) for _ in range(2)); want = losses[name](a.double(), b.double(), .07).item()
    assert losses[name](a.cuda(), b.cuda(), .07).item()==pytest.approx(want, rel=1e-4)

@gpu
def test_corruption():
    x = torch.arange(1200, device='cuda').reshape(100, 12).short(); g = lambda: torch.Generator('cuda').manual_seed(1)
    y = corrupt(x, .6, -x-1, g()); assert torch.equal(y, corrupt(x, .6, -x-1, g())) and ((y<0).sum(1)==7).all()
