"Two gloo processes against one: loss, gradients, batch statistics, and a whole training through torchrun"
import json, os, subprocess, sys
import numpy as np, pytest, torch
from safetensors.torch import load_file
from conftest import root
from cropnb.engine.recipes import recipe
from cropnb.data import resolve
from cropnb.data import pairs

step = '''
import sys, torch
from safetensors.torch import save_file
from cropnb.engine.distributed import add_gradients, gather, globalise, joined, mine, rank, world
from cropnb.claims import losses
from cropnb.pretrain import Nets
with joined():
    torch.manual_seed(0); nets = globalise(Nets('bimodal', 32, 2)).double().train(); out = {}
    g = torch.Generator().manual_seed(1); a,b = (torch.randn(64, f, generator=g, dtype=torch.float64) for f in (12, 36))
    for name in ('nt_xent', 'dcl', 'clip', 'barlow_twins'):
        nets.zero_grad(); loss = losses[name](*map(gather, nets(mine(a), mine(b))), .07); loss.backward(); add_gradients(nets)
        out |= {f'{name}.{k}': p.grad.clone() for k,p in nets.named_parameters()}|{name: loss.detach()}
    out |= {k: v.double() for k,v in nets.state_dict().items() if 'running' in k}
    if rank()==0: save_file(out|dict(world=torch.tensor(world())), sys.argv[1])
'''

def torchrun(k, *args):
    cmd = [sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node', str(k), '--master-port', str(29500+os.getpid()%500), *args]
    p = subprocess.run(cmd, cwd=root, capture_output=True, text=True, env=os.environ|dict(OMP_NUM_THREADS='1')); assert p.returncode==0, p.stderr[-2000:]

def test_loss_and_gradients_are_those_of_one_process(tmp_path):
    (f := tmp_path/'step.py').write_text(step)
    torchrun(2, str(f), str(tmp_path/'two')); subprocess.run([sys.executable, str(f), str(tmp_path/'one')], cwd=root, check=True)
    a,b = load_file(tmp_path/'one'), load_file(tmp_path/'two'); assert a.pop('world')==1 and b.pop('world')==2 and a.keys()==b.keys()
    for k in a: torch.testing.assert_close(b[k], a[k], rtol=1e-5, atol=1e-8, msg=k)

def two_epochs(tmp_path, k, *changes):
    p = pairs(resolve('twin', 'smoke', 0), recipe('smoke'), 0).get()/'pairs.h5'
    torchrun(k, *changes, str(p), str(tmp_path/str(k)), '--profile', 'smoke', '--epochs', '2', 'pretrain_batch=64')
    return json.loads((tmp_path/str(k)/'result.json').read_text())['result']['loss'], load_file(tmp_path/str(k)/'encoder.safetensors')

def test_training_in_float64_is_the_same(tmp_path):
    "In fp32 Adam turns rounding errors of small gradients into whole steps; in float64 nothing is left to differ"
    (f := tmp_path/'double.py').write_text("""import cropnb.pretrain as p
old, nets = p.normalise, p.Nets
p.normalise = lambda *a: old(*a).double()
p.Nets = lambda *a: nets(*a).double()
p.main()
""")
    (x,a),(y,b) = (two_epochs(tmp_path, k, str(f)) for k in (1, 2)); np.testing.assert_allclose(x, y, rtol=1e-9)
    for k in a: torch.testing.assert_close(b[k], a[k], rtol=1e-6, atol=1e-9, msg=k)

def test_training_through_torchrun(tmp_path):
    (x,_),(y,_) = (two_epochs(tmp_path, k, '-m', 'cropnb.pretrain') for k in (1, 2)); assert abs(x[0]/y[0]-1)<1e-3 and abs(x[1]/y[1]-1)<2e-2

def test_a_batch_that_does_not_divide(monkeypatch):
    import cropnb.distributed as d
    monkeypatch.setattr(d, 'world', lambda: 3)
    with pytest.raises(ValueError, match='A batch of 64 does not divide among 3'): d.mine(torch.zeros(64, 2))
