"""What the twin costs: seconds, peak memory and disk, each case in a process of its own.

    python benchmarks/twin.py            all cases, about 5 minutes on 2 cores
    python benchmarks/twin.py tiny       one of them
"""
import json, resource, subprocess, sys, tempfile, time
from pathlib import Path

scenes = dict( # name and tiles
    tiny = ('tiny', ('train', 'test')),
    demo = ('demo', ('train', 'test')),
    one_date_of_24_km = ('paper,dates=1', ('train',)),
    year_of_2400_m = ('year,daily=True', ('train',)))
pairs = dict(pairs_14_4_million=14_400_000)

def write_scene(folder, name, parts):
    from cropnb.twin.landscape import Land
    from cropnb.twin.scene import parse_scene, write_tile
    r = parse_scene(name)|dict(seed=0)
    for part in parts: write_tile(folder, Land(r, part), folder/'tmp')

def write_pairs(folder, n):
    from cropnb.twin.sample import Crowd, _write_pairs
    _write_pairs(folder/'pairs.h5', Crowd(2500), n)

def megabytes(folder):
    return sum(f.stat().st_size for f in folder.rglob('*') if f.is_file())/1e6

def measure(case):
    start = time.time()
    with tempfile.TemporaryDirectory() as d:
        folder = Path(d)
        if case in scenes: write_scene(folder, *scenes[case])
        else: write_pairs(folder, pairs[case])
        disk = megabytes(folder)
    seconds = time.time()-start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss//1024
    row = dict(case=case, seconds=round(seconds, 1), peak_mb=peak, disk_mb=round(disk))
    print(json.dumps(row), flush=True)

def main(case=None):
    if case: return measure(case)
    for each in (*scenes, *pairs): subprocess.run([sys.executable, __file__, each], check=True)

if __name__=='__main__': main(*sys.argv[1:2])
