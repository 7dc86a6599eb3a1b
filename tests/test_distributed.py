"Two gloo processes against one: loss, gradients, batch statistics, and a whole training"
import json, os, subprocess, sys
import numpy as np, pytest, torch
from safetensors.torch import load_file
from conftest import root

step = '''
import copy, sys, torch
from safetensors.torch import save_file
from cropnb.engine.distributed import add_gradients, gather, globalise, joined, mine, rank, world
from cropnb.methods.contrast import SimCLR
from cropnb.methods.table import find_method, methods
from cropnb.views import Bimodal, Unimodal

class Taught(SimCLR):
    "The second view is seen by a copy of the encoder, which is not trained but follows it"
    def __init__(self, views, dim, blocks):
        super().__init__(views, dim, blocks)
        self.teacher = copy.deepcopy(self.encoder).requires_grad_(False)
    def forward(self, one, two):
        return [self.projectors[0](self.encoder(one)), self.teacher(two)]
    def after(self, done):
        for old,new in zip(self.teacher.parameters(), self.encoder.parameters()):
            old.lerp_(new, .1)

def one_step(method, *views):
    "Loss, gradients and what they change, by name"
    outs = method(*map(mine, views))
    known = [torch.arange(64)%4 for _ in method.needs]
    loss = method.loss(*map(gather, outs), *known)
    loss.backward()
    add_gradients(method)
    out = {f'gradient of {k}': p.grad.clone() for k,p in method.named_parameters()
           if p.grad is not None}
    trained = [p for p in method.parameters() if p.requires_grad]
    torch.optim.SGD(trained, .1).step()
    with torch.no_grad(): method.after(torch.ones(()))
    return out | {k: v.double() for k,v in method.state_dict().items()} | dict(loss=loss.detach())

def usual_views(cls):
    "Both sensors where it takes them; its own where it has some"
    usual = Bimodal if 'bimodal' in cls.modes else Unimodal
    return cls.views.get(usual.mode, usual)

with joined():
    g = torch.Generator().manual_seed(1)
    def drawn(*shape): return torch.randn(64, *shape, generator=g, dtype=torch.float64)
    def shapes(views): # a season has six dates here
        of_dates = getattr(views, 'of_dates', False)
        return [(6, w+2) if of_dates else (w,) for w in views.widths]
    cases = {name: (find_method(name), usual_views(find_method(name))) for name in methods}
    cases['taught'] = Taught, Unimodal
    out = dict(world=torch.tensor(world()))
    for name,(cls,views) in cases.items():
        torch.manual_seed(0)
        method = globalise(cls(views(), 32, 2)).double().train()
        shown = [drawn(*shape) for shape in shapes(views())]
        out |= {f'{name}: {k}': v for k,v in one_step(method, *shown).items()}
    if rank()==0: save_file(out, sys.argv[1])
'''

in_float64 = '''
import cropnb.pretrain as p, cropnb.views as v
normalise, globalise = v.normalise, p.globalise
v.normalise = lambda *a: normalise(*a).double()
p.globalise = lambda m: globalise(m).double()
p.train_here()
'''

def torchrun(processes, *args, **more):
    "torchrun on a port of its own"
    port = 29500+os.getpid()%500
    cmd = [sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node', str(processes),
           '--master-port', str(port), *map(str, args)]
    env = os.environ|dict(OMP_NUM_THREADS='1')|more
    p = subprocess.run(cmd, cwd=root, capture_output=True, text=True, env=env)
    assert p.returncode==0, p.stderr[-2000:]
    return p.stdout

@pytest.fixture(scope='module')
def one_and_two(tmp_path_factory):
    "A step of every method, by one process and by two"
    folder = tmp_path_factory.mktemp('steps')
    script = folder/'step.py'
    script.write_text(step)
    torchrun(2, script, folder/'two')
    subprocess.run([sys.executable, script, folder/'one'], cwd=root, check=True)
    return load_file(folder/'one'), load_file(folder/'two')

def test_loss_and_gradients_are_those_of_one_process(one_and_two):
    one,two = one_and_two
    assert one['world']==1
    assert two['world']==2
    assert one.keys()==two.keys()
    for k in one.keys()-{'world'}:
        torch.testing.assert_close(two[k], one[k], rtol=1e-5, atol=1e-8, msg=k)

def test_what_is_not_trained_has_no_gradient(one_and_two):
    "The teacher of `taught`; all else has one"
    _,two = one_and_two
    gradients = {k.split()[-1] for k in two if k.startswith('taught: gradient of ')}
    assert {name.split('.')[0] for name in gradients}=={'encoders', 'projectors'}

def two_epochs(pairs, out, processes, *command):
    "Losses and weights of two epochs with a batch of 64, made in a folder of runs of their own"
    changes = ('--profile', 'smoke', '--epochs', '2', '--device', 'cpu', 'pretrain_batch=64')
    runs = str(out.with_suffix('.runs'))
    said = torchrun(processes, *command, pairs.get()/'pairs.h5', out, *changes, CROPNB_RUNS=runs)
    assert f'{processes} processes on cpu' in said
    loss = json.loads((out/'result.json').read_text())['result']['loss']
    return loss, load_file(out/'encoder.safetensors')

@pytest.mark.slow
def test_training_in_float64_is_the_same(smoke, tmp_path):
    "In fp32 Adam turns rounding errors into whole steps; in float64 nothing is left to differ"
    script = tmp_path/'double.py'
    script.write_text(in_float64)
    want, one = two_epochs(smoke.pairs, tmp_path/'1', 1, script)
    loss, two = two_epochs(smoke.pairs, tmp_path/'2', 2, script)
    np.testing.assert_allclose(loss, want, rtol=1e-9)
    for k in one: torch.testing.assert_close(two[k], one[k], rtol=1e-6, atol=1e-9, msg=k)

@pytest.mark.slow
def test_training_through_torchrun(smoke, tmp_path):
    command = ('-m', 'cropnb.pretrain')
    want,_ = two_epochs(smoke.pairs, tmp_path/'1', 1, *command)
    loss,_ = two_epochs(smoke.pairs, tmp_path/'2', 2, *command)
    assert abs(want[0]/loss[0]-1)<1e-3
    assert abs(want[1]/loss[1]-1)<2e-2

def test_a_batch_that_does_not_divide(monkeypatch):
    from cropnb.engine import distributed
    monkeypatch.setattr(distributed, 'world', lambda: 3)
    with pytest.raises(ValueError, match='A batch of 64 does not divide among 3'):
        distributed.mine(torch.zeros(64, 2))
