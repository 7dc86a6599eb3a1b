"""What a map costs: pixels a second and peak memory, each case in a process of its own.

    python benchmarks/map.py             all cases on the twin's demo scene, about 5 minutes
    python benchmarks/map.py loop        one of them

The loop is what a user writes: block by block, the dates into one array, `model.predict`,
the window into a GeoTIFF. All cases on one thread, so that seconds of the processor
compare on a machine that others use too.
"""
import json, resource, subprocess, sys, tempfile, time
from pathlib import Path
import numpy as np, rasterio, torch

flop = 2*(12*256+9*256*256) # of one date of a pixel through the encoder, as it is trained
ways = dict(
    ours={}, ours_bf16=dict(bf16=True), ten_days=dict(days=10), thirty_days=dict(days=30),
    half_a_year=dict(until='2018-06-30'), blocks_of_64=dict(block=64))

def scene_and_model(folder):
    "The twin's demo scene, and a model of its size that has hardly been trained"
    from cropnb.data import resolve
    from cropnb.encoder import save_encoder
    from cropnb.encoders import ResMLP
    from cropnb.maps.fit import fit_scene
    torch.manual_seed(0)
    stats = dict(s2_mean=torch.full((12,), .2), s2_std=torch.full((12,), .15))
    file = folder/'encoder.safetensors'
    save_encoder(file, ResMLP(), stats, mode='untrained', corruption=None, source='noise')
    scene = resolve('twin', 'demo', 0).get()
    return scene, fit_scene(scene, file, folder/'model', pixels=10, epochs=1)

def loop(scene, model, out, block=64):
    "As a user would write it"
    from cropnb.features import day_of_year
    from cropnb.maps.blocks import as_scene
    s2 = as_scene(scene).first
    day = torch.from_numpy(day_of_year(s2.dates.astype(int)))
    how = dict(driver='GTiff', dtype='uint8', count=1, height=s2.shape[0], width=s2.shape[1],
               crs=s2.crs, transform=s2.transform)
    with rasterio.open(out, 'w', **how) as f:
        for r in range(0, s2.shape[0], block):
            for c in range(0, s2.shape[1], block):
                x = np.stack([s2.bands[i,r:r+block,c:c+block] for i in range(len(day))], 2)
                height,width = x.shape[:2]
                x = torch.from_numpy(x.reshape(-1, *x.shape[2:]).astype('int16'))
                part = dict(x=x, mask=x.any(2), day=day.expand(len(x), -1), own={})
                classes = model.predict(part)[0].reshape(1, height, width)
                window = rasterio.windows.Window(c, r, width, height)
                f.write(classes.astype('uint8')+1, window=window)
    return s2.shape

class Wide:
    "The scene's images side by side, as many times as wanted"
    def __init__(self, images, times):
        self.images,self.dates,self.sensor = images,images.dates,images.sensor
        self.transform,self.crs = images.transform,images.crs
        self.shape = tuple(n*times for n in images.shape)

    def read(self, i, rows, cols):
        height,width = self.images.shape
        r = np.arange(rows.start, rows.stop)%height
        c = np.arange(cols.start, cols.stop)%width
        return self.images.bands[i][np.ix_(r, c)]

class WideScene:
    def __init__(self, tile, times):
        self.tile,self.first = tile,Wide(tile.first, times)
    def fields(self, crs=None): return self.tile.fields(crs)
    def __getattr__(self, name): return getattr(self.tile, name)

def gemm_peak(seconds=2, kind=torch.float32):
    "Flop a second of the processor, of matrix products of the encoder's size"
    a,b = torch.randn(4096, 256).to(kind), torch.randn(256, 256).to(kind)
    start,n = time.process_time(), 0
    while time.process_time()-start<seconds:
        a@b
        n += 1
    return 2*4096*256*256*n/(time.process_time()-start)

def peak_mb(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss//1024

def measure(case):
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as d:
        folder = Path(d)
        scene,model = scene_and_model(folder)
        before = peak_mb()
        start,wall = time.process_time(), time.perf_counter()
        pixels = work(case, scene, model, folder/'crops.tif')
        cpu,wall = time.process_time()-start, time.perf_counter()-wall
    row = dict(case=case, pixels=pixels, pixels_a_cpu_second=round(pixels/cpu),
               pixels_a_second=round(pixels/wall), peak_mb=peak_mb(), before_mb=before)
    if case in ('loop', 'ours'): # 24 dates
        row['share_of_gemm_peak'] = round(pixels*24*flop/cpu/gemm_peak(), 2)
    print(json.dumps(row), flush=True)

def work(case, scene, model, out):
    "How many pixels were mapped"
    from cropnb.maps.blocks import as_scene
    from cropnb.maps.scene import map_scene
    if case=='loop': return int(np.prod(loop(scene, model, out)))
    if case.startswith('wide'):
        scene = WideScene(as_scene(scene), int(case[4:]))
    found = map_scene(model, scene, out, **ways.get(case, {}))
    return sum(found['classes'].values())

def main(case=None):
    if case: return measure(case)
    for each in ('loop', *ways, 'wide3'):
        subprocess.run([sys.executable, __file__, each], check=True)

if __name__=='__main__': main(*sys.argv[1:2])
