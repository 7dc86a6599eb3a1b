"A raster pair whose values say where they are comes back exactly through the pair sampler"
import json, pickle, sys
from datetime import datetime, timezone
import geopandas as gpd, h5py, numpy as np, pytest, rasterio
from rasterio.transform import from_origin
from shapely.geometry import box
from cropnb.prepare.pairs import Draw, OneDate, candidates, make_pairs, one_date, save_npz
from cropnb.prepare.pairs import window_centre
from cropnb.sources.denethor import Tile
from cropnb.twin.scene import _pickled_bbox

west, north = 432_000, 5_832_000   # corner of the Sentinel-2 image, metres in UTM 33N
crs = 'EPSG:32633'

# ---------------------------------------------------------------- a scene on disk
def write_ps(folder, img, west, north, px, day):
    "A PlanetScope image (4, rows, columns)"
    bands, height, width = img.shape
    p = folder/'x_train_source_planet'/f'x_train_source_planet_{day}'
    p.mkdir(parents=True)
    profile = dict(driver='GTiff', count=bands, height=height, width=width, dtype='uint16', crs=crs)
    with rasterio.open(p/'sr.tif', 'w', transform=from_origin(west, north, px, px), **profile) as f:
        f.write(img)

def write_s2(folder, n):
    "A Sentinel-2 image of `n` x `n` pixels of 10 m, whose bands are 1 + row and 1 + column in turn"
    p = folder/'x_train_source_sentinel_2'/'t'
    p.mkdir(parents=True)
    row,col = np.indices((n, n))
    bands = np.stack([row+1, col+1]*6, -1)
    np.save(p/'bands.npy', bands[None].astype('uint16'))
    (p/'bbox.pkl').write_bytes(_pickled_bbox((west, north-10*n, west+10*n, north)))
    (p/'timestamp.pkl').write_bytes(pickle.dumps([datetime(2018, 5, 1, tzinfo=timezone.utc)]))

def write_labels(folder, side):
    "One parcel over the whole image, which goes to pre-training"
    p = folder/'x_train_labels'
    p.mkdir()
    parcel = box(west, north-side, west+side, north)
    g = gpd.GeoDataFrame(dict(fid=[1], crop_id=[1]), geometry=[parcel], crs=crs)
    g.to_file(p/'labels.geojson', driver='GeoJSON')
    (folder/'split.json').write_text(json.dumps(dict(parts=dict(pretrain=[1]), hash='')))

def write_scene(folder, px=3., n_ps=100, ps_west=west, ps_north=north, n_s2=30, hole=None):
    "`n_s2` pixels of 10 m and `n_ps` pixels of `px` m a side; values are 1 + row and 1 + column"
    write_s2(folder, n_s2)
    row,col = np.indices((n_ps, n_ps))
    img = np.stack([row+1, col+1, row+1, col+1]).astype('uint16')
    if hole: img[:, hole[0], hole[1]] = 0
    write_ps(folder, img, ps_west, ps_north, px, '2018_05_01')
    write_labels(folder, 10*n_s2)
    return folder

def sampled(folder, n=10_000):
    "What `make_pairs` returns, and the arrays that it wrote"
    r = dict(source='coded', pairs_per_date=n, max_days=0, clouds='all', buffer=0, seed=0)
    res = make_pairs(folder, r, folder, folder)
    with h5py.File(folder/'pairs.h5') as h: return res, {k: v[:] for k,v in h.items()}

# ---------------------------------------------------------------- where pairs come from
def holds_centre(h, px, ps_west, ps_north):
    "Row and column of the PlanetScope pixel that holds the centre of each Sentinel-2 pixel"
    x = west+10*(h['col']+.5)
    y = north-10*(h['row']+.5)
    return np.floor((ps_north-y)/px+1e-6), np.floor((x-ps_west)/px+1e-6)

grids = [(3., west, north), (10/3, west, north), (3.125, west, north),
         (3., west-7.5, north+4.2), (3.125, west-100, north+33)]

@pytest.mark.parametrize('px, ps_west, ps_north', grids)
def test_exact(tmp_path, px, ps_west, ps_north):
    res, h = sampled(write_scene(tmp_path, px, int(320/px)+60, ps_west, ps_north))
    assert (h['sentinel2_data'][:,0]==h['row']+1).all()
    assert (h['sentinel2_data'][:,1]==h['col']+1).all()
    row,col = holds_centre(h, px, ps_west, ps_north)
    window = h['planet_data'].reshape(-1, 4, 3, 3).astype(int)-1
    for i in range(3):
        for j in range(3):
            assert (window[:,0,i,j]==row+i-1).all()
            assert (window[:,1,i,j]==col+j-1).all()
    places = {*zip(h['row'].tolist(), h['col'].tolist())}
    assert res['pairs']==len(h['row'])==900-res['dropped']
    assert len(places)==len(h['row'])

def test_edges_and_nodata_are_left_out(tmp_path):
    "270 m of PlanetScope for 300 m of Sentinel-2, and one window that holds a pixel without data"
    res, h = sampled(write_scene(tmp_path, 3., 90, hole=(45, 50)))
    assert res['dropped']==900-27*27
    assert res['pairs']==27*27-1
    assert h['planet_data'].min()>0

def test_other_window(tmp_path):
    "A study passes in a window of its own"
    def window_far(*args): return tuple(v+5 for v in window_centre(*args))
    d = write_scene(tmp_path, 3., 120)
    tile = Tile(d)
    images = [OneDate(image, 0) for image in tile.images]
    near, far = (candidates(tile, [1], centre) for centre in (window_centre, window_far))
    assert len(far['row'])<=len(near['row'])
    j = np.arange(len(far['row']))
    shown = [Draw(images, far, centre=centre)(j)[0] for centre in (window_centre, window_far)]
    near, far = (one['planet_data'][:,:,4].astype(int) for one in shown)
    assert (far-near==5).all()

def test_resumes_at_the_shard(tmp_path):
    "An interrupted preparation goes on at the date where it stopped, with the same bytes"
    whole = write_scene(tmp_path/'whole', 3., 120)
    sampled(whole, 100)
    stopped = write_scene(tmp_path/'stopped', 3., 120)
    tile = Tile(stopped)
    s2 = tile.first
    draw = Draw([OneDate(images, 0) for images in tile.images], candidates(tile, [1]))
    drawn = one_date(draw, 100, np.random.default_rng([0, 0]))
    (stopped/'tmp').mkdir()
    date = np.full(100, s2.dates[0].astype(int), 'uint16')
    save_npz(stopped/'tmp'/'0000.npz', date=date, **drawn)
    sampled(stopped, 100)
    assert (stopped/'pairs.h5').read_bytes()==(whole/'pairs.h5').read_bytes()

# ---------------------------------------------------------------- errors
def test_days_on_another_grid_are_refused(tmp_path):
    d = write_scene(tmp_path)
    write_ps(d, np.ones((4, 100, 100), 'uint16'), west-60, north, 3., '2018_01_01')
    with pytest.raises(ValueError, match='2018_05_01/sr.tif lies on another grid'): sampled(d)

def test_rasters_apart_are_refused(tmp_path):
    d = write_scene(tmp_path, ps_west=west+9000)
    with pytest.raises(ValueError, match='do the two rasters and the parcels overlap'): sampled(d)

def cut_planet(d):
    f = next(d.rglob('sr.tif'))
    f.write_bytes(f.read_bytes()[:2000])

def blank_crops(d):
    f = next(d.rglob('labels.geojson'))
    f.write_text(f.read_text().replace('"crop_id": 1', '"crop_id": 0'))

def forget_dates(d): next(d.rglob('timestamp.pkl')).write_bytes(pickle.dumps([]))
def hide_code(d): next(d.rglob('timestamp.pkl')).write_bytes(pickle.dumps(sys.exit))
def add_band(d): np.save(next(d.rglob('bands.npy')), np.zeros((1, 30, 30, 13), 'uint16'))

@pytest.mark.parametrize('damage, says', [
    (cut_planet, 'sr.tif'),
    (blank_crops, 'blanked'),
    (forget_dates, 'bands.npy holds 1 images, .*timestamp.pkl 0 dates'),
    (hide_code, 'asks for sys.exit'),
    (add_band, r'not \(time, row, column, 12\)')])
def test_bad_input_is_named(tmp_path, damage, says):
    d = write_scene(tmp_path)
    damage(d)
    with pytest.raises(ValueError, match=says): sampled(d)

def test_a_second_sensor_of_another_zone_has_no_series():
    from types import SimpleNamespace
    from cropnb.prepare.seasons import second_year
    def images(name, crs): return SimpleNamespace(crs=crs, sensor=SimpleNamespace(name=name))
    both = [images('sentinel2', 'EPSG:32632'), images('planetscope', 'EPSG:32633')]
    tile = SimpleNamespace(first=both[0], second=both[1], images=both, root='x')
    with pytest.raises(ValueError, match='PlanetScope in EPSG:32633: reproject'):
        second_year(tile, None, None, 0, 'all', None)
