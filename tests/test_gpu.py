"What is claimed of a GPU. Skipped where there is none; not yet run on one."
import pytest, torch
from test_losses import losses
from cropnb.methods.contrast import SimCLR
from cropnb.pretrain import Step, make_optimizer, start_epoch
from cropnb.views import corrupt, modes

reason = 'no GPU here: what runs on one is not yet measured'
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason=reason)
seed = 3

class Set:
    "A pre-training set without a file"
    def __init__(self, device, n=64*9+5):
        g = torch.Generator().manual_seed(0)
        def values(features):
            return torch.randint(0, 9000, (n, features), generator=g).short().to(device)
        def constant(features, value): return torch.full((features,), value, device=device)
        self.x = [values(12), values(36)]
        self.norm = [(constant(f, .4), constant(f, .3)) for f in (12, 36)]
    def __len__(self): return len(self.x[0])

def one_epoch(step, epoch):
    "Mean loss"
    batches = start_epoch(step, seed, epoch)
    for rows in batches: step(rows)
    return step.total.item()/len(batches)

def trained(device, epochs=2, plain=False, precision='fp32', mode='bimodal'):
    "Losses, weights and the step of a small training"
    torch.manual_seed(0)
    views = modes[mode](.2)
    method = SimCLR(views, 32, 2).to(device).train()
    opt = make_optimizer(method, dict(optimizer='adam', lr=1e-3, weight_decay=0.))
    step = Step(method, views, opt, Set(device), 64, precision)
    if plain: step.run.first = None
    loss = [one_epoch(step, e) for e in range(epochs)]
    weights = {k: v.cpu() for k,v in method.state_dict().items()}
    return loss, weights, step

@pytest.mark.parametrize('mode', modes)
def test_the_recorder_takes_each_batch_once(record_steps, mode):
    "The order of plain, recorded and replayed steps, on a CPU"
    want, weights, _ = trained('cpu', mode=mode)
    seen = record_steps()
    got, others, _ = trained('cpu', mode=mode)
    assert seen==['plain']*3+['recorded']+['replayed']*15
    assert got==want
    assert all(torch.equal(others[k], weights[k]) for k in weights)

cases = [*((mode, 'fp32') for mode in modes), ('bimodal', 'bf16')]

@gpu
@pytest.mark.parametrize('mode, precision', cases)
def test_a_recorded_epoch_is_the_plain_one(mode, precision):
    loss, weights, step = trained('cuda', precision=precision, mode=mode)
    want, others, _ = trained('cuda', plain=True, precision=precision, mode=mode)
    assert step.run.graph is not None
    assert loss==pytest.approx(want, rel=1e-4)
    for k in weights: torch.testing.assert_close(weights[k], others[k], rtol=1e-2, atol=1e-3)

@gpu
@pytest.mark.parametrize('name', losses)
def test_losses(name):
    g = torch.Generator().manual_seed(0)
    a,b = (torch.randn(300, 64, generator=g) for _ in range(2))
    want = losses[name](a.double(), b.double(), .07).item()
    assert losses[name](a.cuda(), b.cuda(), .07).item()==pytest.approx(want, rel=1e-4)

@gpu
def test_corruption():
    x = torch.arange(1200, device='cuda').reshape(100, 12).short()
    def corrupted(): return corrupt(x, .6, -x-1, torch.Generator('cuda').manual_seed(1))
    y = corrupted()
    assert torch.equal(y, corrupted())
    assert ((y<0).sum(1)==7).all()
