"""Downstream, one grid of trainings in one run: ours against the loop a user would write.

    python benchmarks/downstream.py [cpu | cuda] [n_jobs] [profile] [dates]

The grid: one frozen encoder, the three families with the profile's hyper-parameter sets, its epochs and batch, on simulated seasons (144 dates unless told).
The loop of a user: a torch Dataset over the HDF5 read row by row, DataLoader, the encoder applied to every batch in every epoch, Adam, one training at a time
with all threads. Ours: `cropnb.workers.work` with `n_jobs` processes of one thread each, from nothing: embedding, processes and records included.
Nothing here is a test.
"""
import os, sys, tempfile, time

def main(device='cpu', n_jobs=2, profile='demo', dates=144):
    import h5py, numpy as np, torch, torch.nn.functional as F
    from cropnb.core import recipe, resolve
    from cropnb.data import pairs
    from cropnb.downstream import build, sets, training
    from cropnb.encoders import families
    from cropnb.pretrain import encoder, load_encoder
    from cropnb.studies.difficulty import dialled_task as task
    from cropnb.workers import work
    threads = torch.get_num_threads(); r = recipe(profile); smoke = recipe('smoke'); enc = encoder(pairs(resolve('twin', 'smoke'), smoke, 0), smoke, 0, epochs=0); enc.get()
    t = task(1001, fields=27, pixels=5, dates=dates); t.get(); n_sets = min(r['n_sets'], 2)
    cells = [training(t, enc, 1, f, i, r, 0, device) for f in families for i in range(n_sets)]

    class Rows(torch.utils.data.Dataset):
        def __init__(self, part): self.h = h5py.File(t.path/f'{part}.h5')
        def __len__(self): return len(self.h['crop_labels'])
        def __getitem__(self, i): return self.h['time_series'][i].astype('float32')/1e4, int(self.h['crop_labels'][i,0])-1

    def user(family, hyper):
        e = load_encoder(enc.path, device); mean,std = e.mean.to(device), e.std.to(device); torch.manual_seed(0)
        m = families[family](256, 9, **{k: v for k,v in hyper.items() if k!='lr'}).to(device); opt = torch.optim.Adam(m.parameters(), hyper['lr'])
        def embed(x):
            with torch.no_grad(): return e.net(((x.to(device)-mean)/std).flatten(0, 1)).unflatten(0, x.shape[:2])
        for _ in range(r['epochs']):
            m.train()
            for x,y in torch.utils.data.DataLoader(Rows('train'), r['batch'], shuffle=True): l = F.cross_entropy(m(embed(x)), y.to(device)); opt.zero_grad(); l.backward(); opt.step(); l.item()
            m.eval()
            with torch.no_grad(): acc = np.mean([(m(embed(x)).argmax(1).cpu()==y).float().mean() for x,y in torch.utils.data.DataLoader(Rows('val'), r['batch'])])
        return acc

    print(f"{len(cells)} trainings, {len(Rows('train'))} + {len(Rows('val'))} seasons of {dates} dates, {r['epochs']} epochs of batch {r['batch']}, {device}, torch {torch.__version__}", flush=True)
    start = time.time(); work(cells, n_jobs); ours = time.time()-start; print(f'ours, {n_jobs} at a time: {ours:.1f} s', flush=True)
    torch.set_num_threads(threads); start = time.time(); accs = [user(f, h) for f in families for h in sets(profile, f, n_sets)]; theirs = time.time()-start
    print(f'loop of a user, {torch.get_num_threads()} threads: {theirs:.1f} s: {theirs/ours:.1f} x')

if __name__=='__main__':
    with tempfile.TemporaryDirectory() as d:
        os.environ['CROPNB_RUNS'] = d; a = sys.argv[1:]; main(*a[:1], *map(int, a[1:2]), *a[2:3], *map(int, a[3:]))
