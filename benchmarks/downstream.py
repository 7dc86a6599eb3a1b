"""Downstream, one grid of trainings in one run: ours against the loop a user would write.

    python benchmarks/downstream.py [cpu | cuda] [n_jobs] [profile] [dates]

The grid: one frozen encoder, the three families with the profile's hyper-parameter sets, its
epochs and batch, on simulated seasons (144 dates unless told).
The loop of a user: a torch Dataset over the HDF5 read row by row, DataLoader, the encoder applied
to every batch in every epoch, Adam, one training at a time with all threads.
Ours: `cropnb.engine.workers.work` with `n_jobs` processes of one thread each, from nothing:
embedding, processes and records included. Nothing here is a test.
"""
import os, sys, tempfile, time
import h5py, numpy as np, torch, torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset
from cropnb.base_models import families
from cropnb.controls import untrained
from cropnb.data import pairs, resolve
from cropnb.downstream import sets, training
from cropnb.encoder import load_encoder
from cropnb.engine.recipes import recipe
from cropnb.engine.workers import work
from cropnb.studies.difficulty import dialled_task

# ---------------------------------------------------------------- the loop of a user
class Rows(Dataset):
    "Seasons of a part, read row by row"
    def __init__(self, series, part): self.h = h5py.File(series/f'{part}.h5')
    def __len__(self): return len(self.h['crop_labels'])
    def __getitem__(self, i):
        x = self.h['time_series'][i].astype('float32')/1e4
        return x, int(self.h['crop_labels'][i,0])-1

class User:
    "One training: the encoder is frozen, and applied again to every batch"
    def __init__(self, family, hyper, folder, device):
        self.device = device
        self.enc = load_encoder(folder, device)
        self.mean, self.std = self.enc.mean.to(device), self.enc.std.to(device)
        torch.manual_seed(0)
        size = {k: v for k,v in hyper.items() if k!='lr'}
        self.model = families[family](256, 9, **size).to(device)
        self.opt = torch.optim.Adam(self.model.parameters(), hyper['lr'])
    @torch.no_grad()
    def embed(self, x):
        z = (x.to(self.device)-self.mean)/self.std
        return self.enc.net(z.flatten(0, 1)).unflatten(0, x.shape[:2])
    def learn(self, batches):
        self.model.train()
        for x,y in batches:
            loss = F.cross_entropy(self.model(self.embed(x)), y.to(self.device))
            self.opt.zero_grad()
            loss.backward()
            self.opt.step()
            loss.item()
    @torch.no_grad()
    def accuracy(self, batches):
        self.model.eval()
        right = [(self.model(self.embed(x)).argmax(1).cpu()==y).float().mean() for x,y in batches]
        return np.mean(right)

def train_as_user(user, series, epochs, batch):
    for _ in range(epochs):
        user.learn(DataLoader(Rows(series, 'train'), batch, shuffle=True))
        user.accuracy(DataLoader(Rows(series, 'val'), batch))

# ---------------------------------------------------------------- both
def untrained_encoder():
    smoke = recipe('smoke')
    run = untrained(pairs(resolve('twin', 'smoke'), smoke, 0), smoke, 0)
    run.get()
    return run

def seconds(f, *args):
    start = time.time()
    f(*args)
    return time.time()-start

def main(device='cpu', n_jobs=2, profile='demo', dates=144):
    threads = torch.get_num_threads()
    r = recipe(profile)
    n_sets = min(r['n_sets'], 2)
    epochs, batch = r['epochs'], r['batch']
    enc = untrained_encoder()
    series = dialled_task(1001, fields=27, pixels=5, dates=dates)
    seasons = [len(Rows(series.get(), part)) for part in ('train', 'val')]
    grid = [training(series, enc, 1, f, i, r, 0, device) for f in families for i in range(n_sets)]
    print(f'{len(grid)} trainings, {seasons[0]} + {seasons[1]} seasons of {dates} dates, '
          f'{epochs} epochs of batch {batch}, {device}, torch {torch.__version__}', flush=True)

    ours = seconds(work, grid, n_jobs)
    print(f'ours, {n_jobs} at a time: {ours:.1f} s', flush=True)

    def all_of_a_user():
        for family in families:
            for hyper in sets(profile, family, n_sets):
                user = User(family, hyper, enc.path, device)
                train_as_user(user, series.path, epochs, batch)
    torch.set_num_threads(threads)
    theirs = seconds(all_of_a_user)
    print(f'loop of a user, {threads} threads: {theirs:.1f} s: {theirs/ours:.1f} x')

if __name__=='__main__':
    kinds = (str, int, str, int)
    with tempfile.TemporaryDirectory() as d:
        os.environ['CROPNB_RUNS'] = d
        main(*(kind(word) for kind,word in zip(kinds, sys.argv[1:])))
