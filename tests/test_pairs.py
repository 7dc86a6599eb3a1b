"A raster pair whose values say where they are comes back exactly through the pair sampler."
import json, pickle, sys
from datetime import datetime, timezone
import geopandas as gpd, h5py, numpy as np, pytest, rasterio
from rasterio.transform import from_origin
from shapely.geometry import box
from cropnb.prepare.pairs import candidates, window_centre
from cropnb.data import make_pairs
from cropnb.sources.denethor import Tile
from cropnb.twin.scene import _pickled_bbox

W, N = 432_000, 5_832_000

def write_ps(d, img, west, north, px, day):
    p = d/'x_train_source_planet'/f'x_train_source_planet_{day}'; p.mkdir(parents=True)
    with rasterio.open(p/'sr.tif', 'w', driver='GTiff', count=4, height=img.shape[1], width=img.shape[2], dtype='uint16', crs='EPSG:32633', transform=from_origin(west, north, px, px)) as f: f.write(img)

def write_scene(d, px=3., n_ps=100, west=W, north=N, n_s2=30, hole=None):
    "Sentinel-2 of `n_s2` pixels at 10 m; PlanetScope of `n_ps` pixels of `px` m; values are 1 + row and 1 + column"
    s2 = d/'x_train_source_sentinel_2'/'t'; s2.mkdir(parents=True)
    r,c = np.indices((n_s2, n_s2))
    np.save(s2/'bands.npy', np.stack([r+1, c+1]*6, -1)[None].astype('uint16'))
    (s2/'bbox.pkl').write_bytes(_pickled_bbox((W, N-10*n_s2, W+10*n_s2, N)))
    (s2/'timestamp.pkl').write_bytes(pickle.dumps([datetime(2018, 5, 1, tzinfo=timezone.utc)]))
    r,c = np.indices((n_ps, n_ps)); img = np.stack([r+1, c+1, r+1, c+1]).astype('uint16')
    if hole: img[:, hole[0], hole[1]] = 0
    write_ps(d, img, west, north, px, '2018_05_01')
    lab = d/'x_train_labels'; lab.mkdir()
    g = gpd.GeoDataFrame(dict(fid=[1], crop_id=[1]), geometry=[box(W, N-10*n_s2, W+10*n_s2, N)], crs='EPSG:32633')
    g.to_file(lab/'labels.geojson', driver='GeoJSON')
    (d/'split.json').write_text(json.dumps(dict(parts=dict(pretrain=[1]), hash='')))
    return d

def read(d, n=10_000):
    res = make_pairs(d, dict(source='coded', pairs_per_date=n, max_days=0, clouds='all', buffer=0, seed=0), d, d)
    with h5py.File(d/'pairs.h5') as h: return res, {k: v[:] for k,v in h.items()}

@pytest.mark.parametrize('px,west,north', [(3., W, N), (10/3, W, N), (3.125, W, N), (3., W-7.5, N+4.2), (3.125, W-100, N+33)])
def test_exact(tmp_path, px, west, north):
    d = write_scene(tmp_path, px, int(320/px)+60, west, north)
    res, h = read(d)
    assert (h['sentinel2_data'][:,0]==h['row']+1).all() and (h['sentinel2_data'][:,1]==h['col']+1).all()
    x,y = W+10*(h['col']+.5), N-10*(h['row']+.5)                                   # centre of the Sentinel-2 pixel
    row,col = np.floor((north-y)/px+1e-6), np.floor((x-west)/px+1e-6)               # the PlanetScope pixel that holds it
    win = h['planet_data'].reshape(-1, 4, 3, 3).astype(int)-1
    for i in range(3):
        for j in range(3):
            assert (win[:,0,i,j]==row+i-1).all() and (win[:,1,i,j]==col+j-1).all()
    assert res['pairs']==len(h['row'])==900-res['dropped'] and len({*zip(h['row'].tolist(), h['col'].tolist())})==len(h['row'])

def test_edges_and_nodata_are_left_out(tmp_path):
    d = write_scene(tmp_path, 3., 90, hole=(45, 50))                                # 270 m of PlanetScope for 300 m of Sentinel-2
    res, h = read(d)
    assert res['dropped']==900-27*27 and h['planet_data'].min()>0
    assert res['pairs']==27*27-1                                    # one pixel's window holds the hole

def test_other_window(tmp_path):
    "A study passes in a window of its own"
    d = write_scene(tmp_path, 3., 120)
    far = lambda *a: tuple(v+5 for v in window_centre(*a))
    a,b = candidates(Tile(d), [1]), candidates(Tile(d), [1], far)
    assert (b['ps_row']-a['ps_row'][:len(b['ps_row'])]==5).all()

def test_resumes_at_the_shard(tmp_path):
    "An interrupted preparation goes on at the date where it stopped, with the same bytes"
    a,b = (write_scene(tmp_path/k, 3., 120) for k in 'ab')
    read(a, 100); whole = (a/'pairs.h5').read_bytes()
    from cropnb.prepare.pairs import match_days, one_date, save_npz
    t = Tile(b); c = candidates(t, [1]); one = one_date(t.s2[0], t.ps[t.ps.dates[0]], c, 100, np.random.default_rng([0, 0]), np.zeros(t.s2.shape, 'uint8'))
    (b/'tmp').mkdir(); save_npz(b/'tmp'/'0000.npz', date=np.full(100, t.s2.dates[0].astype(int), 'uint16'), **one)
    read(b, 100); assert (b/'pairs.h5').read_bytes()==whole

def test_days_on_another_grid_are_refused(tmp_path):
    d = write_scene(tmp_path); write_ps(d, np.ones((4, 100, 100), 'uint16'), W-60, N, 3., '2018_01_01')
    with pytest.raises(ValueError, match='2018_05_01/sr.tif lies on another grid'): read(d)

def test_rasters_apart_are_refused(tmp_path):
    with pytest.raises(ValueError, match='do the two rasters and the parcels overlap'): read(write_scene(tmp_path, west=W+9000))

@pytest.mark.parametrize('break_it,says', [
    (lambda d: (next(d.rglob('sr.tif')).write_bytes(next(d.rglob('sr.tif')).read_bytes()[:2000])), 'sr.tif'),
    (lambda d: next(d.rglob('labels.geojson')).write_text(next(d.rglob('labels.geojson')).read_text().replace('"crop_id": 1', '"crop_id": 0')), 'blanked'),
    (lambda d: next(d.rglob('timestamp.pkl')).write_bytes(pickle.dumps([])), 'bands.npy holds 1 images, .*timestamp.pkl 0 dates'),
    (lambda d: next(d.rglob('timestamp.pkl')).write_bytes(pickle.dumps(sys.exit)), 'asks for sys.exit'),
    (lambda d: np.save(next(d.rglob('bands.npy')), np.zeros((1, 30, 30, 13), 'uint16')), 'not \\(time, row, column, 12\\)')])
def test_bad_input_is_named(tmp_path, break_it, says):
    d = write_scene(tmp_path); break_it(d)
    with pytest.raises(ValueError, match=says): read(d)
