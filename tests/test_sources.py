"""Sources: DENETHOR's layouts, the authors' HDF5, BreizhCrops and its download, your own folder.
All made here, small."""
import errno, gzip, http.server, io, json, os, pickle, shutil, subprocess, sys
import tarfile, threading, zipfile
from datetime import datetime, timezone
import geopandas as gpd, h5py, numpy as np, pandas as pd, pytest, rasterio
from rasterio.transform import from_origin
from shapely import points
from shapely.geometry import Polygon, box
from conftest import root
from cropnb.cli import main
from cropnb.data import pairs, resolve, series, split
from cropnb.downstream import training
from cropnb.engine.recipes import recipe
from cropnb.engine.records import Run, result
from cropnb.prepare import seasons
from cropnb.prepare.fields import open_tile, part_of
from cropnb.pretrain import encoder, encoders
from cropnb.sources import breizhcrops
from cropnb.sources.own import template

r = recipe('smoke')

@pytest.fixture(scope='module')
def twin(tmp_path_factory):
    "The smallest twin, as a folder of files"
    old = os.environ.get('CROPNB_RUNS')
    os.environ['CROPNB_RUNS'] = str(tmp_path_factory.mktemp('runs'))
    yield resolve('twin', 'smoke', 0).get()
    if old is None:
        os.environ.pop('CROPNB_RUNS')
    else:
        os.environ['CROPNB_RUNS'] = old

def smoke():
    "The smallest twin, as a run"
    return resolve('twin', 'smoke', 0)

def h5(path):
    "All arrays of a file"
    with h5py.File(path) as h:
        return {k: v[:] for k,v in h.items()}

def pairs_of(data, **changes):
    "The arrays of a folder's pairs"
    return h5(pairs(data, r|changes, 0).get()/'pairs.h5')

def series_of(task, data, part='train', **changes):
    "The arrays of a part of a task"
    return h5(series(task, data, r|changes, 0).get()/f'{part}.h5')

def assert_same(a, b, but=()):
    "The same arrays under the same names, except those named in `but`"
    assert a.keys()==b.keys()
    for k in a.keys()-set(but):
        assert (a[k]==b[k]).all(), k

def truncate(path, n=3000):
    "Keep the first bytes"
    path.write_bytes(path.read_bytes()[:n])

# ---------------------------------------------------------------- DENETHOR
def find_one(folder, pattern):
    return next(folder.rglob(pattern))

def bands(d): return find_one(d, '*_train_*/**/bands.npy')
def clouds(d): return find_one(d, '*_train_*/**/clp.npy')
def bbox(d): return find_one(d, '*_train_*/**/bbox.pkl')
def timestamps(d): return find_one(d, '*_train_*/**/timestamp.pkl')
def labels(d): return find_one(d, '*_train_labels/**/labels.geojson')
def planet_days(d): return sorted(d.rglob('*_train_source_planet/*/sr.tif'))
def day(d): return planet_days(d)[2]

def write_layout_b(twin, b):
    "As first delivered: BANDS.npy beside gzipped pickles, PF-SR/<date>.tif, today's label files"
    s2 = b/'s2-utm-33N-18E-242N-2018'
    ps = b/'33N'/'18E-242N'/'PF-SR'
    (s2/'data').mkdir(parents=True)
    ps.mkdir(parents=True)
    source = find_one(twin, '*_train_source_sentinel_2*/**/bands.npy').parent
    shutil.copy(source/'bands.npy', s2/'data'/'BANDS.npy')
    shutil.copy(source/'clp.npy', s2/'data'/'CLP.npy')
    for name in ('bbox.pkl', 'timestamp.pkl'):
        (s2/f'{name}.gz').write_bytes(gzip.compress((source/name).read_bytes()))
    for file in planet_days(twin):
        date = file.parent.name[-10:].replace('_', '-')
        shutil.copy(file, ps/f'{date}.tif')
    shutil.copy(labels(twin), b/'br-18E-242N-crop-labels-train-2018.geojson')

def test_layouts_b_and_c_give_the_same_pairs(twin, tmp_path, fresh_runs):
    write_layout_b(twin, tmp_path/'b')
    shutil.copytree(twin, tmp_path/'a')
    a,b = (pairs_of(resolve(str(tmp_path/k))) for k in 'ab')
    assert_same(a, b)

def test_clear_pairs_and_series(twin, tmp_path, fresh_runs):
    "Cloud probability travels with the data, and `clear` uses it"
    d = smoke()
    assert pairs_of(d)['cloud'].max()>200
    assert pairs_of(d, clouds='clear')['cloud'].max()<=102
    assert result(pairs(d, r|dict(clouds='clear'), 0))['fewer']
    every = series_of(1, d)
    clear = series_of(1, d, clouds='clear')
    assert every['mask'].all()
    assert (every['cloud']>102).any()
    assert ((clear['cloud']<=102)==(clear['mask']>0)).all()
    assert clear['mask'].any(1).all()

    e = tmp_path/'e'
    shutil.copytree(twin, e)
    for file in e.rglob('clp.npy'): file.unlink()
    with pytest.raises(ValueError, match='needs cloud probabilities'):
        pairs_of(resolve(str(e)), clouds='clear')

def test_blocks(twin, fresh_runs):
    "Every field in one part, and no square of 300 m in two"
    d = smoke()
    fields = open_tile(d.get()).fields('EPSG:32633')
    done = split(d, 'train', r|dict(block=300), 0).get()
    parts = {p: part_of(done, p) for p in ('pretrain', 'train', 'val')}
    assert sorted(sum(parts.values(), []))==sorted(fields.field_id)

    def squares(part):
        centres = fields[fields.field_id.isin(parts[part])].centroid
        return set(zip(centres.x//300, centres.y//300))

    assert not squares('pretrain') & squares('val')
    assert not squares('pretrain') & squares('train')

def test_buffer(twin, fresh_runs):
    "With a buffer of 20 m, no pair lies closer to the border of its field"
    d = smoke()
    tile = open_tile(d.get())
    fields = tile.fields('EPSG:32633').set_index('field_id').geometry
    every,inner = (pairs_of(d, buffer=metres) for metres in (0, 20))
    xy = [tile.first.transform*(col+.5, row+.5) for col,row in zip(inner['col'], inner['row'])]
    found = zip(inner['field_id'], points(xy))
    assert min(fields[i].boundary.distance(point) for i,point in found)>=19.9
    assert len(every['row'])==len(inner['row'])

def test_manifest(twin, fresh_runs):
    done = split(smoke(), 'train', r, 0).get()
    manifest = json.loads((done/'split.json').read_text())
    assert len(manifest['hash'])==12
    assert manifest['stratify'] is True
    assert sum(manifest['counts']['val'].values())==len(manifest['parts']['val'])
    assert manifest['classes'][0]=='Wheat'

def test_card(twin, fresh_runs):
    p = pairs(smoke(), r, 0).get()
    card = json.loads((p/'pairs.card.json').read_text())
    with h5py.File(p/'pairs.h5') as h:
        assert card==json.loads(h.attrs['card'])
    assert card['recipe']['data']==smoke().id
    assert card['source']=='SIMULATED twin:smoke'
    assert {'licence', 'split', 'days', 'recipe', 'level', 'sentinel2'}<=card.keys()

def broken(twin, tmp_path, change):
    "A copy of the twin with a change"
    d = tmp_path/'d'
    shutil.copytree(twin, d)
    change(d)
    return resolve(str(d))

def edit_labels(change):
    "Changes the table of the parcels"
    def go(d):
        path = labels(d)
        change(gpd.read_file(path)).to_file(path, driver='GeoJSON')
    return go

def save_bands(bands_of_date, dtype):
    "Puts another array in the place of the bands"
    def go(d):
        np.save(bands(d), np.zeros((8, 90, 90, bands_of_date), dtype))
    return go

def one_date_eight_times(d):
    dates = [datetime(2018, 1, 1, tzinfo=timezone.utc)]*8
    timestamps(d).write_bytes(pickle.dumps(dates))

def day_twice(d):
    folder = day(d).parent
    shutil.copytree(folder, folder.with_name(f'again_{folder.name}'))

def clouds_as_floats(d):
    np.save(clouds(d), np.zeros((8, 90, 90, 1), 'float32'))

def no_planet(d):
    for file in planet_days(d): file.unlink()

@pytest.mark.parametrize('change,error,says', [
    (lambda d: truncate(day(d)), ValueError, r'sr.tif cannot be read|sr.tif'),
    (lambda d: truncate(bands(d), 5000), ValueError, 'bands.npy cannot be read'),
    (save_bands(12, 'float32'), ValueError, 'holds float32, not integers'),
    (save_bands(11, 'uint16'), ValueError, r'not \(time, row, column, 12\)'),
    (one_date_eight_times, ValueError, 'a date appears twice, such as 2018-01-01'),
    (day_twice, ValueError, 'have the same date'),
    (edit_labels(lambda g: g.assign(geometry=g.translate(50_000))), ValueError,
        'no field lies in the Sentinel-2 image'),
    (edit_labels(lambda g: g.assign(crop_id=11)), ValueError, r'crop_id \[11\] is not in 1..9'),
    (edit_labels(lambda g: g.drop(columns='crop_id')), ValueError, 'has no column crop_id'),
    (edit_labels(lambda g: g.iloc[:2]), ValueError, 'leave none for'),
    (clouds_as_floats, ValueError, 'clp.npy has shape'),
    (lambda d: labels(d).write_text('{'), ValueError, 'labels.geojson cannot be read as parcels'),
    (lambda d: bbox(d).write_bytes(b'garbage'), ValueError, 'bbox.pkl is refused'),
    (no_planet, FileNotFoundError, 'nothing matches'),
    (lambda d: bbox(d).write_bytes(pickle.dumps(shutil.rmtree)), ValueError,
        'asks for shutil.rmtree')])
def test_bad_denethor(twin, tmp_path, fresh_runs, change, error, says):
    "The error names the file; no half-written output stays"
    d = broken(twin, tmp_path, change)
    with pytest.raises(error, match=says):
        pairs(d, r, 0).get()
    written = list(fresh_runs.glob('pairs/*/pairs.h5'))
    finished = list(fresh_runs.glob('pairs/*/result.json'))
    assert not written or not finished

def test_an_empty_day_gives_no_pairs_and_says_so(twin, tmp_path, fresh_runs):
    def blank(d):
        with rasterio.open(day(d), 'r+') as f:
            f.write(np.zeros((4, *f.shape), 'uint16'))
    p = result(pairs(broken(twin, tmp_path, blank), r, 0).get())
    assert list(p['fewer'].values())==[0]
    assert p['pairs']==60*7
    assert p['passed']>1000

def test_invalid_geometry_is_repaired_aloud(twin, tmp_path, fresh_runs, capfd):
    def cross_the_first(g):
        x0,y0,x1,y1 = g.geometry.iloc[0].bounds
        bow = Polygon([(x0, y0), (x1, y1), (x1, y0), (x0, y1)])
        return g.assign(geometry=[bow, *g.geometry.iloc[1:]])
    d = broken(twin, tmp_path, edit_labels(cross_the_first))
    pairs(d, r, 0).get()
    assert 'labels.geojson: 1 invalid geometries were repaired' in capfd.readouterr().out

def test_a_class_without_validation_fields(twin, tmp_path, fresh_runs):
    def one_root_crop(g):
        others = g[g.crop_id==7].fid.iloc[1:]
        return g[~g.fid.isin(others)]
    d = broken(twin, tmp_path, edit_labels(one_root_crop))
    with pytest.raises(ValueError, match='no sample of Root Crops in the part'):
        series(1, d, r, 0).get()

def test_fewer_samples_than_wanted_is_said(twin, fresh_runs, capfd):
    series(1, smoke(), r|dict(val_per_class=100_000), 0).get()
    assert 'val: fewer than the 100000 samples wanted' in capfd.readouterr().out

def test_full_disk(fresh_runs):
    def make(folder, recipe):
        (folder/'half').write_text('x')
        raise OSError(errno.ENOSPC, 'No space left on device')
    run = Run('x', {}, make)
    says = r'the disk is full \(No space left on device\): make room'
    with pytest.raises(OSError, match=says) as e:
        run.get()
    assert e.value.filename
    assert not run.done

# ---------------------------------------------------------------- the authors' HDF5
def write_published(d, aligned=True, n=144*30):
    "Pairs and the series of tasks 1 and 2 with random values, PlanetScope close to Sentinel-2"
    rng = np.random.default_rng(0)
    d.mkdir()
    x = rng.integers(300, 1400, (n, 12))
    noise = rng.integers(-30, 30, (n, 4, 9))
    ps = np.repeat(x[:,[1,2,3,7],None], 9, 2)+noise
    if not aligned:
        ps = ps.reshape(n, 9, 4).transpose(0, 2, 1)[rng.permutation(n)]
    with h5py.File(d/'pretraining_point2.h5', 'w') as h:
        h['sentinel2_data'] = x
        h['planet_data'] = ps
    for part in ('train', 'val', 'validation_train', 'validation_val'):
        with h5py.File(d/f'{part}_sentinel_ts.hdf5', 'w') as h:
            h['time_series'] = rng.integers(300, 4000, (90, 144, 12))
            h['crop_labels'] = (np.arange(90)%9+1)[:,None]
    return resolve(str(d))

def test_published_files_are_taken_as_they_are(tmp_path, fresh_runs, capfd):
    d = write_published(tmp_path/'z')
    p = pairs(d, r, 0).get()
    assert result(p)['pairs']==144*30
    assert 'the pairs are aligned' in capfd.readouterr().out
    s = series_of(2, d, 'val')
    assert s['time_series'].shape==(90, 144, 12)
    assert (s['field_id']==-1).all()
    assert sorted(set(s['crop_labels'][:,0]))==list(range(1, 10))

    bimodal = encoders(p, r, 0)['bimodal 0.2']
    t = result(training(series(1, d, r, 0), bimodal, 1, 'lstm', 0, r, 0).get())
    assert np.isnan(t['field_accuracy'])
    assert 0<=t['accuracy']<=1
    with pytest.raises(ValueError, match='names no dates'):
        encoder(p, r|dict(pairing='same_date'), 0).get()

def test_data_notebook_on_published_files(tmp_path, fresh_runs):
    "Pairs and series without tiles: the notebook runs, and leaves out what needs fields"
    d = write_published(tmp_path/'z')
    out = tmp_path/'out.ipynb'
    parameters = ['-p', 'data', str(d.path), '-p', 'profile', 'smoke', '-y', 'tasks: [1, 2]']
    command = [sys.executable, '-m', 'papermill', 'nbs/00_data.ipynb', str(out), *parameters]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode==0, done.stderr[-1500:]
    assert 'the pairs are aligned' in out.read_text()

def test_misaligned_published_pairs_are_called_so(tmp_path, fresh_runs, capfd):
    d = write_published(tmp_path/'z', aligned=False)
    pairs(d, r, 0).get()
    assert 'NOT aligned' in capfd.readouterr().out

def test_published_files_of_another_shape(tmp_path, fresh_runs):
    d = write_published(tmp_path/'z')
    with h5py.File(d.path/'pretraining_point2.h5', 'w') as h:
        h['sentinel2_data'] = np.ones((10, 13))
    says = r'pretraining_point2.h5: sentinel2_data has shape \(10, 13\), not \(any, 12\)'
    with pytest.raises(ValueError, match=says):
        pairs(d, r, 0).get()

def test_published_reflectances_are_refused(tmp_path, fresh_runs):
    d = write_published(tmp_path/'z')
    with h5py.File(d.path/'pretraining_point2.h5', 'r+') as h:
        x = h['sentinel2_data'][:]/1e4
        del h['sentinel2_data']
        h['sentinel2_data'] = x
    with pytest.raises(ValueError, match='sentinel2_data holds NaN, or reflectances in 0..1'):
        pairs(resolve(str(d.path)), r, 0).get()

# ---------------------------------------------------------------- BreizhCrops
class Cutting(http.server.BaseHTTPRequestHandler):
    "A host that cuts each answer after `most` bytes, knows ranges, and keeps a list of requests"
    files, asked, most = {}, [], 1<<40

    def log_message(self, *a): pass

    def do_GET(self):
        body = self.files.get(self.path.lstrip('/'))
        wanted = self.headers.get('Range') or 'bytes=0-'
        had = int(wanted[len('bytes='):-1])
        self.asked.append((self.path, had))
        if body is None:
            self.send_response(404)
            self.end_headers()
            return
        self.send_response(206 if had else 200)
        self.send_header('Content-Length', str(len(body)-had))
        if had:
            self.send_header('Content-Range', f'bytes {had}-{len(body)-1}/{len(body)}')
        self.end_headers()
        self.wfile.write(body[had:had+self.most])

@pytest.fixture
def host():
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Cutting)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Cutting.asked, Cutting.most, Cutting.files = [], 1<<40, {}
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()

def test_download_goes_on_where_it_was_cut(host, tmp_path):
    body = np.random.default_rng(0).bytes(5_000_000)
    Cutting.files = {'a.bin': body}
    Cutting.most = 2_000_000
    path = tmp_path/'a.bin'
    part = tmp_path/'a.bin.part'
    for had in (0, 2_000_000):
        with pytest.raises(Exception):
            breizhcrops.download(f'{host}/a.bin', path)
        assert Cutting.asked[-1]==('/a.bin', had)
        assert not path.exists()
        assert part.stat().st_size==had+2_000_000
    breizhcrops.download(f'{host}/a.bin', path)
    assert path.read_bytes()==body
    assert Cutting.asked[-1][1]==4_000_000

    n = len(Cutting.asked)
    breizhcrops.download(f'{host}/a.bin', path)
    assert len(Cutting.asked)==n                   # it is there: nothing is asked

def as_zip(h5_file, paths):
    "A region's HDF5 as the zip of one CSV a parcel, its columns in the order of the alphabet"
    out = io.BytesIO()
    with h5py.File(h5_file) as h, zipfile.ZipFile(out, 'w') as z:
        for path in paths:
            table = pd.DataFrame(h[path][:], columns=breizhcrops.column_names)
            table['doa'] = pd.to_datetime(table.doa.astype('int64'))
            z.writestr(path, table[sorted(table)].to_csv())
    return out.getvalue()

def test_breizhcrops_from_download_to_task(host, twin, tmp_path, fresh_runs):
    "2018 as zipped CSV, from a local host, gives the task that the twin's HDF5 gives"
    source = breizhcrops.find(twin)
    l1c = source/'2018/L1C'
    paths = pd.read_csv(l1c/'frh01.csv').path
    names = ('classmapping.csv', 'codes.csv', '2018/L1C/frh01.csv')
    Cutting.files = {name: (source/name).read_bytes() for name in names}
    Cutting.files['2018/L1C/frh01.zip'] = as_zip(l1c/'frh01.h5', paths)
    breizhcrops.get(tmp_path/'bc', 2018, ['frh01'], base=host)
    shutil.copytree(source, tmp_path/'h5')
    a,b = (series_of(3, resolve(str(tmp_path/k))) for k in ('bc', 'h5'))
    assert_same(a, b)

def test_h5_archives_are_unpacked_safely(host, tmp_path):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode='w:gz') as f:
        evil = tarfile.TarInfo('../evil')
        evil.size = 1
        f.addfile(evil, io.BytesIO(b'x'))
    names = ('classmapping.csv', 'codes.csv', '2017/L1C/kermaux.csv')
    Cutting.files = {name: b'x' for name in names}
    Cutting.files['2017/L1C/kermaux.h5.tar.gz'] = archive.getvalue()
    with pytest.raises(tarfile.OutsideDestinationError):
        breizhcrops.get(tmp_path/'x', 2017, ['kermaux'], base=host)

def test_alphabetical_columns_are_recognised(twin, tmp_path, fresh_runs):
    for k in 'de': shutil.copytree(breizhcrops.find(twin), tmp_path/k)
    names = breizhcrops.column_names
    alphabetical = [names.index(name) for name in sorted(names[:13])+names[13:]]
    l1c = tmp_path/'d/2018/L1C'
    with h5py.File(l1c/'frh01.h5', 'r+') as h:
        for path in pd.read_csv(l1c/'frh01.csv').path:
            h[path][:] = h[path][:][:,alphabetical]
    d,e = (series_of(3, resolve(str(tmp_path/k)), 'val') for k in 'de')
    assert (d['time_series']==e['time_series']).all()

def test_a_parcel_in_two_regions_counts_once(twin, tmp_path, fresh_runs, capfd):
    b = tmp_path/'b'
    shutil.copytree(breizhcrops.find(twin), b)
    for suffix in ('csv', 'h5'):
        shutil.copy(b/f'2018/L1C/frh01.{suffix}', b/f'2018/L1C/frh02.{suffix}')
    train,val = (series_of(3, resolve(str(b)), part) for part in ('train', 'val'))
    assert not set(train['field_id']) & set(val['field_id'])
    assert 'appear in two regions' in capfd.readouterr().out

def test_truncated_hdf5_is_named(tmp_path, twin, fresh_runs):
    d = write_published(tmp_path/'z')
    truncate(d.path/'pretraining_point2.h5')
    with pytest.raises(ValueError, match='pretraining_point2.h5 cannot be read as HDF5'):
        pairs(d, r, 0).get()

    b = tmp_path/'b'
    shutil.copytree(breizhcrops.find(twin), b)
    truncate(b/'2018/L1C/frh01.h5')
    with pytest.raises(ValueError, match='frh01.h5 cannot be read'):
        series(3, resolve(str(b)), r, 0).get()

# ---------------------------------------------------------------- your own folder
crops3 = ('barley', 'maize', 'wheat')
values3 = np.array([500, 900, 1500])              # the value of each crop in B01
dates3 = ('20210410', '20210615', '20210820')
planet4 = ['blue', 'green', 'red', 'nir']
planet8 = ['coastal', 'blue', 'green_i', 'green', 'yellow', 'red', 'red_edge', 'nir']
bands13 = 'B1 B2 B3 B4 B5 B6 B7 B8 B8A B9 B10 B11 B12'.split()
bands12 = [band for band in bands13 if band!='B10']
west, north = 600_000, 5_400_000

def write_image(path, a, pixel, crs='EPSG:32632', names=()):
    "An array of (band, row, column) as a GeoTIFF from the scene's north-west corner"
    count,height,width = a.shape
    with rasterio.open(path, 'w', driver='GTiff', count=count, height=height, width=width,
                       dtype=a.dtype.name, crs=crs,
                       transform=from_origin(west, north, pixel, pixel)) as f:
        f.write(a)
        for i,name in enumerate(names, 1): f.set_band_description(i, name)

def write_own_parcels(path, crop, size):
    "A grid of square fields; `crop` (row, column) says which"
    kinds, squares = [], []
    for (i,j),c in np.ndenumerate(crop):
        kinds.append(crops3[c])
        left,top = west+size*j, north-size*i
        squares.append(box(left, top-size, left+size, top))
    fields = gpd.GeoDataFrame(dict(kind=kinds), geometry=squares, crs='EPSG:32632')
    fields.to_crs(4326).to_file(path)

def write_own_toml(path, offset, planet):
    text = template.replace('class = "crop"', 'class = "kind"')
    text = text.replace('clouds = ""', 'clouds = "clouds/*.tif"')
    text = text.replace('# cloud_max = 100', 'cloud_max = 100')
    text = text.replace('offset = 0 ', f'offset = {offset} ', 1)
    text = text.replace(json.dumps(planet4), json.dumps(planet))
    path.write_text(text)

def own_scene(d, offset=0, superdove=False, n=40, names=True, ps_crs='EPSG:32632'):
    """Three dates of `n` x `n` pixels, fields of 4 x 4 pixels of three crops.

    Sentinel-2 has 13 bands, PlanetScope 4, or SuperDove's 8. Each value is the crop's, plus a
    number that tells the band, plus noise."""
    for sub in ('s2', 'ps', 'clouds'): (d/sub).mkdir(parents=True)
    rng = np.random.default_rng(0)
    fields = np.arange(n//4)
    crop = (fields[:,None]*3+fields)%3
    write_own_parcels(d/'parcels.gpkg', crop, 40)
    value = values3[np.kron(crop, np.ones((4, 4), int))]

    planet = planet8 if superdove else planet4
    m = n*10//3+2
    under = np.minimum((np.arange(m)*3+1)//10, n-1)              # the 10 m pixel under each of 3 m
    fine = value[under][:,under]
    for i,date in enumerate(dates3):
        image = value+100*np.arange(13)[:,None,None]+rng.integers(0, 50, (13, n, n))-offset
        image = image.astype('uint16')
        write_image(d/f's2/T32_{date}.tif', image, 10, names=bands13 if names else ())
        cloud = np.full((1, n, n), 100 if i==1 else 0, 'uint8')
        write_image(d/f'clouds/cld_{date}.tif', cloud, 10)
        noise = rng.integers(0, 20, (len(planet), m, m))
        image = fine+1000*np.arange(1, len(planet)+1)[:,None,None]+noise
        write_image(d/f'ps/{date}_ps.tif', image.astype('uint16'), 3, ps_crs)
    write_own_toml(d/'scene.toml', offset, planet)
    return d

def edit_toml(d, old, new):
    "Replace a text that is there"
    path = d/'scene.toml'
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))

@pytest.mark.parametrize('offset,superdove', [(0, False), (-1000, True)])
def test_own_scene_to_pairs_and_series(tmp_path, fresh_runs, offset, superdove):
    d = resolve(str(own_scene(tmp_path/'o', offset, superdove)))
    p = pairs_of(d)
    b01 = p['sentinel2_data'][:,0].astype(int)                   # the crop's value and noise
    b12 = p['sentinel2_data'][:,11]                              # the 13th of the file: no B10
    np.testing.assert_allclose(b12-b01, 1200, atol=50)
    centre = p['planet_data'][:,:,4]                             # the same field, bands by name
    places = [2, 4, 6, 8] if superdove else [1, 2, 3, 4]
    want = b01[:,None]+1000*np.array(places)
    np.testing.assert_allclose(centre-want, 0, atol=60)

    s = series(1, d, r|dict(train_per_class=8, val_per_class=4), 0).get()
    train = h5(s/'train.h5')
    assert train['time_series'].shape[1:]==(3, 12)
    assert sorted(set(train['crop_labels'][:,0]))==[1, 2, 3]
    assert (train['cloud']==[0, 255, 0]).all()
    with h5py.File(s/'train.h5') as h:
        assert json.loads(h.attrs['classes'])==list(crops3)
    assert result(pairs(d, r, 0))['source']=='My fields'

def make_stack(d):
    "The scene's Sentinel-2 images as one array, described in scene.toml"
    files = sorted((d/'s2').glob('*.tif'))
    images = []
    for file in files:
        with rasterio.open(file) as f:
            images.append(f.read().transpose(1, 2, 0))
            names,bounds = list(f.descriptions),list(f.bounds)
    np.save(d/'s2'/'bands.npy', np.stack(images))
    keys = dict(stack='s2/bands.npy', bands=names, bounds=bounds, crs='EPSG:32632', clouds='',
                dates=['2021-04-10', '2021-06-15', '2021-08-20'])
    table = ''.join(f'{k} = {json.dumps(v)}\n' for k,v in keys.items())
    head,rest = (d/'scene.toml').read_text().split('[sentinel2]')
    _,planet = rest.split('[planetscope]')
    (d/'scene.toml').write_text(f'{head}[sentinel2]\n{table}[planetscope]{planet}')

def test_a_stack_is_read_like_images(tmp_path, fresh_runs):
    a,b = own_scene(tmp_path/'a'), own_scene(tmp_path/'b')
    make_stack(b)
    assert_same(pairs_of(resolve(str(a))), pairs_of(resolve(str(b))), but=['cloud'])

def test_check_and_template(tmp_path, capsys):
    own_scene(tmp_path/'o')
    main(['check', str(tmp_path/'o')])
    out = capsys.readouterr().out
    for text in ('3 dates', '2021-04-10', 'EPSG:32632', 'barley', 'pretrain', 'cloud',
                 '3 of 3 dates have a PlanetScope image'):
        assert text in out, out

    new = str(tmp_path/'n')
    main(['template', new])
    assert (tmp_path/'n'/'scene.toml').read_text()==template
    with pytest.raises(SystemExit, match='there already'):
        main(['template', new])
    says = 'nothing matches|is missing|No such|no column|cannot be read'
    with pytest.raises(SystemExit, match=says):
        main(['check', new])

def test_clouds_up_to_100_that_nobody_declared(tmp_path, capsys):
    own_scene(tmp_path/'o')
    main(['check', str(tmp_path/'o')])
    assert 'set cloud_max' not in capsys.readouterr().out
    edit_toml(tmp_path/'o', 'cloud_max = 100', '# cloud_max = 100')
    main(['check', str(tmp_path/'o')])
    assert 'Sentinel-2 is above 100: where 100 is certain' in capsys.readouterr().out

def test_a_byte_order_mark_is_no_part_of_the_name(tmp_path):
    (tmp_path/'scene.toml').write_text('name = "Fields"', encoding='utf-8-sig')
    assert resolve(str(tmp_path)).name=='Fields'

def test_what_is_read_is_part_of_the_name(tmp_path, fresh_runs):
    "Clouds, classes beside a .shp, one label in a file: another run"
    d = own_scene(tmp_path/'o')
    def name(): return pairs(resolve(str(d)), r, 0).id
    gpd.read_file(d/'parcels.gpkg').to_file(d/'parcels.shp')
    edit_toml(d, 'parcels.gpkg', 'parcels.shp')
    first = name()

    fields = gpd.read_file(d/'parcels.shp')
    fields['kind'] = fields.kind.to_numpy()[::-1]
    fields.to_file(d/'parcels.shp')
    turned = name()
    assert turned!=first

    with rasterio.open(d/'clouds/cld_20210410.tif', 'r+') as f:
        f.write(np.full((1, *f.shape), 50, 'uint8'))
    cloudier = name()
    assert cloudier!=turned

    (d/'notes.txt').write_text('x')
    assert name()==cloudier

def test_bands_are_found_by_name_in_every_file(tmp_path, fresh_runs):
    a,b = own_scene(tmp_path/'a'), own_scene(tmp_path/'b')
    path = b/'s2/T32_20210615.tif'
    with rasterio.open(path) as f:
        image = f.read()
    path.unlink()
    write_image(path, image[::-1], 10, names=bands13[::-1])
    assert_same(pairs_of(resolve(str(a))), pairs_of(resolve(str(b))))

def test_a_pixel_never_seen_is_replaced(tmp_path, fresh_runs):
    "Half of the image is empty on every date: the balanced draw fills up from the other half"
    d = own_scene(tmp_path/'o', n=80)
    for path in (d/'s2').glob('*.tif'):
        with rasterio.open(path, 'r+') as f:
            image = f.read()
            image[:,:,:40] = 0
            f.write(image)
    s = series_of(1, resolve(str(d)), train_per_class=30, val_per_class=15)
    assert np.bincount(s['crop_labels'][:,0])[1:].tolist()==[30, 30, 30]
    assert s['col'].min()>=40
    assert s['mask'].any(1).all()
    assert len({*zip(s['row'].tolist(), s['col'].tolist())})==90

def test_series_go_on_at_the_date_where_they_stopped(twin, tmp_path, fresh_runs, monkeypatch):
    "What a killed run left is used, and the bytes are those of a run that was left alone"
    def files_of(run): return [(run.path/name).read_bytes() for name in ('train.h5', 'val.h5')]
    run = series(1, smoke(), r, 0)
    run.get()
    whole = files_of(run)
    shutil.rmtree(run.path)

    asked, cloud_at = [], seasons.cloud_at
    def killed_at_the_fifth(images, i, *args):
        asked.append(i)
        if len(asked)==5: raise KeyboardInterrupt
        return cloud_at(images, i, *args)
    monkeypatch.setattr(seasons, 'cloud_at', killed_at_the_fifth)

    with pytest.raises(KeyboardInterrupt):
        run.get()
    assert not run.done
    assert asked==[0, 1, 2, 3, 4]
    run.get()
    assert asked==[0, 1, 2, 3, 4]+[4, 5, 6, 7]+list(range(8))
    assert files_of(run)==whole

def test_linked_archives_are_found(twin, tmp_path, fresh_runs):
    d = tmp_path/'d'
    d.mkdir()
    for folder in twin.iterdir():
        if folder.is_dir(): (d/folder.name).symlink_to(folder)
    assert pairs(resolve(str(d)), r, 0).get().exists()
    assert series(3, resolve(str(d)), r, 0).get().exists()

# ---------------------------------------------------------------- other sensors
def only_sentinel2(d):
    "Take the second sensor out of scene.toml"
    path = d/'scene.toml'
    path.write_text(path.read_text().partition('[planetscope]')[0])

def other_second(d, table):
    "Another second sensor in scene.toml"
    only_sentinel2(d)
    path = d/'scene.toml'
    path.write_text(path.read_text()+table)

def write_second(d, sub, bands, pixel, days=dates3, image=None):
    "Images of a second sensor that follow the fields: value + 1000 x band, or `image` of it"
    (d/sub).mkdir()
    with rasterio.open(next((d/'s2').glob('*.tif'))) as f: value,n = f.read(1).astype(int),f.height
    m = n*10//pixel
    under = np.minimum((np.arange(m)*pixel+pixel//2)//10, n-1)
    coarse = value[under][:,under]
    a = np.stack([coarse+1000*k for k in range(1, bands+1)])
    a = image(a) if image else a.astype('uint16')
    for day in days: write_image(d/sub/f'{day}.tif', a, pixel)

landsat7 = '[landsat]\nfiles = "l8/*.tif"\nmax_days = 3\n'
radar = '[sentinel1]\nfiles = "s1/*.tif"\nbands = ["VH", "VV"]\n'
of_own = ('[second]\nname = "drone"\nfiles = "own/*.tif"\nbands = ["red", "thermal"]\n'
          'use = ["thermal", "red"]\nwindow = 5\n')

def in_dB(a): return (-25+a[:2]/1000).astype('float32')

def test_sentinel2_alone(tmp_path, fresh_runs, capsys):
    a,b = own_scene(tmp_path/'a'), own_scene(tmp_path/'b')
    only_sentinel2(b)
    one = pairs_of(resolve(str(b)))
    assert not {'planet_data'} & one.keys()
    assert one['sentinel2_data'].shape==(180, 12)
    p = pairs(resolve(str(b)), r, 0).get()
    assert result(p)['alignment'] is None
    assert 'planetscope' not in json.loads((p/'pairs.card.json').read_text())
    with h5py.File(p/'pairs.h5') as h:
        assert 'ps_mean' not in h.attrs
        assert [s['name'] for s in json.loads(h.attrs['sensors'])]==['sentinel2']
    changes = dict(train_per_class=8, val_per_class=4)
    assert_same(*(series_of(1, resolve(str(d)), **changes) for d in (a, b)))
    main(['check', str(b)])
    assert 'One sensor alone' in capsys.readouterr().out

def test_ten_bands_that_are_named(tmp_path, fresh_runs, capsys):
    d = own_scene(tmp_path/'o')
    ten = [band for band in bands12 if band not in ('B1', 'B9')]
    edit_toml(d, 'use = []', f'use = {json.dumps(ten[::-1])}')
    p = pairs_of(resolve(str(d)))
    assert p['sentinel2_data'].shape[1]==10
    every = own_scene(tmp_path/'e')
    twelve = pairs_of(resolve(str(every)))['sentinel2_data']
    assert (p['sentinel2_data']==twelve[:,[1,2,3,4,5,6,7,8,10,11]]).all()
    s = series(1, resolve(str(d)), r|dict(train_per_class=8, val_per_class=4), 0).get()
    with h5py.File(s/'train.h5') as h:
        assert h['time_series'].shape[2]==10
        assert json.loads(h.attrs['sensors'])[0]['bands'][-1]=='B12'
    main(['check', str(d)])
    assert 'Sentinel-2 lacks B01, B09' in capsys.readouterr().out

@pytest.mark.parametrize('table,sub,bands,pixel,image,want', [
    (landsat7, 'l8', 7, 30, None, ('landsat_data', 7, 1)),
    (radar, 's1', 2, 10, in_dB, ('sentinel1_data', 2, 1)),
    (of_own, 'own', 2, 5, None, ('drone_data', 2, 25))])
def test_other_second_sensors(tmp_path, fresh_runs, table, sub, bands, pixel, image, want):
    "Found by name, drawn by date within the tolerance, kept in their unit, judged by shared bands"
    d = own_scene(tmp_path/'o')
    days = ['20210412', '20210615', '20210901'] if sub=='l8' else dates3
    write_second(d, sub, bands, pixel, days, image)
    other_second(d, table)
    run = pairs(resolve(str(d)), r, 0)
    p = h5(run.get()/'pairs.h5')
    name,*shape = want
    assert p[name].shape[1:]==tuple(shape)
    about = result(run)
    assert about['unmatched']==(['2021-08-20'] if sub=='l8' else [])
    assert about['alignment']['aligned']-about['alignment']['shuffled']>.3
    assert ('bands' in about['alignment'])==(sub!='planetscope')
    with h5py.File(run.path/'pairs.h5') as h:
        assert len(h.attrs[f'{name[:-5]}_mean'])==bands
        _,second = json.loads(h.attrs['sensors'])
    assert second['window']**2==shape[1]
    if sub=='s1':
        assert second['unit']=='dB' and second['bands']==['VV', 'VH']
        dB = p[name]/100-100                         # VH is the first of the file, VV the second
        np.testing.assert_allclose(dB[:,0]-dB[:,1], 1, atol=.02)
    if sub=='own': assert second['bands']==['thermal', 'red']

def test_all_bands_of_superdove(tmp_path, fresh_runs):
    d = own_scene(tmp_path/'o', superdove=True)
    four = pairs_of(resolve(str(d)))['planet_data']
    path = d/'scene.toml'
    head,rest = path.read_text().split('[planetscope]')
    path.write_text(head+'[planetscope]'+rest.replace('use = []', f'use = {json.dumps(planet8)}'))
    eight = pairs_of(resolve(str(d)))['planet_data']
    assert eight.shape[1:]==(8, 9)
    assert (eight[:,[1,3,5,7]]==four).all()

def test_series_with_a_second_sensor(tmp_path, fresh_runs):
    "It comes along where it is asked for, and changes nothing else"
    d = own_scene(tmp_path/'o')
    (d/'ps/20210615_ps.tif').unlink()
    changes = dict(train_per_class=8, val_per_class=4)
    one = series_of(1, resolve(str(d)), **changes)
    both = series_of(1, resolve(str(d)), second_series=True, **changes)
    assert both.keys()-one.keys()=={'planetscope_series', 'planetscope_mask'}
    assert_same(one, {k: both[k] for k in one})
    assert both['planetscope_series'].shape==(24, 3, 4, 9)
    mask = both['planetscope_mask']>0
    assert not mask[:,1].any()
    assert mask[:,0].mean()>.7
    b01 = both['time_series'][:,0,0].astype(int)
    centre = both['planetscope_series'][:,0,0,4].astype(int)
    np.testing.assert_allclose((centre-b01)[mask[:,0]], 1000, atol=60)

def test_a_wide_image_is_read_in_strips(tmp_path, fresh_runs, monkeypatch):
    "Pairs and series are those of an image that is read whole"
    from cropnb.prepare import fields as prepared, pairs as paired
    d = own_scene(tmp_path/'o')
    def drawn(): return [pairs_of(resolve(str(d)), clouds='clear'), series_of(1, resolve(str(d)))]
    whole = drawn()
    def thin(shape, *_): return [slice(i, min(i+7, shape[0])) for i in range(0, shape[0], 7)]
    class Strip(paired.OneDate):
        def __init__(self, images, i): super().__init__(images, i, 0)
    for module in (prepared, paired): monkeypatch.setattr(module, 'strips', thin)
    monkeypatch.setattr(paired, 'OneDate', Strip)
    monkeypatch.setenv('CROPNB_RUNS', str(tmp_path/'again'))
    for a,b in zip(whole, drawn()): assert_same(a, b)

# ---------------------------------------------------------------- parcels
def edit_own_parcels(d, change, name='parcels.gpkg'):
    g = change(gpd.read_file(d/'parcels.gpkg'))
    if name.endswith('parquet'): g.to_parquet(d/name)
    else: g.to_file(d/name)
    if name!='parcels.gpkg': edit_toml(d, 'file = "parcels.gpkg"', f'file = "{name}"')

def test_parcels_without_a_crop_are_kept_and_counted(tmp_path, fresh_runs, capsys):
    "In GeoParquet"
    d = own_scene(tmp_path/'o')
    def forget(g): return g.assign(kind=g.kind.where(g.index%3>0))
    edit_own_parcels(d, forget, 'parcels.parquet')
    t = open_tile(d)
    assert len(t.fields())==66
    assert len(t.unlabelled('EPSG:32632'))==34
    assert not set(t.fields().field_id) & set(t.unlabelled().field_id)
    main(['check', str(d)])
    assert '34 parcels without a crop: they are kept' in capsys.readouterr().out
    p = pairs(resolve(str(d)), r, 0).get()
    card = json.loads((p/'pairs.card.json').read_text())
    assert card['parcels_left_out']==dict(without_crop=34)

def test_crops_are_renamed_and_merged(tmp_path, fresh_runs):
    d = own_scene(tmp_path/'o')
    edit_toml(d, '[parcels.classes]', '[parcels.classes]\nwheat = "cereal"\nbarley = "cereal"')
    t = open_tile(d)
    assert t.classes==('cereal', 'maize')
    assert np.bincount(t.fields().crop).tolist()==[0, 70, 30]

def test_a_raster_of_crops(tmp_path, fresh_runs, capsys):
    d = own_scene(tmp_path/'o')
    crop = (np.arange(10)[:,None]*3+np.arange(10))%3+1
    a = np.kron(crop, np.ones((4, 4), int)).astype('uint8')
    a[::8] = 0                                     # a path between fields
    a[39,39] = 9                                   # a patch of one pixel
    write_image(d/'crops.tif', a[None], 10)
    edit_toml(d, 'file = "parcels.gpkg"', 'file = "crops.tif"')
    edit_toml(d, '[parcels.classes]', '[parcels.classes]\n1 = "barley"\n2 = "maize"\n3 = "wheat"')
    with pytest.raises(ValueError, match='does not have: '):
        edit_toml(d, '3 = "wheat"', '3 = "wheat"\n7 = "hops"')
        open_tile(d).classes
    edit_toml(d, '7 = "hops"', '')
    t = open_tile(d)
    assert t.classes==crops3
    assert t.counts['too_small']==1
    assert len(pairs_of(resolve(str(d)))['row'])==180
    main(['check', str(d)])
    assert '1 patches of the raster' in capsys.readouterr().out

def test_open_scene_is_light_until_it_is_asked_for():
    code = ('import sys, cropnb; assert not {"geopandas", "torch"} & set(sys.modules); '
            'cropnb.open_scene; assert "geopandas" in sys.modules')
    subprocess.run([sys.executable, '-c', code], cwd=root, check=True)

# ---------------------------------------------------------------- orders and dates
plants = [300, 300, 600, 350, 900, 2800, 3700, 4000, 4200, 4100, 1800, 800]
ground = [500, 700, 1000, 1400, 1600, 1800, 1900, 2000, 2100, 2200, 2800, 2500]

def real_spectra(d, order=None):
    "Fields of plants and bare ground in place of made-up values; bands in another order"
    rng = np.random.default_rng(0)
    row,col = np.indices((40, 40))
    a = np.where((row//4+col//4)%2, *(np.array(k)[:,None,None] for k in (plants, ground)))
    for path in sorted((d/'s2').glob('*.tif')):
        noisy = (a*rng.uniform(.9, 1.1, a.shape)).astype('uint16')
        write_image(path, noisy if order is None else noisy[order], 10, names=bands12)
    only_sentinel2(d)

@pytest.mark.parametrize('order,says', [
    (None, ''),
    (list(range(11, -1, -1)), 'in reverse order'),
    ([0, 3, 2, 1, *range(4, 12)], 'with red and blue swapped')])
def test_an_order_that_plants_contradict(tmp_path, fresh_runs, order, says):
    d = own_scene(tmp_path/'o')
    real_spectra(d, order)
    def draw(): pairs_of(resolve(str(d)), pairs_per_date=400)
    def check(): main(['check', str(d)])
    def learn(): series_of(1, resolve(str(d)), train_per_class=100, val_per_class=20)
    for job in (draw, check, learn):
        if not says: job()
        else:
            with pytest.raises((ValueError, SystemExit), match=says): job()

def rename_to_april(d):
    (d/'s2/T32_20210410.tif').rename(d/'s2/T32_april.tif')

def other_coordinates(d):
    with rasterio.open(d/'s2/T32_20210615.tif', 'r+') as f:
        f.crs = 'EPSG:32633'

def copy(old, new):
    return lambda d: shutil.copy(d/old, d/new)

def toml(old, new):
    return lambda d: edit_toml(d, old, new)

@pytest.mark.parametrize('scene,change,says', [
    (dict(names=False), None, 'band B01, .* is missing'),
    (dict(ps_crs='EPSG:32633'), None, 'Sentinel-2 is in EPSG:32632, PlanetScope in EPSG:32633'),
    ({}, rename_to_april, 'T32_april.tif: no date in'),
    ({}, copy('s2/T32_20210410.tif', 's2/U32_20210410.tif'), 'have the same date'),
    ({}, lambda d: (d/'ps/20210615_ps.tif').write_bytes(b'II*\0nonsense'),
        '20210615_ps.tif cannot be read'),
    ({}, toml('leave_out = []', 'leave_out = ["Maize"]'),
        'leave_out names Maize, which column kind does not have'),
    ({}, toml('id = ""', 'id = "kind"'), 'column kind has to hold whole numbers'),
    ({}, toml(r"-?(\d\d)'", "'"), 'has 2 groups in brackets, not three'),
    ({}, toml(r"(\d{4})", "(("), 'is not a regular expression'),
    ({}, copy('clouds/cld_20210410.tif', 'clouds/x_20210410.tif'), 'have the same date'),
    ({}, other_coordinates, 'T32_20210615.tif lies on another grid, or in other coordinates'),
    ({}, toml('"kind"', '"crop"'), 'has no column crop: it has kind'),
    ({}, lambda d: write_second(d, 'l8', 7, 30, ['20230101']) or other_second(d, landsat7),
        'no Landsat day within 3 days of any Sentinel-2 acquisition'),
    ({}, lambda d: write_second(d, 's1', 2, 10, image=lambda a: 10**(in_dB(a)/10))
        or other_second(d, radar), 'holds linear power .*dB = 10 x log10'),
    ({}, lambda d: write_second(d, 's1', 2, 10, image=lambda a: (-100*in_dB(a)).astype('int16'))
        or other_second(d, radar), 'the middle value would be .* dB'),
    ({}, lambda d: write_second(d, 'own', 2, 5, image=in_dB) or other_second(d, of_own),
        'at most 0.0001.*unit = "dB" where it holds decibels')])
def test_bad_own_scene(tmp_path, fresh_runs, scene, change, says):
    d = own_scene(tmp_path/'o', **scene)
    if change is not None: change(d)
    with pytest.raises(ValueError, match=says):
        pairs(resolve(str(d)), r, 0).get()
