"""Full-size pair sampling against just reading the same files, in one run.

    python benchmarks/data.py [dates] [folder]

Writes DENETHOR-sized images (Sentinel-2 2400 x 2400 x 12 and PlanetScope 8000 x 8000 x 4, uint16;
0.65 GB a date) of random numbers to a temporary folder, then, each in a process of its own: reads
them with numpy and rasterio, and draws 100,000 pairs a date with `cropnb.prepare.pairs`.
Prints seconds, their ratio, and the peak memory of both.
"""
import json, os, pickle, platform, resource, subprocess, sys, tempfile, time
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
import numpy as np

west, north = 432_000, 5_832_000   # corner of both images, metres in UTM 33N
side = 24_000                      # of the tile, metres
crs = 'EPSG:32633'
pairs_per_date = 100_000

# ---------------------------------------------------------------- files of DENETHOR's size
def write_s2(folder, days, rng):
    from cropnb.twin.scene import _pickled_bbox
    p = folder/'x_train_source_sentinel_2'/'t'
    p.mkdir(parents=True)
    shape = (len(days), 2400, 2400, 12)
    bands = np.lib.format.open_memmap(p/'bands.npy', 'w+', 'uint16', shape)
    for i in range(len(days)): bands[i] = rng.integers(1, 9000, shape[1:], 'uint16')
    bands.flush()
    (p/'bbox.pkl').write_bytes(_pickled_bbox((west, north-side, west+side, north)))
    (p/'timestamp.pkl').write_bytes(pickle.dumps(days))

def write_ps(folder, days, rng):
    "The same image every day"
    import rasterio
    from rasterio.transform import from_origin
    img = rng.integers(1, 9000, (4, 8000, 8000), 'uint16')
    profile = dict(driver='GTiff', count=4, height=8000, width=8000, dtype='uint16', crs=crs,
                   transform=from_origin(west, north, 3, 3))
    for day in days:
        p = folder/'x_train_source_planet'/f'x_{day:%Y_%m_%d}'
        p.mkdir(parents=True)
        with rasterio.open(p/'sr.tif', 'w', **profile) as f: f.write(img)

def write_labels(folder, rng):
    "Parcels of about 400 m, of which seven in ten are for pre-training"
    import geopandas as gpd
    from cropnb.twin.landscape import draw_parcels
    from shapely.geometry import box
    p = folder/'x_train_labels'
    p.mkdir()
    south = north-side
    drawn = draw_parcels(side, 400, rng)   # metres from the lower left corner
    boxes = [box(west+x0, south+y0, west+x1, south+y1) for x0,y0,x1,y1 in drawn]
    fid = np.arange(len(boxes))
    g = gpd.GeoDataFrame(dict(fid=fid, crop_id=fid%9+1), geometry=boxes, crs=crs)
    g.to_file(p/'labels.geojson', driver='GeoJSON')
    pretrain = fid[fid%10<7].tolist()
    (folder/'split.json').write_text(json.dumps(dict(parts=dict(pretrain=pretrain), hash='')))

def write(folder, dates):
    rng = np.random.default_rng(0)
    first = datetime(2018, 1, 1, tzinfo=timezone.utc)
    days = [first+timedelta(days=i) for i in range(dates)]
    write_s2(folder, days, rng)
    write_ps(folder, days, rng)
    write_labels(folder, rng)

# ---------------------------------------------------------------- what is measured
def just_read(folder, dates):
    "What a user would write"
    import rasterio
    bands = np.load(folder/'x_train_source_sentinel_2'/'t'/'bands.npy', mmap_mode='r')
    files = sorted(folder.rglob('sr.tif'))
    start = time.perf_counter()
    for i in range(dates):
        np.array(bands[i])
        with rasterio.open(files[i]) as f: f.read()
    return time.perf_counter()-start

def tuned_read(folder, dates):
    "With GDAL's cache at 64 MB"
    os.environ['GDAL_CACHEMAX'] = '64'
    return just_read(folder, dates)

def sample(folder, dates):
    "Pairs of each date, into shards"
    from cropnb.prepare.fields import open_tile, part_of
    from cropnb.prepare.pairs import _all_dates, candidates, match_days
    tile = open_tile(folder)
    recipe = dict(pairs_per_date=pairs_per_date, clouds='all', seed=0)
    rows = candidates(tile, part_of(folder, 'pretrain'))
    days = match_days(tile.first.dates[:dates], tile.second.dates)
    with tempfile.TemporaryDirectory(dir=folder) as shards:
        start = time.perf_counter()
        _all_dates(Path(shards), recipe, tile, rows, days)
        return time.perf_counter()-start

measures = dict(just_read=just_read, tuned_read=tuned_read, sample=sample)

def measure(what, folder, dates):
    "In this process: seconds, and peak memory in MB"
    seconds = measures[what](folder, dates)
    mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
    print(json.dumps(dict(seconds=seconds, mb=mb)))

def measured(what, folder, dates):
    "In a process of its own"
    cmd = [sys.executable, __file__, what, str(folder), str(dates)]
    done = subprocess.run(cmd, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])

# ---------------------------------------------------------------- report
def median(runs, what, key='seconds'): return sorted(r[what][key] for r in runs)[len(runs)//2]

def compare(folder, dates, times=5):
    measured('just_read', folder, dates)   # once, so that all find the files in the page cache
    runs = [{what: measured(what, folder, dates) for what in measures} for _ in range(times)]
    read, tuned, draw = (median(runs, what)/dates for what in measures)
    print(f'{date.today()} {platform.machine()} {os.cpu_count()} cores, {dates} dates, '
          f'median of {times}: reading {read:.2f} s a date, '
          f"with GDAL's cache at 64 MB {tuned:.2f} s, "
          f'sampling {pairs_per_date:,} pairs {draw:.2f} s: '
          f'{read/draw:.0%} of the reading speed, {tuned/draw:.0%} of the tuned one')
    few, many = measured('sample', folder, 1)['mb'], runs[0]['sample']['mb']
    print(f"peak memory: reading {runs[0]['just_read']['mb']:.0f} MB; "
          f'sampling {few:.0f} MB with 1 date, {many:.0f} MB with {dates}')

def main(dates=3, folder=None):
    with tempfile.TemporaryDirectory(dir=folder) as d:
        write(Path(d), int(dates))
        compare(Path(d), int(dates))

if __name__=='__main__':
    args = sys.argv[1:]
    if args and args[0] in measures: measure(args[0], Path(args[1]), int(args[2]))
    else: main(*args)
