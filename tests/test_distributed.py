"Two gloo processes against one: loss, gradients, batch statistics, and a whole training"
import json, os, subprocess, sys
import numpy as np, pytest, torch
from safetensors.torch import load_file
from conftest import root

step = '''
import sys, torch
from safetensors.torch import save_file
from cropnb.distributed import add_gradients, gather, globalise, joined, mine, rank, world
from cropnb.losses import losses
from cropnb.pretrain import Nets

def one_step(name, nets, a, b):
    "Loss and gradients, by name"
    nets.zero_grad()
    z = nets(mine(a), mine(b))
    loss = losses[name](*map(gather, z), .07)
    loss.backward()
    add_gradients(nets)
    out = {f'{name}.{k}': p.grad.clone() for k,p in nets.named_parameters()}
    return out | {name: loss.detach()}

with joined():
    torch.manual_seed(0)
    nets = globalise(Nets('bimodal', 32, 2)).double().train()
    g = torch.Generator().manual_seed(1)
    a = torch.randn(64, 12, generator=g, dtype=torch.float64)
    b = torch.randn(64, 36, generator=g, dtype=torch.float64)
    out = dict(world=torch.tensor(world()))
    for name in ('nt_xent', 'dcl', 'clip', 'barlow_twins'): out |= one_step(name, nets, a, b)
    out |= {k: v.double() for k,v in nets.state_dict().items() if 'running' in k}
    if rank()==0: save_file(out, sys.argv[1])
'''

in_float64 = '''
import cropnb.pretrain as p
old, nets = p.normalise, p.Nets
p.normalise = lambda *a: old(*a).double()
p.Nets = lambda *a: nets(*a).double()
p.main()
'''

def torchrun(processes, *args):
    "torchrun on a port of its own"
    port = 29500+os.getpid()%500
    cmd = [sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node', str(processes),
           '--master-port', str(port), *map(str, args)]
    env = os.environ|dict(OMP_NUM_THREADS='1')
    p = subprocess.run(cmd, cwd=root, capture_output=True, text=True, env=env)
    assert p.returncode==0, p.stderr[-2000:]

def test_loss_and_gradients_are_those_of_one_process(tmp_path):
    script = tmp_path/'step.py'
    script.write_text(step)
    torchrun(2, script, tmp_path/'two')
    subprocess.run([sys.executable, script, tmp_path/'one'], cwd=root, check=True)
    one, two = load_file(tmp_path/'one'), load_file(tmp_path/'two')
    assert one.pop('world')==1
    assert two.pop('world')==2
    assert one.keys()==two.keys()
    for k in one: torch.testing.assert_close(two[k], one[k], rtol=1e-5, atol=1e-8, msg=k)

def two_epochs(pairs, out, processes, *command):
    "Losses and weights of two epochs with a batch of 64"
    changes = ('--profile', 'smoke', '--epochs', '2', 'pretrain_batch=64')
    torchrun(processes, *command, pairs.get()/'pairs.h5', out, *changes)
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
    from cropnb import distributed
    monkeypatch.setattr(distributed, 'world', lambda: 3)
    with pytest.raises(ValueError, match='A batch of 64 does not divide among 3'):
        distributed.mine(torch.zeros(64, 2))
