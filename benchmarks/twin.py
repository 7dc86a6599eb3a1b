"""What the twin costs: seconds, peak memory and disk, each case in a process of its own.

    python benchmarks/twin.py            all cases, about 5 minutes on 2 cores
    python benchmarks/twin.py tiny       one of them
"""
import json, resource, subprocess, sys, tempfile, time
from pathlib import Path

cases = dict(tiny=('tiny', ('train', 'test')), demo=('demo', ('train', 'test')), one_date_of_24_km=('paper,dates=1', ('train',)),
             year_of_2400_m=('year,daily=True', ('train',)), pairs_14_4_million=(14_400_000, ()))

def scene_case(folder, name, parts):
    from cropnb.twin.landscape import Land
    from cropnb.twin.scene import parse_scene, write_tile
    for p in parts: write_tile(folder, Land(parse_scene(name)|dict(seed=0), p), folder/'tmp')

def pairs_case(folder, n):
    from cropnb.twin.sample import Crowd, _write_pairs
    _write_pairs(folder/'pairs.h5', Crowd(2500), n)

def one(case):
    what,parts = cases[case]; t = time.time()
    with tempfile.TemporaryDirectory() as d:
        scene_case(Path(d), what, parts) if parts else pairs_case(Path(d), what)
        mb = sum(f.stat().st_size for f in Path(d).rglob('*') if f.is_file())/1e6
    print(json.dumps(dict(case=case, seconds=round(time.time()-t, 1), peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss//1024, disk_mb=round(mb))), flush=True)

if __name__=='__main__':
    if len(sys.argv)>1: one(sys.argv[1])
    else: [subprocess.run([sys.executable, __file__, c], check=True) for c in cases]
