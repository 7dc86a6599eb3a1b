"""Full-size pair sampling against just reading the same files, in one run: `python benchmarks/data.py [dates] [folder]`.

Writes DENETHOR-sized images (Sentinel-2 2400 x 2400 x 12 and PlanetScope 8000 x 8000 x 4, uint16; 0.65 GB a date) of random numbers to a
temporary folder, then, each in a process of its own: reads them with numpy and rasterio, and draws 100,000 pairs a date with
`cropnb.data.make_pairs`. Prints seconds, their ratio, and the peak memory of both.
"""
import json, os, pickle, platform, resource, subprocess, sys, tempfile, time
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
import numpy as np

def write(d, dates):
    import geopandas as gpd, rasterio
    from rasterio.transform import from_origin
    from cropnb.twin.scene import _pickled_bbox
    from cropnb.twin.landscape import draw_parcels
    from shapely.geometry import box
    W,N = 432_000, 5_832_000; rng = np.random.default_rng(0)
    s2 = d/'x_train_source_sentinel_2'/'t'; lab = d/'x_train_labels'; s2.mkdir(parents=True); lab.mkdir()
    a = np.lib.format.open_memmap(s2/'bands.npy', 'w+', 'uint16', (dates, 2400, 2400, 12)); days = [datetime(2018, 1, 1, tzinfo=timezone.utc)+timedelta(days=i) for i in range(dates)]
    for i in range(dates): a[i] = rng.integers(1, 9000, a.shape[1:], 'uint16')
    a.flush(); (s2/'bbox.pkl').write_bytes(_pickled_bbox((W, N-24000, W+24000, N))); (s2/'timestamp.pkl').write_bytes(pickle.dumps(days))
    ps = rng.integers(1, 9000, (4, 8000, 8000), 'uint16')
    for t in days:
        f = d/'x_train_source_planet'/f'x_{t:%Y_%m_%d}'/'sr.tif'; f.parent.mkdir(parents=True)
        with rasterio.open(f, 'w', driver='GTiff', count=4, height=8000, width=8000, dtype='uint16', crs='EPSG:32633', transform=from_origin(W, N, 3, 3)) as o: o.write(ps)
    p = draw_parcels(24_000, 400, rng)
    gpd.GeoDataFrame(dict(fid=np.arange(len(p)), crop_id=np.arange(len(p))%9+1), geometry=[box(W+a, N-24000+b, W+c, N-24000+e) for a,b,c,e in p], crs='EPSG:32633').to_file(lab/'labels.geojson', driver='GeoJSON')
    (d/'split.json').write_text(json.dumps(dict(parts=dict(pretrain=[i for i in range(len(p)) if i%10<7]), hash='')))

def just_read(d, dates):
    "What a user would write"
    import rasterio
    a = np.load(d/'x_train_source_sentinel_2'/'t'/'bands.npy', mmap_mode='r'); fs = sorted(d.rglob('sr.tif')); s = 0
    t = time.perf_counter()
    for i in range(dates):
        s += int(np.array(a[i])[0,0,0])
        with rasterio.open(fs[i]) as f: s += int(f.read()[0,0,0])
    return time.perf_counter()-t

def tuned_read(d, dates):
    os.environ['GDAL_CACHEMAX'] = '64'; return just_read(d, dates)

def sample(d, dates):
    from cropnb.prepare.pairs import candidates, match_days, _all_dates
    from cropnb.prepare.fields import open_tile, part_of
    t = open_tile(d); r = dict(pairs_per_date=100_000, clouds='all', seed=0); c = candidates(t, part_of(d, 'pretrain')); (d/'tmp').mkdir(exist_ok=True)
    days = match_days(t.s2.dates[:dates], t.ps.dates); [f.unlink() for f in (d/'tmp').iterdir()]
    s = time.perf_counter(); _all_dates(d/'tmp', r, t, c, days); return time.perf_counter()-s

if __name__=='__main__':
    if len(sys.argv)>3 and sys.argv[1] in ('just_read', 'tuned_read', 'sample'):
        t = globals()[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3])); print(json.dumps(dict(seconds=t, mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024))); sys.exit()
    dates = int(sys.argv[1]) if len(sys.argv)>1 else 3
    with tempfile.TemporaryDirectory(dir=sys.argv[2] if len(sys.argv)>2 else None) as d:
        d = Path(d); write(d, dates)
        def one(what, n): return json.loads(subprocess.run([sys.executable, __file__, what, str(d), str(n)], capture_output=True, text=True, check=True).stdout.splitlines()[-1])
        one('just_read', dates)                                                                      # once, so that both find the files in the page cache
        runs = [[one(w, dates) for w in ('just_read', 'tuned_read', 'sample')] for _ in range(5)]
        read, tuned, draw = (sorted(r[i]['seconds'] for r in runs)[2]/dates for i in range(3)); few = one('sample', 1)
        print(f"{date.today()} {platform.machine()} {os.cpu_count()} cores, {dates} dates, median of 5: reading {read:.2f} s a date, with GDAL's cache at 64 MB {tuned:.2f} s, sampling 100,000 pairs {draw:.2f} s: {read/draw:.0%} of the reading speed, {tuned/draw:.0%} of the tuned one")
        print(f"peak memory: reading {runs[0][0]['mb']:.0f} MB; sampling {few['mb']:.0f} MB with 1 date, {runs[0][2]['mb']:.0f} MB with {dates}")
