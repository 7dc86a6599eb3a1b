"""A map of 24 x 24 km at 24 dates, read from GeoTIFFs: 5.8 million seasons on one thread.

    python benchmarks/large.py FOLDER [times]

The images are the twin's demo scene (2.4 km) laid side by side `times` times, 10 by default,
across and down: what a pixel costs does not depend on what it shows. They are written once to
FOLDER (0.8 GB), in a process of their own. The encoder is of the size of the paper and in
bfloat16, its weights are random. A run that is killed goes on where it stopped, but then its
seconds are those of the rest.
"""
import json, subprocess, sys, time
from pathlib import Path
import geopandas as gpd, numpy as np, rasterio, torch
from shapely import box
from map import flop, gemm_peak, peak_mb, scene_and_model

toml = '''name = "SIMULATED: the twin's demo scene, {times} x {times} times"
level = "{level}"
[parcels]
file = "parcels.parquet"
[sentinel2]
files = "s2/*.tif"
bands = {bands}
'''

def write_image(path, image, times, like):
    "As images are delivered: compressed, in tiles of 512 pixels"
    wide = np.tile(image.transpose(2, 0, 1), (1, times, times))
    count,height,width = wide.shape
    how = dict(driver='GTiff', dtype='uint16', count=count, height=height, width=width)
    how |= dict(tiled=True, blockxsize=512, blockysize=512)
    how |= dict(compress='deflate', zlevel=1, predictor=2)
    with rasterio.open(path, 'w', crs=like.crs, transform=like.transform, **how) as f:
        f.write(wide)

def write(folder, times):
    "Images, one parcel around all of them, scene.toml, and a model"
    from cropnb.maps.blocks import as_scene
    scene,model = scene_and_model(folder)
    tile = as_scene(scene)
    images = tile.first
    (folder/'s2').mkdir(exist_ok=True)
    for i,day in enumerate(images.dates):
        path = folder/'s2'/f'{day}.tif'
        image = images.read(i, slice(None), slice(None))
        write_image(path, image, times, images)
    west,north = images.transform*(0, 0)
    height,width = (10*times*n for n in images.shape)
    around = box(west, north-height, west+width, north)
    parcels = gpd.GeoDataFrame(dict(crop=['wheat']), geometry=[around], crs=images.crs)
    parcels.to_parquet(folder/'parcels.parquet')
    bands = json.dumps(list(images.sensor.bands))
    text = toml.format(times=times, level=tile.level, bands=bands)
    (folder/'scene.toml').write_text(text)

def measure(folder):
    "Classes, probabilities and confidence"
    from cropnb.maps.fit import MapModel
    from cropnb.maps.scene import map_scene
    torch.set_num_threads(1)
    model,before = MapModel(folder/'model'), peak_mb()
    outputs = [folder/name for name in ('crops.tif', 'p.tif', 'c.tif')]
    start,wall = time.process_time(), time.perf_counter()
    how = dict(level=.8, bf16=True, block=512, force=True)
    found = map_scene(model, folder, *outputs, **how)
    cpu,wall = time.process_time()-start, time.perf_counter()-wall
    pixels = sum(found['classes'].values())
    hours = 10_980**2*cpu/pixels/3600 # of one core, for a Sentinel-2 tile
    peak = gemm_peak(kind=torch.bfloat16)
    print(json.dumps(dict(
        pixels=pixels, cpu_seconds=round(cpu), seconds=round(wall),
        pixels_a_cpu_second=round(pixels/cpu), pixels_a_second=round(pixels/wall),
        share_of_gemm_peak=round(pixels*24*flop/cpu/peak, 2),
        peak_mb=peak_mb(), before_mb=before,
        tile_hours_one_core=round(hours, 1), tile_hours_two_cores=round(hours/2, 1),
        tile_minutes_64_cores=round(hours/64*60, 1))), flush=True)

def main(step, *args):
    if step=='write': return write(Path(args[0]), int(args[1]))
    if step=='measure': return measure(Path(args[0]))
    folder,times = Path(step), args[0] if args else '10'
    folder.mkdir(parents=True, exist_ok=True)
    here = [sys.executable, __file__]
    if not (folder/'scene.toml').exists():
        subprocess.run([*here, 'write', str(folder), times], check=True)
    subprocess.run([*here, 'measure', str(folder)], check=True)

if __name__=='__main__': main(*sys.argv[1:])
