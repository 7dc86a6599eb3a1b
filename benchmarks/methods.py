"""What a step of each method costs beside SimCLR's, in one run on one device.

    python benchmarks/methods.py [cpu | cuda] [steps] [mode] [fp32 | bf16] [method ...]

Same random pairs, networks, batch (2048, width 256, 4 blocks) and optimiser (fused Adam); each
method with its default options. Without a list of methods: all that learn from pairs, and SimCLR
with the transformer over bands ('simclr on bands'). A step is what `cropnb.pretrain.Step` does:
views, networks, loss, backward, optimiser, what follows. The methods take turns, so that a machine
that slows down slows all of them; the time of a method is the median of its steps, on a CPU that of
the processor (of all threads: set OMP_NUM_THREADS=1), which others on the machine lengthen less.
Nothing here is a test.
"""
import statistics, sys, tempfile, time
from pathlib import Path
import h5py, numpy as np, torch
from cropnb.methods.base import on_backbone
from cropnb.methods.table import find_method, methods
from cropnb.pretrain import Step, make_optimizer
from cropnb.views import Pairs, modes

def word(i, default): return sys.argv[i] if len(sys.argv)>i else default

device, mode, precision = word(1, 'cpu'), word(3, 'bimodal'), word(4, 'fp32')
steps, only = int(word(2, 5)), sys.argv[5:]
batch = 2048

# ---------------------------------------------------------------- pairs and methods
def make_pairs(path, n=20_000):
    "Random pairs that name their crops"
    rng = np.random.default_rng(0)
    s2 = rng.integers(100, 5000, (n, 12)).astype('uint16')
    ps = rng.integers(100, 5000, (n, 4, 9)).astype('uint16')
    moments = dict(s2_mean=s2.mean(0), s2_std=s2.std(0))
    moments |= dict(ps_mean=ps.mean((0, 2)), ps_std=ps.std((0, 2)))
    with h5py.File(path, 'w') as h:
        h['sentinel2_data'] = s2
        h['planet_data'] = ps
        h['crop'] = rng.integers(1, 10, n)
        h.attrs.update({k: v/1e4 for k,v in moments.items()})

def step_of(name, pairs):
    "With the method's defaults; 'simclr on bands' has another network"
    name,_,backbone = name.partition(' on ')
    cls = on_backbone(find_method(name), backbone or 'resmlp')
    at = mode if mode in cls.modes else cls.modes[0]
    views = getattr(cls, 'views', {}).get(at, modes[at])(.2)
    torch.manual_seed(0)
    method = cls(views).to(device).train()
    opt = make_optimizer(method, dict(optimizer='adam', lr=1e-3, weight_decay=1e-5))
    return Step(method, views, opt, pairs, batch, precision)

def megabytes(step):
    "Of the tensors that a method keeps: queues, teachers, prototypes, networks"
    return sum(v.numel()*v.element_size() for v in step.method.state_dict().values())/1e6

# ---------------------------------------------------------------- clocks
def wait():
    "Until the device has done what it was asked for"
    if device=='cuda': torch.cuda.synchronize()

def seconds(step):
    rows = torch.randperm(len(step.pairs), device=device)[:batch]
    clock = time.perf_counter if device=='cuda' else time.process_time
    wait()
    start = clock()
    step(rows)
    wait()
    return clock()-start

def in_turn(names, pairs):
    "Median seconds of each, after steps to warm up; and what each keeps"
    found, kept = {name: [] for name in names}, {}
    all_steps = {name: step_of(name, pairs) for name in names}
    for name,step in all_steps.items():
        kept[name] = megabytes(step), step.views.mode
        for _ in range(5 if device=='cuda' else 1): seconds(step)
    for _ in range(steps):
        for name,step in all_steps.items(): found[name].append(seconds(step))
    return {name: statistics.median(times) for name,times in found.items()}, kept

# ---------------------------------------------------------------- report
def main(path):
    make_pairs(path)
    print(f'{torch.get_num_threads()} threads, torch {torch.__version__}, {device}, {precision}, '
          f'batch {batch}, median of {steps} steps')
    names = [name for name in methods if not getattr(find_method(name), 'bank', None)]
    names.append('simclr on bands')
    if only: names = ['simclr', *only]
    times, kept = in_turn(names, Pairs(path, device)) # those that learn from pairs
    print('| method | views | ms a step | beside SimCLR | MB of tensors kept |')
    print('|---|---|---|---|---|')
    for name,t in times.items():
        size, shown = kept[name]
        print(f"| {name} | {shown} | {1000*t:.0f} | {t/times['simclr']:.2f} | {size:.0f} |")

if __name__=='__main__':
    with tempfile.TemporaryDirectory() as d: main(Path(d)/'pairs.h5')
