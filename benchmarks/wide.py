"""Peak memory of a scene of 8,000 x 8,000 Sentinel-2 pixels, each step in a process of its own.

    python benchmarks/wide.py [pixels] [dates] [folder]

Writes compressed images of 12 bands, a sixteenth as many Landsat pixels, and parcels that cover
all of it, to a temporary folder; then checks the scene, draws pairs, those without clouds, and
series.
Prints seconds and the peak memory of each.
"""
import json, resource, subprocess, sys, tempfile, time
from datetime import date, timedelta
from pathlib import Path
import numpy as np

west, north, crs = 600_000, 5_900_000, 'EPSG:32632'
names = 'B01 B02 B03 B04 B05 B06 B07 B08 B8A B09 B11 B12'.split()

def write_image(path, bands, side, pixel, seed, low=300, high=4000):
    "A pattern that compresses well, a strip at a time"
    import rasterio
    from rasterio.transform import from_origin
    path.parent.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    kind = 'uint16' if bands>1 else 'uint8'
    profile = dict(driver='GTiff', count=bands, height=side, width=side, dtype=kind, crs=crs,
                   transform=from_origin(west, north, pixel, pixel), tiled=True, compress='deflate',
                   zlevel=1, blockxsize=512, blockysize=512)
    with rasterio.open(path, 'w', **profile) as f:
        for top in range(0, side, 512):
            rows = min(512, side-top)
            tile = rng.integers(low, high, (bands, -(-rows//16), -(-side//16)), kind)
            a = tile.repeat(16, 1).repeat(16, 2)[:,:rows,:side]
            f.write(a, window=((top, top+rows), (0, side)))
        for i in range(bands):
            if bands==12: f.set_band_description(i+1, names[i])

def write_parcels(path, side, size=400):
    "Squares of `size` m"
    import geopandas as gpd
    from shapely import box
    n = side*10//size
    i,j = (a.ravel() for a in np.indices((n, n)))
    squares = box(west+size*j, north-size*(i+1), west+size*(j+1), north-size*i)
    kinds = np.array(['barley', 'maize', 'wheat'])[(i*3+j)%3]
    gpd.GeoDataFrame(dict(crop=kinds), geometry=squares, crs=crs).to_parquet(path)

scene = '''name = "wide"
[parcels]
file = "parcels.parquet"
[sentinel2]
files = "s2/*.tif"
clouds = "clouds/*.tif"
[landsat]
files = "l8/*.tif"
'''

def write(folder, side, dates):
    for k in range(dates):
        day = date(2021, 5, 1)+timedelta(days=k)
        name = f'{day:%Y%m%d}.tif'
        write_image(folder/'s2'/name, 12, side, 10, k)
        write_image(folder/'clouds'/name, 1, side, 10, k, 0, 255)
        write_image(folder/'l8'/name, 7, side*10//40, 40, k, 7500, 50_000)
    write_parcels(folder/'parcels.parquet', side)
    (folder/'scene.toml').write_text(scene)

# ---------------------------------------------------------------- what is measured
def check(folder):
    from cropnb.cli import main
    main(['check', str(folder)])

def drawn(folder, **changes):
    import cropnb.data as data
    from cropnb.engine.recipes import recipe
    r = recipe('smoke', pairs_per_date=100_000, train_per_class=5000, val_per_class=1000, **changes)
    return data, data.resolve(str(folder)), r

def pairs(folder, **changes):
    data, where, r = drawn(folder, **changes)
    data.pairs(where, r, 0).get()

def clear_pairs(folder): pairs(folder, clouds='clear')

def series(folder):
    data, where, r = drawn(folder)
    data.series(1, where, r|dict(second_series=True), 0).get()

measures = dict(check=check, pairs=pairs, clear_pairs=clear_pairs, series=series)

def measure(what, folder):
    "In this process: seconds, and peak memory in MB"
    start = time.perf_counter()
    measures[what](folder)
    mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
    print(json.dumps(dict(what=what, seconds=round(time.perf_counter()-start, 1), mb=round(mb))))

def measured(folder):
    "Each in a process of its own"
    found = []
    for what in measures:
        command = [sys.executable, __file__, what, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode: sys.exit(done.stderr[-2000:])
        found.append(json.loads(done.stdout.splitlines()[-1]))
    return found

def main(side=8000, dates=2, folder=None):
    with tempfile.TemporaryDirectory(dir=folder) as d:
        write(Path(d), int(side), int(dates))
        for line in measured(Path(d)): print(json.dumps(line))

if __name__=='__main__':
    args = sys.argv[1:]
    if args and args[0] in measures: measure(args[0], Path(args[1]))
    else: main(*args)
