"Sources: DENETHOR's layouts, the authors' HDF5, BreizhCrops and its download, a folder of one's own. All made here, small."
import gzip, http.server, io, json, pickle, shutil, tarfile, threading, zipfile
from datetime import datetime, timezone
from pathlib import Path
import geopandas as gpd, h5py, numpy as np, pandas as pd, pytest, rasterio
from rasterio.transform import from_origin
from shapely.geometry import box
from cropnb.engine.records import Run, result
from cropnb.engine.recipes import recipe
from cropnb.data import resolve
from cropnb.data import alignment, pairs, series, split, verdict
from cropnb.prepare.fields import open_tile, part_of
from cropnb.sources import breizhcrops
from cropnb.sources.own import template, write_template

@pytest.fixture(scope='module')
def twin(tmp_path_factory):
    "The smallest twin, as a folder of files"
    import os
    old = os.environ.get('CROPNB_RUNS'); os.environ['CROPNB_RUNS'] = str(tmp_path_factory.mktemp('runs'))
    yield resolve('twin', 'smoke', 0).get()
    os.environ.pop('CROPNB_RUNS') if old is None else os.environ.update(CROPNB_RUNS=old)

r = recipe('smoke')
def h5(path): return {k: v[:] for k,v in h5py.File(path).items()}

# ---------------------------------------------------------------- DENETHOR
def test_layouts_b_and_c_give_the_same_pairs(twin, tmp_path, fresh_runs):
    "As first delivered: BANDS.npy beside gzipped pickles, PF-SR/<date>.tif, today's name of the labels"
    b = tmp_path/'b'; s2 = b/'s2-utm-33N-18E-242N-2018'; (s2/'data').mkdir(parents=True); ps = b/'33N'/'18E-242N'/'PF-SR'; ps.mkdir(parents=True)
    src = next(twin.rglob('*_train_source_sentinel_2*/**/bands.npy')).parent
    shutil.copy(src/'bands.npy', s2/'data'/'BANDS.npy'); shutil.copy(src/'clp.npy', s2/'data'/'CLP.npy')
    for f in ('bbox.pkl', 'timestamp.pkl'): (s2/f'{f}.gz').write_bytes(gzip.compress((src/f).read_bytes()))
    for f in twin.rglob('*_train_source_planet/*/sr.tif'): shutil.copy(f, ps/f"{f.parent.name[-10:].replace('_', '-')}.tif")
    shutil.copy(next(twin.rglob('*_train_labels/**/labels.geojson')), b/'br-18E-242N-crop-labels-train-2018.geojson')
    shutil.copytree(twin, tmp_path/'a')
    a,b = (pairs(resolve(str(tmp_path/k)), r, 0).get() for k in 'ab')
    x,y = h5(a/'pairs.h5'), h5(b/'pairs.h5'); assert x.keys()==y.keys() and all((x[k]==y[k]).all() for k in x)

def test_clear_pairs_and_series(twin, tmp_path, fresh_runs):
    "Cloud probability travels with the data, and `clear` uses it"
    d = resolve('twin', 'smoke', 0); c = r|dict(clouds='clear')
    a,b = h5(pairs(d, r, 0).get()/'pairs.h5'), h5(pairs(d, c, 0).get()/'pairs.h5')
    assert a['cloud'].max()>200 and b['cloud'].max()<=102 and result(pairs(d, c, 0))['fewer']
    s,t = h5(series(1, d, r, 0).get()/'train.h5'), h5(series(1, d, c, 0).get()/'train.h5')
    assert s['mask'].all() and (s['cloud']>102).any() and ((t['cloud']<=102)==(t['mask']>0)).all() and t['mask'].any(1).all()
    e = tmp_path/'e'; shutil.copytree(twin, e); [f.unlink() for f in e.rglob('clp.npy')]
    with pytest.raises(ValueError, match='needs cloud probabilities'): pairs(resolve(str(e)), c, 0).get()

def test_blocks_and_buffer(twin, fresh_runs):
    d = resolve('twin', 'smoke', 0); g = open_tile(d.get()).fields('EPSG:32633'); k = r|dict(block=300)
    s = split(d, 'train', k, 0); parts = {p: part_of(s.get(), p) for p in ('pretrain', 'train', 'val')}
    where = lambda p: set(zip(*(getattr(g[g.field_id.isin(parts[p])].centroid, a)//300 for a in 'xy')))
    assert sorted(sum(parts.values(), []))==sorted(g.field_id) and not where('pretrain')&where('val') and not where('pretrain')&where('train')
    a,b = (h5(pairs(d, r|dict(buffer=m), 0).get()/'pairs.h5') for m in (0, 20))
    from shapely import points
    t = open_tile(d.get()).s2.transform; xy = points([t*(c+.5, q+.5) for c,q in zip(b['col'], b['row'])]); f = g.set_index('field_id').geometry
    inside = [f[i].boundary.distance(p) for i,p in zip(b['field_id'], xy)]; assert min(inside)>=19.9 and len(a['row'])==len(b['row'])

def test_manifest(twin, fresh_runs):
    m = json.loads((split(resolve('twin', 'smoke', 0), 'train', r, 0).get()/'split.json').read_text())
    assert len(m['hash'])==12 and m['stratify'] is True and sum(m['counts']['val'].values())==len(m['parts']['val']) and m['classes'][0]=='Wheat'

def test_card(twin, fresh_runs):
    p = pairs(resolve('twin', 'smoke', 0), r, 0).get(); card = json.loads((p/'pairs.card.json').read_text())
    assert card['recipe']['data']==resolve('twin', 'smoke', 0).id; assert card==json.loads(h5py.File(p/'pairs.h5').attrs['card']) and card['source']=='SIMULATED twin:smoke' and {'licence', 'split', 'days', 'recipe', 'level', 'sentinel2'}<=card.keys()

def broken(twin, tmp_path, change):
    d = tmp_path/'d'; shutil.copytree(twin, d); change(d); return resolve(str(d))

def edit_labels(f):
    def go(d):
        p = next(d.rglob('*_train_labels/**/labels.geojson')); g = gpd.read_file(p); g = f(g); g.to_file(p, driver='GeoJSON')
    return go

def day(d): return sorted(d.rglob('*_train_source_planet/*/sr.tif'))[2]
@pytest.mark.parametrize('change,error,says', [
    (lambda d: day(d).write_bytes(day(d).read_bytes()[:3000]), ValueError, r'sr.tif cannot be read|sr.tif'),
    (lambda d: next(d.rglob('*_train_*/**/bands.npy')).write_bytes(next(d.rglob('*_train_*/**/bands.npy')).read_bytes()[:5000]), ValueError, 'bands.npy cannot be read'),
    (lambda d: np.save(next(d.rglob('*_train_*/**/bands.npy')), np.zeros((8, 90, 90, 12), 'float32')), ValueError, 'holds float32, not integers'),
    (lambda d: np.save(next(d.rglob('*_train_*/**/bands.npy')), np.zeros((8, 90, 90, 11), 'uint16')), ValueError, r'not \(time, row, column, 12\)'),
    (lambda d: next(d.rglob('*_train_*/**/timestamp.pkl')).write_bytes(pickle.dumps([datetime(2018, 1, 1, tzinfo=timezone.utc)]*8)), ValueError, 'a date stands twice, such as 2018-01-01'),
    (lambda d: shutil.copytree(day(d).parent, day(d).parent.with_name('again_'+day(d).parent.name)), ValueError, 'have the same date'),
    (edit_labels(lambda g: g.assign(geometry=g.translate(50_000))), ValueError, 'no field lies in the Sentinel-2 image'),
    (edit_labels(lambda g: g.assign(crop_id=11)), ValueError, r'crop_id \[11\] is not in 1..9'),
    (edit_labels(lambda g: g.drop(columns='crop_id')), ValueError, 'has no column crop_id'),
    (edit_labels(lambda g: g.iloc[:2]), ValueError, 'leave none for'),
    (lambda d: np.save(next(d.rglob('*_train_*/**/clp.npy')), np.zeros((8, 90, 90, 1), 'float32')), ValueError, 'clp.npy has shape'),
    (lambda d: next(d.rglob('*_train_labels/**/labels.geojson')).write_text('{'), ValueError, 'labels.geojson cannot be read as parcels'),
    (lambda d: next(d.rglob('*_train_*/**/bbox.pkl')).write_bytes(b'garbage'), ValueError, 'bbox.pkl is refused'),
    (lambda d: [f.unlink() for f in d.rglob('*_train_source_planet/*/sr.tif')], FileNotFoundError, 'nothing matches'),
    (lambda d: next(d.rglob('*_train_*/**/bbox.pkl')).write_bytes(pickle.dumps(shutil.rmtree)), ValueError, 'asks for shutil.rmtree')])
def test_bad_denethor(twin, tmp_path, fresh_runs, change, error, says):
    "The error names the file; no half-written output stays"
    d = broken(twin, tmp_path, change)
    with pytest.raises(error, match=says): pairs(d, r, 0).get()
    assert not list(fresh_runs.glob('pairs/*/pairs.h5')) or not list(fresh_runs.glob('pairs/*/result.json'))

def test_an_empty_day_gives_no_pairs_and_says_so(twin, tmp_path, fresh_runs):
    def blank(d):
        with rasterio.open(day(d), 'r+') as f: f.write(np.zeros((4, *f.shape), 'uint16'))
    p = result(pairs(broken(twin, tmp_path, blank), r, 0).get()); assert list(p['fewer'].values())==[0] and p['pairs']==60*7 and p['passed']>1000

def test_invalid_geometry_is_repaired_aloud(twin, tmp_path, fresh_runs, capfd):
    from shapely.geometry import Polygon
    bow = lambda g: (lambda x0, y0, x1, y1: Polygon([(x0, y0), (x1, y1), (x1, y0), (x0, y1)]))(*g.bounds)
    d = broken(twin, tmp_path, edit_labels(lambda g: g.assign(geometry=[bow(v) if i==0 else v for i,v in enumerate(g.geometry)])))
    pairs(d, r, 0).get(); assert 'labels.geojson: 1 invalid geometries were repaired' in capfd.readouterr().out

def test_a_class_without_validation_fields(twin, tmp_path, fresh_runs):
    d = broken(twin, tmp_path, edit_labels(lambda g: g[(g.crop_id!=7) | (g.fid==g[g.crop_id==7].fid.iloc[0])]))
    with pytest.raises(ValueError, match='no sample of Root Crops in the part'): series(1, d, r, 0).get()

def test_fewer_samples_than_wanted_is_said(twin, fresh_runs, capfd):
    series(1, resolve('twin', 'smoke', 0), r|dict(val_per_class=100_000), 0).get(); assert 'val: fewer than the 100000 samples wanted' in capfd.readouterr().out

def test_full_disk(fresh_runs):
    import errno
    def make(folder, recipe): (folder/'half').write_text('x'); raise OSError(errno.ENOSPC, 'No space left on device')
    run = Run('x', {}, make)
    with pytest.raises(OSError, match='the disk is full; make room') as e: run.get()
    assert e.value.filename and not run.done

# ---------------------------------------------------------------- the authors' HDF5
def write_published(d, aligned=True, n=144*30):
    rng = np.random.default_rng(0); d.mkdir()
    x = rng.integers(300, 1400, (n, 12)); ps = np.repeat(x[:,[1,2,3,7],None], 9, 2)+rng.integers(-30, 30, (n, 4, 9))
    if not aligned: ps = ps.reshape(n, 9, 4).transpose(0, 2, 1)[rng.permutation(n)]
    with h5py.File(d/'pretraining_point2.h5', 'w') as h: h['sentinel2_data'], h['planet_data'] = x, ps
    for f in ('train', 'val', 'validation_train', 'validation_val'):
        with h5py.File(d/f'{f}_sentinel_ts.hdf5', 'w') as h: h['time_series'] = rng.integers(300, 4000, (90, 144, 12)); h['crop_labels'] = (np.arange(90)%9+1)[:,None]
    return resolve(str(d))

def test_published_files_are_taken_as_they_are(tmp_path, fresh_runs, capfd):
    d = write_published(tmp_path/'z'); p = pairs(d, r, 0).get(); assert result(p)['pairs']==144*30 and 'the pairs are aligned' in capfd.readouterr().out
    s = h5(series(2, d, r, 0).get()/'val.h5'); assert s['time_series'].shape==(90, 144, 12) and (s['field_id']==-1).all() and sorted(set(s['crop_labels'][:,0]))==list(range(1, 10))
    from cropnb.pretrain import encoder, encoders
    from cropnb.downstream import training
    t = result(training(series(1, d, r, 0), encoders(p, r, 0)['bimodal 0.2'], 1, 'lstm', 0, r, 0).get()); assert np.isnan(t['field_accuracy']) and 0<=t['accuracy']<=1
    with pytest.raises(ValueError, match='names no dates'): encoder(p, r|dict(pairing='same_date'), 0).get()

def test_data_notebook_on_published_files(tmp_path, fresh_runs):
    "Pairs and series without tiles: the notebook runs, and leaves out what needs fields"
    import subprocess, sys
    from conftest import root
    d = write_published(tmp_path/'z'); out = tmp_path/'out.ipynb'
    p = subprocess.run([sys.executable, '-m', 'papermill', 'nbs/00_data.ipynb', str(out), '-p', 'data', str(d.path), '-p', 'profile', 'smoke', '-y', 'tasks: [1, 2]'], cwd=root, capture_output=True, text=True)
    assert p.returncode==0, p.stderr[-1500:]
    assert 'the pairs are aligned' in out.read_text()

def test_misaligned_published_pairs_are_called_so(tmp_path, fresh_runs, capfd):
    pairs(write_published(tmp_path/'z', aligned=False), r, 0).get(); assert 'NOT aligned' in capfd.readouterr().out

def test_published_files_of_another_shape(tmp_path, fresh_runs):
    d = write_published(tmp_path/'z')
    with h5py.File(d.path/'pretraining_point2.h5', 'w') as h: h['sentinel2_data'] = np.ones((10, 13))
    with pytest.raises(ValueError, match=r'pretraining_point2.h5: sentinel2_data has shape \(10, 13\), not \(any, 12\)'): pairs(d, r, 0).get()

# ---------------------------------------------------------------- BreizhCrops
class Cutting(http.server.BaseHTTPRequestHandler):
    "A host that cuts each answer after `most` bytes, knows ranges, and keeps a list of what was asked"
    files, asked, most = {}, [], 1<<40
    def log_message(self, *a): pass
    def do_GET(self):
        body = self.files.get(self.path.lstrip('/')); had = int((self.headers.get('Range') or 'bytes=0-')[6:-1]); self.asked.append((self.path, had))
        if body is None: self.send_response(404); self.end_headers(); return
        self.send_response(206 if had else 200); self.send_header('Content-Length', str(len(body)-had)); self.end_headers(); self.wfile.write(body[had:had+self.most])

@pytest.fixture
def host():
    s = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Cutting); threading.Thread(target=s.serve_forever, daemon=True).start()
    Cutting.asked, Cutting.most, Cutting.files = [], 1<<40, {}
    yield f'http://127.0.0.1:{s.server_port}'; s.shutdown()

def test_download_goes_on_where_it_was_cut(host, tmp_path):
    body = np.random.default_rng(0).bytes(5_000_000); Cutting.files = {'a.bin': body}; Cutting.most = 2_000_000; p = tmp_path/'a.bin'
    for had in (0, 2_000_000):
        with pytest.raises(Exception): breizhcrops.download(f'{host}/a.bin', p)
        assert Cutting.asked[-1]==('/a.bin', had) and not p.exists() and (tmp_path/'a.bin.part').stat().st_size==had+2_000_000
    breizhcrops.download(f'{host}/a.bin', p); assert p.read_bytes()==body and Cutting.asked[-1][1]==4_000_000
    n = len(Cutting.asked); breizhcrops.download(f'{host}/a.bin', p); assert len(Cutting.asked)==n

def test_breizhcrops_from_download_to_task(host, twin, tmp_path, fresh_runs):
    "2018 as zipped CSV, downloaded from a host of our own, gives the task that the twin's HDF5 gives"
    src = breizhcrops.find(twin); z = io.BytesIO(); df = pd.read_csv(src/'2018/L1C/frh01.csv')
    with h5py.File(src/'2018/L1C/frh01.h5') as h, zipfile.ZipFile(z, 'w') as f:
        for p in df.path: t = pd.DataFrame(h[p][:], columns=breizhcrops.names); f.writestr(p, t.assign(doa=pd.to_datetime(t.doa.astype('int64')))[sorted(t)].to_csv())
    Cutting.files = {'classmapping.csv': (src/'classmapping.csv').read_bytes(), 'codes.csv': (src/'codes.csv').read_bytes(), '2018/L1C/frh01.csv': (src/'2018/L1C/frh01.csv').read_bytes(), '2018/L1C/frh01.zip': z.getvalue()}
    breizhcrops.get(tmp_path/'bc', 2018, ['frh01'], base=host); shutil.copytree(src, tmp_path/'h5')
    a,b = (h5(series(3, resolve(str(tmp_path/k)), r, 0).get()/'train.h5') for k in ('bc', 'h5')); assert all((a[k]==b[k]).all() for k in a)

def test_h5_archives_are_unpacked_safely(host, tmp_path):
    t = io.BytesIO()
    with tarfile.open(fileobj=t, mode='w:gz') as f: i = tarfile.TarInfo('../evil'); i.size = 1; f.addfile(i, io.BytesIO(b'x'))
    Cutting.files = {f: b'x' for f in ('classmapping.csv', 'codes.csv', '2017/L1C/kermaux.csv')} | {'2017/L1C/kermaux.h5.tar.gz': t.getvalue()}
    with pytest.raises(tarfile.OutsideDestinationError): breizhcrops.get(tmp_path/'x', 2017, ['kermaux'], base=host)

def test_alphabetical_columns_are_recognised(twin, tmp_path, fresh_runs):
    d = tmp_path/'d'; shutil.copytree(breizhcrops.find(twin), d); o = [breizhcrops.names.index(n) for n in sorted(breizhcrops.names[:13])]+[13, 14, 15, 16]
    with h5py.File(d/'2018/L1C/frh01.h5', 'r+') as h:
        for p in pd.read_csv(d/'2018/L1C/frh01.csv').path: h[p][:] = h[p][:][:,o]
    shutil.copytree(breizhcrops.find(twin), tmp_path/'e')
    a,b = (h5(series(3, resolve(str(tmp_path/k)), r, 0).get()/'val.h5') for k in 'de'); assert (a['time_series']==b['time_series']).all()

# ---------------------------------------------------------------- a folder of one's own
crops3 = ('barley', 'maize', 'wheat')
def own_scene(d, offset=0, superdove=False, n=40, names=True, ps_crs='EPSG:32632'):
    "Three dates, a 12 x 10 grid of fields of three crops, Sentinel-2 with 13 bands in another order, SuperDove if wanted"
    for s in ('s2', 'ps', 'clouds'): (d/s).mkdir(parents=True)
    x0,y0 = 600_000, 5_400_000; m = n*10; rng = np.random.default_rng(0); k = 40
    g = gpd.GeoDataFrame(dict(kind=[crops3[(i*3+j)%3] for i in range(m//k) for j in range(m//k)]), geometry=[box(x0+k*j, y0-k*(i+1), x0+k*(j+1), y0-k*i) for i in range(m//k) for j in range(m//k)], crs='EPSG:32632')
    g.to_crs(4326).to_file(d/'parcels.gpkg')
    bands = [f'B{i}' for i in range(1, 9)]+['B8A']+[f'B{i}' for i in range(9, 13)]; ps = ['coastal', 'blue', 'green_i', 'green', 'yellow', 'red', 'red_edge', 'nir'] if superdove else ['blue', 'green', 'red', 'nir']
    lab = np.kron((np.arange(m//k)[:,None]*3+np.arange(m//k))%3, np.ones((k//10, k//10), int)); val = np.array([500, 900, 1500])
    for i,t in enumerate(('20210410', '20210615', '20210820')):
        a = val[lab][None]+100*np.arange(13)[:,None,None]+rng.integers(0, 50, (13, n, n))-offset
        with rasterio.open(d/f's2/T32_{t}.tif', 'w', driver='GTiff', count=13, height=n, width=n, dtype='uint16', crs='EPSG:32632', transform=from_origin(x0, y0, 10, 10)) as f:
            f.write(a.astype('uint16'))
            if names: [f.set_band_description(j+1, b) for j,b in enumerate(bands)]
        with rasterio.open(d/f'clouds/cld_{t}.tif', 'w', driver='GTiff', count=1, height=n, width=n, dtype='uint8', crs='EPSG:32632', transform=from_origin(x0, y0, 10, 10)) as f: f.write(np.full((1, n, n), 100 if i==1 else 0, 'uint8'))
        q = m//3+2; fine = val[lab[np.minimum((np.arange(q)*3+1)//10, n-1)][:,np.minimum((np.arange(q)*3+1)//10, n-1)]]
        b = np.stack([fine+1000*(j+1) for j in range(len(ps))])+rng.integers(0, 20, (len(ps), q, q))
        with rasterio.open(d/f'ps/{t}_ps.tif', 'w', driver='GTiff', count=len(ps), height=q, width=q, dtype='uint16', crs=ps_crs, transform=from_origin(x0, y0, 3, 3)) as f: f.write(b.astype('uint16'))
    toml = template.replace('class = "crop"', 'class = "kind"').replace('clouds = ""', 'clouds = "clouds/*.tif"').replace('cloud_max = 255', 'cloud_max = 100').replace('offset = 0 ', f'offset = {offset} ', 1)
    (d/'scene.toml').write_text(toml.replace('["blue", "green", "red", "nir"]', json.dumps(ps)))
    return d

@pytest.mark.parametrize('offset,superdove', [(0, False), (-1000, True)])
def test_own_scene_to_pairs_and_series(tmp_path, fresh_runs, offset, superdove):
    d = resolve(str(own_scene(tmp_path/'o', offset, superdove)))
    p = h5(pairs(d, r, 0).get()/'pairs.h5'); s = series(1, d, r|dict(train_per_class=8, val_per_class=4), 0).get(); q = h5(s/'train.h5')
    base = p['sentinel2_data'][:,0].astype(int)                                       # B01 = crop's value + noise
    np.testing.assert_allclose(p['sentinel2_data'][:,11]-base, 1200, atol=50)         # B12 is the 13th of the file: B10 was left out by name
    want = np.array([2, 4, 6, 8])*1000 if superdove else np.array([1, 2, 3, 4])*1000
    np.testing.assert_allclose(p['planet_data'][:,:,4]-base[:,None]-want, 0, atol=60) # the window's centre is the same field, its bands by name
    assert q['time_series'].shape[1:]==(3, 12) and sorted(set(q['crop_labels'][:,0]))==[1, 2, 3] and json.loads(h5py.File(s/'train.h5').attrs['classes'])==list(crops3)
    assert (q['cloud']==[0, 255, 0]).all() and result(pairs(d, r, 0))['source']=='My fields'

def test_a_stack_is_read_like_images(tmp_path, fresh_runs):
    a,b = own_scene(tmp_path/'a'), own_scene(tmp_path/'b'); fs = sorted((b/'s2').glob('*.tif'))
    np.save(b/'s2'/'bands.npy', np.stack([rasterio.open(f).read().transpose(1, 2, 0) for f in fs])); f = rasterio.open(fs[0])
    keys = dict(stack='s2/bands.npy', bands=list(f.descriptions), dates=['2021-04-10', '2021-06-15', '2021-08-20'], bounds=list(f.bounds), crs='EPSG:32632', clouds='')
    lines = (b/'scene.toml').read_text().split('[planetscope]'); head = lines[0].split('[sentinel2]')
    (b/'scene.toml').write_text(head[0]+'[sentinel2]\n'+'\n'.join(f'{k} = {json.dumps(v)}' for k,v in keys.items())+'\n[planetscope]'+lines[1])
    x,y = (h5(pairs(resolve(str(d)), r, 0).get()/'pairs.h5') for d in (a, b)); assert all((x[k]==y[k]).all() for k in x if k!='cloud')

def test_check_and_template(tmp_path, capsys):
    from cropnb.cli import main
    own_scene(tmp_path/'o'); main(['check', str(tmp_path/'o')]); out = capsys.readouterr().out
    for t in ('3 dates', '2021-04-10', 'EPSG:32632', 'barley', 'pretrain', '3 of 3 dates have a PlanetScope image', 'cloud'): assert t in out, out
    main(['template', str(tmp_path/'n')]); assert (tmp_path/'n'/'scene.toml').read_text()==template
    with pytest.raises(SystemExit, match='there already'): main(['template', str(tmp_path/'n')])
    with pytest.raises(SystemExit, match='nothing matches|is missing|No such|no column|cannot be read'): main(['check', str(tmp_path/'n')])

def toml(d, old, new): p = d/'scene.toml'; t = p.read_text(); assert old in t; p.write_text(t.replace(old, new, 1))
def set_crs(p, crs):
    with rasterio.open(p, 'r+') as f: f.crs = crs

def test_what_is_read_is_part_of_the_name(tmp_path, fresh_runs):
    "Clouds, classes beside a .shp, one label in a file: another run"
    d = own_scene(tmp_path/'o'); gpd.read_file(d/'parcels.gpkg').to_file(d/'parcels.shp'); (d/'scene.toml').write_text((d/'scene.toml').read_text().replace('parcels.gpkg', 'parcels.shp'))
    name = lambda: pairs(resolve(str(d)), r, 0).id
    old = name(); g = gpd.read_file(d/'parcels.shp'); g['kind'] = g.kind.to_numpy()[::-1]; g.to_file(d/'parcels.shp'); new = name(); assert new!=old
    with rasterio.open(d/'clouds/cld_20210410.tif', 'r+') as f: f.write(np.full((1, *f.shape), 50, 'uint8'))
    assert name()!=new; (d/'notes.txt').write_text('x'); new = name(); (d/'notes.txt').unlink(); assert name()==new

def test_bands_are_found_by_name_in_every_file(tmp_path, fresh_runs):
    a,b = own_scene(tmp_path/'a'), own_scene(tmp_path/'b'); p = b/'s2/T32_20210615.tif'
    with rasterio.open(p) as f: x, names, prof = f.read(), f.descriptions, f.profile
    p.unlink()
    with rasterio.open(p, 'w', **prof) as f: f.write(x[::-1]); [f.set_band_description(i+1, n) for i,n in enumerate(names[::-1])]
    x,y = (h5(pairs(resolve(str(d)), r, 0).get()/'pairs.h5') for d in (a, b)); assert all((x[k]==y[k]).all() for k in x)

def test_a_pixel_never_seen_is_replaced(tmp_path, fresh_runs):
    "Half of the image is empty on every date: the balanced draw fills up from the other half"
    d = own_scene(tmp_path/'o', n=80)
    for f in (d/'s2').glob('*.tif'):
        with rasterio.open(f, 'r+') as o: a = o.read(); a[:, :, :40] = 0; o.write(a)
    s = h5(series(1, resolve(str(d)), r|dict(train_per_class=30, val_per_class=15), 0).get()/'train.h5')
    assert np.bincount(s['crop_labels'][:,0])[1:].tolist()==[30, 30, 30] and s['col'].min()>=40 and s['mask'].any(1).all() and len({*zip(s['row'].tolist(), s['col'].tolist())})==90

def test_series_go_on_at_the_date_where_they_stopped(twin, tmp_path, fresh_runs):
    "What a killed run left is used, and the bytes are those of a run that was left alone"
    import cropnb.data as cd
    d = resolve('twin', 'smoke', 0); run = series(1, d, r, 0); whole = [(run.get()/f).read_bytes() for f in ('train.h5', 'val.h5')]; shutil.rmtree(run.path)
    asked, old = [], cd.cloud_of
    def stop(s2, i, clouds):
        asked.append(i)
        if len(asked)==5: raise KeyboardInterrupt
        return old(s2, i, clouds)
    cd.cloud_of = stop
    try:
        with pytest.raises(KeyboardInterrupt): run.get()
        assert not run.done and asked==[0, 1, 2, 3, 4]; run.get()
    finally: cd.cloud_of = old
    assert asked==[0, 1, 2, 3, 4]+[4, 5, 6, 7]+list(range(8)) and [(run.path/f).read_bytes() for f in ('train.h5', 'val.h5')]==whole

def test_linked_archives_are_found(twin, tmp_path, fresh_runs):
    (tmp_path/'d').mkdir(); [(tmp_path/'d'/p.name).symlink_to(p) for p in twin.iterdir() if p.is_dir()]
    assert pairs(resolve(str(tmp_path/'d')), r, 0).get().exists() and series(3, resolve(str(tmp_path/'d')), r, 0).get().exists()

def test_published_reflectances_are_refused(tmp_path, fresh_runs):
    d = write_published(tmp_path/'z')
    with h5py.File(d.path/'pretraining_point2.h5', 'r+') as h: x = h['sentinel2_data'][:]/1e4; del h['sentinel2_data']; h['sentinel2_data'] = x
    with pytest.raises(ValueError, match='sentinel2_data holds NaN, or reflectances in 0..1'): pairs(resolve(str(d.path)), r, 0).get()

def test_truncated_hdf5_is_named(tmp_path, twin, fresh_runs):
    d = write_published(tmp_path/'z'); p = d.path/'pretraining_point2.h5'; p.write_bytes(p.read_bytes()[:3000])
    with pytest.raises(ValueError, match='pretraining_point2.h5 cannot be read as HDF5'): pairs(d, r, 0).get()
    b = tmp_path/'b'; shutil.copytree(breizhcrops.find(twin), b); p = b/'2018/L1C/frh01.h5'; p.write_bytes(p.read_bytes()[:3000])
    with pytest.raises(ValueError, match='frh01.h5 cannot be read'): series(3, resolve(str(b)), r, 0).get()

def test_a_parcel_in_two_regions_counts_once(twin, tmp_path, fresh_runs, capfd):
    b = tmp_path/'b'; shutil.copytree(breizhcrops.find(twin), b)
    for e in ('csv', 'h5'): shutil.copy(b/f'2018/L1C/frh01.{e}', b/f'2018/L1C/frh02.{e}')
    s = series(3, resolve(str(b)), r, 0).get(); a,v = h5(s/'train.h5'), h5(s/'val.h5')
    assert not set(a['field_id']) & set(v['field_id']) and 'stand in two regions' in capfd.readouterr().out

@pytest.mark.parametrize('kw,change,says', [
    (dict(names=False), None, 'band B01, .* is missing'),
    (dict(ps_crs='EPSG:32633'), None, 'Sentinel-2 is in EPSG:32632, PlanetScope in EPSG:32633'),
    ({}, lambda d: (d/'s2/T32_20210410.tif').rename(d/'s2/T32_april.tif'), 'T32_april.tif: no date in'),
    ({}, lambda d: shutil.copy(d/'s2/T32_20210410.tif', d/'s2/U32_20210410.tif'), 'have the same date'),
    ({}, lambda d: (d/'ps/20210615_ps.tif').write_bytes(b'II*\0nonsense'), '20210615_ps.tif cannot be read'),
    ({}, lambda d: toml(d, 'leave_out = []', 'leave_out = ["Maize"]'), 'leave_out names Maize, which column kind does not have'),
    ({}, lambda d: toml(d, 'id = ""', 'id = "kind"'), 'column kind has to hold whole numbers'),
    ({}, lambda d: toml(d, r"-?(\d\d)'", "'"), 'has 2 groups in brackets, not three'),
    ({}, lambda d: toml(d, r"(\d{4})", "(("), 'is no regular expression'),
    ({}, lambda d: shutil.copy(d/'clouds/cld_20210410.tif', d/'clouds/x_20210410.tif'), 'have the same date'),
    ({}, lambda d: set_crs(d/'s2/T32_20210615.tif', 'EPSG:32633'), 'T32_20210615.tif lies on another grid, or in other coordinates'),
    ({}, lambda d: toml(d, '"kind"', '"crop"'), 'has no column crop: it has kind')])
def test_bad_own_scene(tmp_path, fresh_runs, kw, change, says):
    d = own_scene(tmp_path/'o', **kw)
    if change: change(d)
    with pytest.raises(ValueError, match=says): pairs(resolve(str(d)), r, 0).get()
