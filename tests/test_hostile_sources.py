"""Files that are wrong, kind by kind: each is named with a fix, or accepted for a reason.

A case is a kind, what is done to a good input, and what is said of it; `accepted` gives the reason
instead. All inputs are made here, small, and the good one of each kind is read first."""
import functools, http.client, http.server, io, json, pickle, shutil, tarfile, threading, zipfile
from collections import namedtuple
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
import geopandas as gpd, h5py, numpy as np, pandas as pd, pytest, rasterio
from rasterio.shutil import copy
from rasterio.transform import from_origin
from shapely.geometry import Point, Polygon
from cropnb.cli import main
from cropnb.data import OnDisk, series
from cropnb.prepare.fields import field_raster, open_tile, part_of
from cropnb.prepare.pairs import match_days
from cropnb.prepare.published import authors_files
from cropnb.prepare.seasons import own_task, pixel_series, write_series
from cropnb.sources import breizhcrops, gates
from cropnb.sources.gates import day_of
from cropnb.sources.table import series_from_table
from cropnb.twin.sample import write_published
from test_pairs import write_ps, write_scene
from test_pairs import north as tile_north, west as tile_west
from test_sources import edit_toml, find_one, make_stack, own_scene, truncate

Case = namedtuple('Case', 'kind change says why', defaults=(None, None))

def accepted(kind, change, why): return Case(kind, change, None, why)

# ---------------------------------------------------------------- good inputs
def read_tile(d):
    "All that a stage reads of a tile or a scene"
    t = open_tile(d)
    clouds = [t.first.clouds(i) for i in range(len(t.first.dates))]
    both = [[images[i] for i in range(len(images.dates))] for images in t.images]
    return SimpleNamespace(images=both, clouds=clouds, ids=field_raster(t), t=t)

def make_tile(d):
    "A DENETHOR tile of one date, with a second PlanetScope day and clouds"
    write_scene(d, 3., 100)
    days = np.full((4, 100, 100), 900, 'uint16')
    days[:] += np.arange(100, dtype='uint16')
    write_ps(d, days, tile_west, tile_north, 3., '2018_05_06')
    np.save(find_one(d, 'bands.npy').with_name('clp.npy'), np.zeros((1, 30, 30, 1), 'uint8'))
    return d

def make_stacked(d):
    "A scene of your own, whose Sentinel-2 images are one array"
    own_scene(d, n=12)
    make_stack(d)
    return d

names = [f'b{i}' for i in range(12)]

def make_table(d=None):
    "Six parcels of two crops on three days"
    rng = np.random.default_rng(0)
    rows = []
    for parcel in range(6):
        for month in (3, 5, 7):
            values = dict(zip(names, rng.integers(300, 4000, 12).astype(float)))
            crop = 'rye' if parcel%2 else 'oats'
            rows.append(dict(parcel=parcel, day=f'2018-0{month}-01', crop=crop, **values))
    return pd.DataFrame(rows)

def make_series(d=None):
    "The same as series"
    return series_from_table(make_table(), 'parcel', 'day', 'crop', names)

def make_breizh(d):
    "A region of two parcels of wheat on three dates, in HDF5"
    l1c = d/'2018'/'L1C'
    l1c.mkdir(parents=True)
    (d/'classmapping.csv').write_text('id,classname,code\n1,wheat,BTH\n')
    rows = ''.join(f'{i},BTH,csv/{i}.csv,3\n' for i in (7, 8))
    (l1c/'frh01.csv').write_text('id,CODE_CULTU,path,sequencelength\n'+rows)
    rng = np.random.default_rng(0)
    with h5py.File(l1c/'frh01.h5', 'w') as h:
        for i in (7, 8):
            a = rng.integers(500, 4000, (3, 17)).astype(float)
            a[:,10] = 5
            a[:,13:16] = 0
            a[:,16] = 1.52e18+np.arange(3)*864e12
            h[f'csv/{i}.csv'] = a
    return d

def zipped(d):
    "The region of `make_breizh` as the zip of one CSV a parcel"
    l1c = d/'2018'/'L1C'
    with h5py.File(l1c/'frh01.h5') as h, zipfile.ZipFile(l1c/'frh01.zip', 'w') as z:
        for i in (7, 8):
            table = pd.DataFrame(h[f'csv/{i}.csv'][:], columns=breizhcrops.column_names)
            table['doa'] = pd.to_datetime(table.doa.astype('int64'))
            z.writestr(f'csv/{i}.csv', table.to_csv())
    (l1c/'frh01.h5').unlink()

def read_breizh(d):
    parcels = breizhcrops.index(breizhcrops.find(d), min_dates=2)
    return list(breizhcrops.read_series(d, parcels))

def make_split(d):
    d.mkdir(exist_ok=True)
    (d/'split.json').write_text(json.dumps(dict(parts=dict(train=[1], val=[2]))))
    return d

makers = dict(tile=make_tile, labels=make_tile, scene=lambda d: own_scene(d, n=12),
              parcels=lambda d: own_scene(d, n=12), stack=make_stacked,
              breizhcrops=make_breizh, split=make_split)
readers = dict(tile=read_tile, labels=read_tile, scene=read_tile, parcels=read_tile,
               stack=read_tile, breizhcrops=read_breizh, split=lambda d: part_of(d, 'train'),
               table=lambda df: series_from_table(df, 'parcel', 'day', 'crop', names))

@pytest.fixture(scope='module')
def good(tmp_path_factory):
    "The good input of a kind of files, made once and read once"
    made = {}
    def get(kind):
        if kind not in made:
            made[kind] = makers[kind](tmp_path_factory.mktemp(kind)/'d')
            readers[kind](made[kind])
        return made[kind]
    return get

# ---------------------------------------------------------------- DENETHOR
def sr(d): return sorted(d.rglob('sr.tif'))[0]
def second(d): return sorted(d.rglob('sr.tif'))[1]
def bands(d): return find_one(d, 'bands.npy')
def clp(d): return find_one(d, 'clp.npy')
def stamps(d): return find_one(d, 'timestamp.pkl')
def bbox(d): return find_one(d, 'bbox.pkl')
def labels(d): return find_one(d, 'labels.geojson')

def day(values, which=sr, pixel=3, **changes):
    "Put another PlanetScope image in the place of a day"
    def go(d):
        path = which(d)
        a = np.broadcast_to(np.asarray(values), (4, 100, 100))
        profile = dict(driver='GTiff', count=4, height=100, width=100, dtype=a.dtype.name,
                       crs='EPSG:32633', transform=from_origin(tile_west, tile_north, pixel, pixel))
        path.unlink()
        with rasterio.open(path, 'w', **profile|changes) as f: f.write(a[:f.count])
    return go

def s2(a):
    "Another array in the place of bands.npy"
    return lambda d: np.save(bands(d), a)

def pickled(path, value):
    return lambda d: path(d).write_bytes(pickle.dumps(value))

def corner(**changes):
    "Another place of the tile"
    def go(d):
        box = dict(min_x=tile_west, min_y=tile_north-300, max_x=tile_west+300, max_y=tile_north,
                   _crs='32633')|changes
        box = {k: v for k,v in box.items() if v is not None}
        as_text = pickle.dumps(SimpleNamespace(**box), 0)
        as_text = as_text.replace(b'types\nSimpleNamespace', b'sentinelhub.geometry\nBBox')
        bbox(d).write_bytes(as_text)
    return go

def blunt(path, content=b''):
    "Other bytes in a file"
    return lambda d: path(d).write_bytes(content)

def rename_day(name):
    return lambda d: sr(d).parent.rename(sr(d).parent.with_name(f'x_train_source_planet_{name}'))

full = np.full((1, 30, 30, 12), 700, 'uint16')
reflectance = np.random.default_rng(0).random((4, 100, 100)).astype('float32')
signed = np.full((4, 100, 100), 700, 'int16')
signed[:,50] = -9999
filled = np.full((4, 100, 100), 700, 'uint16')
filled[:,50] = 65535
east = datetime(2018, 5, 1, 1, tzinfo=timezone(timedelta(hours=2)))
utc = datetime(2018, 5, 1, 1, tzinfo=timezone.utc)
one_band_low = np.full((1, 30, 30, 12), 700, 'int32')
one_band_low[0,3,3,2] = -1

def as_vrt(d):
    "A virtual raster in the place of a day"
    path = sr(d)
    path.rename(d/'elsewhere.tif')
    copy(d/'elsewhere.tif', path, driver='VRT')

def sidecar(inside, which=sr):
    "What a viewer, or someone, left beside an image"
    def go(d):
        Path(f'{which(d)}.aux.xml').write_text(f'<PAMDataset>{inside}</PAMDataset>')
    return go

def world_file(d):
    "An image that says where it lies in another file"
    day(np.uint16(9), transform=None)(d)
    sr(d).with_suffix('.tfw').write_text('3\n0\n0\n-3\n400000\n5700000\n')

def mask_file(d):
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(sr(d), 'r+') as f:
        f.write_mask(np.zeros((100, 100), bool))

def overviews(d):
    with rasterio.Env(TIFF_USE_OVR=True), rasterio.open(sr(d), 'r+') as f:
        f.build_overviews([2])

tiles = [
    Case('tile', day(reflectance), r'sr.tif holds float32.*multiply reflectances by 10000'),
    Case('tile', day(signed), r'sr.tif holds negative values, such as -9999: declare'),
    Case('tile', day(filled), r'sr.tif holds 65535.*declare it as missing'),
    Case('tile', day(np.uint8(90)), r'sr.tif holds uint8, not integers of reflectance'),
    Case('tile', day(np.int32(70_000)), r'sr.tif holds 70000.*set it to 0'),
    Case('tile', day(np.uint16(9), count=3), r'sr.tif has 3 bands, not 4'),
    Case('tile', day(np.uint16(9), crs=None), r'sr.tif has no coordinate system: assign one'),
    Case('tile', day(np.uint16(9), crs='EPSG:4326', transform=from_origin(9, 50, .1, .1)),
        r'sr.tif is in degrees.*reproject'),
    Case('tile', day(np.uint16(9), pixel=-3), r'does not lie north up'),
    Case('tile', day(np.uint16(9), second, pixel=4), r'sr.tif lies on another grid'),
    Case('tile', blunt(sr), r'sr.tif cannot be read.*get it again'),
    Case('tile', blunt(sr, b'<html>login'), r'sr.tif cannot be read.*get it again'),
    Case('tile', blunt(second, b'II*\0nonsense'), r'sr.tif cannot be read'),
    Case('tile', rename_day('2018_13_45'), r"2018_13_45: the date '2018-13-45' is not a day"),
    Case('tile', rename_day('1018_05_01'), r'1018_05_01: the date 1018-05-01 is not between'),
    Case('tile', s2(full.astype('float32')), r'bands.npy holds float32.*save them as uint16'),
    Case('tile', s2(full.astype('uint8')), r'bands.npy holds uint8'),
    Case('tile', s2(full.astype(object)), r'bands.npy cannot be read.*get it again'),
    Case('tile', s2(full[:0]), r'bands.npy has shape \(0, .*it is empty; get it again'),
    Case('tile', s2(full[...,:11]), r'not \(time, row, column, 12\)'),
    Case('tile', s2(full[0]), r'not \(time, row, column, 12\)'),
    Case('tile', s2(one_band_low), r'bands.npy holds negative values, such as -1'),
    Case('tile', s2(full*0+np.uint16(65535)), r'bands.npy holds 65535'),
    Case('tile', s2(np.concatenate([full, full])), r'holds 2 images.* 1 dates'),
    Case('tile', blunt(bands), r'bands.npy cannot be read'),
    Case('tile', lambda d: truncate(bands(d), 5000), r'bands.npy cannot be read.*truncated'),
    Case('tile', lambda d: np.savez(open(bands(d), 'wb'), a=full), r'bands.npy is an archive'),
    Case('tile', lambda d: bands(d).unlink(), r'no files match .*bands.npy.*unpack'),
    Case('tile', blunt(clp), r'clp.npy cannot be read'),
    Case('tile', lambda d: np.save(clp(d), np.zeros((1, 30, 30, 1), 'float32')),
        r'clp.npy has shape .* of float32, not'),
    Case('tile', lambda d: np.save(clp(d), np.zeros((1, 30, 31, 1), 'uint8')),
        r'clp.npy has shape'),
    Case('tile', pickled(stamps, 20180501), r'timestamp.pkl holds int, not a list of dates'),
    Case('tile', pickled(stamps, '2018-05-01'), r'timestamp.pkl holds str, not a list'),
    Case('tile', pickled(stamps, [None]), r'timestamp.pkl: the date None is not a date'),
    Case('tile', pickled(stamps, [17591]), r'timestamp.pkl: the date 17591 is not written as'),
    Case('tile', pickled(stamps, [east]),
        r'timestamp.pkl: the date .* time zone .*convert it to U'),
    Case('tile', pickled(stamps, []), r'1 images, .*timestamp.pkl 0 dates'),
    Case('tile', blunt(stamps), r'timestamp.pkl is refused.*[Gg]et the file again'),
    Case('tile', blunt(stamps, b'\x80\x05.'), r'timestamp.pkl is refused'),
    Case('tile', blunt(stamps, b'Vx\np-1\n.'), r'timestamp.pkl (is refused|holds str)'),
    Case('tile', blunt(bbox, b'(dp0\nI999999999999999999999\nI1\ns.x'), r'bbox.pkl'),
    Case('tile', corner(_crs=None), r'bbox.pkl lacks _crs: .*get it again'),
    Case('tile', pickled(bbox, [1, 2, 3, 4]), r'bbox.pkl lacks min_x'),
    Case('tile', corner(min_x=tile_west+900.), r'bbox.pkl: bounds .* are mirrored'),
    Case('tile', corner(max_y=float('nan')), r'bbox.pkl: bounds .* not four numbers'),
    Case('tile', corner(_crs='1'), r"bbox.pkl: coordinate system 'EPSG:1' is not known"),
    Case('tile', corner(_crs='4326'), r'bbox.pkl is in degrees'),
    Case('tile', lambda d: shutil.rmtree(d), r'd is not a folder: name the one'),
    Case('tile', as_vrt, r'sr.tif is only a reference to other files \(VRT\): gdal_translate'),
    Case('tile', sidecar('<PAMRasterBand band="1"><NoDataValue>7</NoDataValue></PAMRasterBand>'),
        r'sr.tif depends on the file sr.tif.aux.xml beside it: gdal_translate'),
    Case('tile', sidecar('<GeoTransform>0, 3, 0, 0, 0, -3</GeoTransform>'), r'sr.tif depends on'),
    Case('tile', sidecar('<Metadata><MDI key="TIFFTAG_DATETIME">x</MDI></Metadata>', second),
        r'sr.tif depends on the file sr.tif.aux.xml'),
    Case('tile', world_file, r'sr.tif depends on the file sr.tfw beside it'),
    Case('tile', mask_file, r'sr.tif depends on the file sr.tif.msk beside it'),
    accepted('tile', sidecar('<PAMRasterBand band="1"><Metadata><MDI key="STATISTICS_MEAN">1</MDI>'
        '</Metadata></PAMRasterBand>'), 'statistics that a viewer left change nothing'),
    accepted('tile', overviews, 'overviews are not read'),
    accepted('tile', day(signed, nodata=-9999), 'a declared missing value becomes 0'),
    accepted('tile', day(filled, nodata=65535), 'likewise'),
    accepted('tile', day(np.int32(700)), 'integers of any width fit, and come out as uint16'),
    accepted('tile', day(np.uint16(0)), 'an empty day gives no pairs, which the record says'),
    accepted('tile', pickled(stamps, [utc]), 'UTC is what the names of images use'),
    accepted('tile', pickled(stamps, [date(2018, 5, 1)]), 'a day is a day'),
    accepted('tile', s2(np.asfortranarray(full)), 'the order in memory is no matter'),
    accepted('tile', s2(full.astype('>u2')), 'the order of bytes is no matter'),
    accepted('tile', lambda d: clp(d).unlink(), 'clouds are optional; `clear` says it needs them')]

def edit_parcels(change, path=labels):
    def go(d):
        file = path(d)
        g = change(gpd.read_file(file))
        file.unlink()
        g.to_file(file)
    return go

def column(**values):
    return edit_parcels(lambda g: g.assign(**values))

def two(**values):
    "Two parcels with these columns"
    return edit_parcels(lambda g: pd.concat([g, g]).assign(**values))

def raw(**properties):
    "The properties as they are in the file"
    def go(d):
        text = json.loads(labels(d).read_text())
        for feature in text['features']: feature['properties'] |= properties
        labels(d).write_text(json.dumps(text))
    return go

def geometry(value):
    return edit_parcels(lambda g: g.set_geometry([value]*len(g)))

def no_features(d):
    labels(d).write_text('{"type": "FeatureCollection", "features": []}')

denethor_labels = [
    Case('labels', raw(fid='a'), r'labels.geojson: fid has to hold whole numbers'),
    Case('labels', raw(fid=None), r'labels.geojson: fid'),
    Case('labels', raw(fid=-4), r'labels.geojson: fid holds -4: .*from 0'),
    Case('labels', raw(fid=2**32+1), r'labels.geojson: fid holds 4294967297'),
    Case('labels', raw(fid=1.5), r'labels.geojson: fid holds 1.5'),
    Case('labels', two(fid=[1, 1]), r'labels.geojson: fid 1 appears twice'),
    Case('labels', raw(crop_id='wheat'), r'labels.geojson: crop_id has to hold whole numbers'),
    Case('labels', raw(crop_id=None), r'labels.geojson: crop_id'),
    Case('labels', raw(crop_id=1.5), r'labels.geojson: crop_id holds 1.5'),
    Case('labels', raw(crop_id=257), r'crop_id \[257\] is not in 1..9'),
    Case('labels', raw(crop_id=0), r'every crop_id is 0'),
    Case('labels', no_features, r'labels.geojson (holds no parcels|has no column)'),
    Case('labels', geometry(Point(tile_west, tile_north)), r'labels.geojson: the geometry of 1'),
    Case('labels', geometry(None), r'labels.geojson: the geometry of 1 parcels'),
    Case('labels', geometry(Polygon()), r'labels.geojson: the geometry of 1 parcels'),
    Case('labels', blunt(labels), r'labels.geojson cannot be read as parcels'),
    Case('labels', blunt(labels, b'<html>login</html>'), r'labels.geojson cannot be read'),
    Case('labels', lambda d: labels(d).unlink(), r'no files match .*labels.geojson'),
    accepted('labels', raw(crop_id=1.), 'a gap once made the column floats; 1.0 is 1'),
    accepted('labels', raw(fid=0), 'ids count from 0 in some files')]

# ---------------------------------------------------------------- a scene of your own
def toml(old, new): return lambda d: edit_toml(d, old, new)

def recode(encoding):
    "scene.toml in another encoding, with an umlaut in it"
    def go(d):
        path = d/'scene.toml'
        text = path.read_text().replace('My fields', 'Äcker')
        path.write_bytes(text.encode(encoding))
    return go

def image(path, change, **profile):
    "Change an image of the scene"
    def go(d):
        with rasterio.open(d/path) as f:
            a,about,said = f.read(),f.profile,f.descriptions
        a = change(a)
        (d/path).unlink()
        with rasterio.open(d/path, 'w', **about|dict(dtype=a.dtype.name)|profile) as f:
            f.write(a)
            for i,name in enumerate(said, 1):
                if name: f.set_band_description(i, name)
    return go

def every(folder, change, **profile):
    "Change all images of a folder"
    def go(d):
        for path in sorted((d/folder).iterdir()):
            image(path.relative_to(d), change, **profile)(d)
    return go

def same(a): return a
def in_0_1(a): return (a/1e4).astype('float32')
def cloud(value, dtype='uint8'):
    return image('clouds/cld_20210410.tif', lambda a: np.full_like(a, value, dtype=dtype))

flipped = from_origin(600_000, 5_400_000, 10, -10)
one = 's2/T32_20210410.tif'

def own_vrt(name):
    def go(d):
        (d/name).rename(d/'elsewhere.tif')
        copy(d/'elsewhere.tif', d/name, driver='VRT')
    return go

scenes = [
    Case('scene', toml('scale = 10000 ', 'scale = 0 '), r'scene.toml \[sentinel2\]: scale = 0 has'),
    Case('scene', toml('scale = 10000 ', 'scale = -1 '), r'scale = -1 has to be above 0'),
    Case('scene', toml('scale = 10000 ', 'scale = nan '), r'scale = nan is not a number'),
    Case('scene', toml('scale = 10000 ', 'scale = true '), r'scale = True is not a number'),
    Case('scene', toml('scale = 10000 ', 'scale = "1" '), r"scale = '1' is not a number"),
    Case('scene', toml('scale = 10000 ', 'scale = 1 '), r'T32.*at least 6.5 .*correct them'),
    Case('scene', toml('offset = 0 ', 'offset = -30000 '), r'T32.*at most 0.0001 .*correct them'),
    Case('scene', toml('cloud_max = 100', 'cloud_max = 0'), r'cloud_max = 0 has to be above 0'),
    Case('scene', toml('class = "kind"', 'class = ""'), r'\[parcels\]: class is empty: name it'),
    Case('scene', toml('file = "parcels.gpkg"', 'file = ""'), r'\[parcels\]: file is empty'),
    Case('scene', toml('"s2/*.tif"', '""'), r'\[sentinel2\]: files is empty'),
    Case('scene', toml('"ps/*.tif"', '"nowhere/*.tif"'), r'nothing matches nowhere'),
    Case('scene', toml('"L2A"', '"L2B"'), r"level = 'L2B' is not L2A or L1C"),
    Case('scene', toml('bands = []', 'bands = [1, 2]'), r'bands holds 1: write each in quotes'),
    Case('scene', toml('leave_out = []', 'leave_out = ""'), r"leave_out = '' is not a list"),
    Case('scene', toml('leave_out = []', 'leave_it = []'), r'has no key leave_it'),
    Case('scene', toml('[planetscope]', '[planet]'), r'has no key planet: there are .*planetscope'),
    Case('scene', toml('[sentinel2]', '[planet]'), r'has no key planet'),
    Case('scene', toml('[planetscope]', '[planetscope'), r'scene.toml is not TOML.*correct'),
    Case('scene', recode('latin1'), r'scene.toml is not UTF-8 .*save it as UTF-8'),
    Case('scene', recode('utf-16'), r'scene.toml is not UTF-8'),
    Case('scene', toml(r"-?(\d\d)-?(\d\d)'", r"-?(\d\d)(x\d)?'"), r'T32_20210410.tif: no date in'),
    Case('scene', every('s2', in_0_1), r'T32.*at most 0.0001 .*scale = 1 where'),
    Case('scene', every('ps', in_0_1), r'_ps.tif.*at most 0.0001 .*scale = 1 where'),
    Case('scene', image(one, lambda a: a.astype('complex64')), r'holds complex64, not numbers'),
    Case('scene', image(one, same, crs=None), r'T32_20210410.tif has no coordinate system'),
    Case('scene', every('s2', same, crs='EPSG:4326'), r'is in degrees'),
    Case('scene', every('s2', same, transform=flipped), r'T32_20210410.tif does not lie north up'),
    Case('scene', blunt(lambda d: d/one), r'T32_20210410.tif cannot be read.*get it again'),
    Case('scene', blunt(lambda d: d/'s2/T32_20210615.tif', b'II*\0'),
        r'20210615.tif cannot be rea'),
    Case('scene', blunt(lambda d: d/'clouds/cld_20210615.tif'), r'cld_20210615.tif cannot be read'),
    Case('scene', lambda d: (d/'clouds/cld_20210615.tif').unlink(), r'no image of 2021-06-15'),
    Case('scene', own_vrt('s2/T32_20210615.tif'), r'0615.tif is only a reference to other files'),
    Case('scene', own_vrt('ps/20210820_ps.tif'), r'20210820_ps.tif is only a reference'),
    Case('scene', own_vrt('clouds/cld_20210615.tif'), r'cld_20210615.tif is only a reference'),
    Case('scene', cloud(200), r'cld_20210410.tif holds 200, not cloud .*correct cloud_max'),
    Case('scene', cloud(-5, 'int16'), r'cld_20210410.tif holds -5'),
    Case('scene', cloud(np.nan, 'float32'), r'cld_20210410.tif holds nan'),
    Case('scene', lambda d: (d/one).rename(d/'s2/T32_20211345.tif'),
        r'T32_20211345.tif: no date in'),
    Case('scene', lambda d: (d/one).rename(d/'s2/T32_10210410.tif'),
        r'T32_10210410.tif: no date in'),
    Case('scene', toml("date = '", "date = 'tag:NOT_THERE' #"),
        r"no date in '' by 'tag:NOT_THERE'"),
    Case('scene', toml('[planetscope]', '[landsat]\n[planetscope]'), r'has the tables \[planet'),
    Case('scene', toml('[planetscope]', '[second]'), r'\[second\]: name is empty'),
    Case('scene', toml('[planetscope]', '[second]\nname = "landsat"'), r'write \[landsat\]'),
    Case('scene', toml('[planetscope]', '[second]\nname = "a b"'), r'a name is a word'),
    Case('scene', toml('bands = []', 'bands = ["B2", "B3", "NIR"]'), r'NIR is not a band of'),
    Case('scene', toml('use = []', 'use = ["B10"]'), r'B10 is not a band of Sentinel-2: there are'),
    Case('scene', toml('use = []', 'use = [2]'), r'use holds 2: write each in quotes'),
    Case('scene', toml('window = 3 ', 'window = 2 '), r'window=2 is not an odd number'),
    Case('scene', toml('max_days = 0 ', 'max_days = -1 '), r'max_days = -1 is below 0'),
    Case('scene', toml('min_pixels = 10', 'min_pixels = "many"'), r"= 'many' is not a number"),
    Case('scene', toml('[parcels.classes]', '[parcels.classes]\nrye = "cereal"'),
        r'\[parcels.classes\] names rye, which column kind does not have: barley, maize, wheat'),
    Case('scene', toml('[parcels.classes]', '[parcels.classes]\nwheat = 1'),
        r'wheat = 1 is not a name in quotes'),
    accepted('scene', lambda d: (d/'scene.toml').write_text(
        (d/'scene.toml').read_text().partition('[planetscope]')[0]), 'Sentinel-2 may come alone'),
    accepted('scene', recode('utf-8-sig'), 'Windows begins a text with a byte order mark'),
    accepted('scene', toml('licence = ""', '#'), 'what is left out has the template\'s value'),
    accepted('scene', image(one, lambda a: a*0), 'an empty date is masked, and gives no pairs'),
    accepted('scene', cloud(100), 'all cloud is a possible day'),
    accepted('scene', image('clouds/cld_20210410.tif', lambda a: a*0+np.uint8(255), nodata=255),
        'clouds that are not known count as certain')]

def stack(change):
    "Change the array of the stack"
    def go(d):
        path = d/'s2/bands.npy'
        a = np.load(path)
        np.save(path, change(a))
    return go

def key(name, value):
    "Another value of a key of the stack"
    def go(d):
        path = d/'scene.toml'
        lines = path.read_text().splitlines()
        at = [i for i,line in enumerate(lines) if line.startswith(f'{name} = ')]
        lines[at[0]] = f'{name} = {value}'
        path.write_text('\n'.join(lines))
    return go

days3 = '["2021-04-10", "2021-06-15", "{}"]'

stacks = [
    Case('stack', key('dates', days3.format('2021-06-15')), r'dates: a date appears twice.*remove'),
    Case('stack', key('dates', days3.format('01/03/2018')),
        r"the date '01/03/2018' is not written"),
    Case('stack', key('dates', days3.format('NaT')), r"the date 'NaT'"),
    Case('stack', key('dates', days3.format('2021-02-30')),
        r"'2021-02-30' is not a day of the cal"),
    Case('stack', key('dates', '[1, 2, 3]'), r'dates: the date 1 is not written as 2018-03-01'),
    Case('stack', key('dates', '["2021-04-10"]'), r'bands.npy has shape'),
    Case('stack', key('bounds', '[9, 0, 1, 5]'), r'bounds \[9, 0, 1, 5\] are mirrored or empty'),
    Case('stack', key('bounds', '[0, 0, 1]'), r'bounds \[0, 0, 1\] are not four numbers'),
    Case('stack', key('bounds', '["a", 0, 1, 5]'), r'are not four numbers'),
    Case('stack', key('crs', '"UTM 33"'), r"crs: coordinate system 'UTM 33' is not known"),
    Case('stack', key('crs', '""'), r'a stack needs crs'),
    Case('stack', key('stack', '"s2/no.npy"'), r'no.npy is missing: correct `stack`'),
    Case('stack', blunt(lambda d: d/'s2/bands.npy'), r'bands.npy cannot be read'),
    Case('stack', stack(lambda a: a[0]), r'bands.npy has shape .* not \(3 dates'),
    Case('stack', stack(lambda a: a.astype(str)), r'bands.npy holds <U.*, not numbers'),
    Case('stack', stack(in_0_1), r'bands.npy: every reflectance is at most 0.0001'),
    accepted('stack', key('dates', '[2021-04-10, 2021-06-15, 2021-08-20]'), 'TOML knows dates'),
    accepted('stack', key('dates', '["20210410", "20210615", "20210820"]'), 'read in one way only'),
    accepted('stack', stack(lambda a: a.astype('float64')), 'floats of the same scale are fine')]

def gpkg(d): return d/'parcels.gpkg'
def of_parcels(change): return edit_parcels(change, gpkg)

def with_ids(values):
    "A column of ids that scene.toml names"
    def go(d):
        edit_toml(d, 'id = ""', 'id = "number"')
        of_parcels(lambda g: g.assign(number=(values*9)[:len(g)]))(d)
    return go

def as_csv(d):
    (d/'parcels.csv').write_text('kind\nwheat\n')
    edit_toml(d, 'parcels.gpkg', 'parcels.csv')

def no_crs(d):
    g = gpd.read_file(gpkg(d)).set_crs(None, allow_override=True)
    g.to_file(d/'parcels.shp')
    edit_toml(d, 'parcels.gpkg', 'parcels.shp')

bow = Polygon([(9, 50), (9.1, 50.1), (9.1, 50), (9, 50.1)])

parcel_files = [
    Case('parcels', of_parcels(lambda g: g[:0]), r'parcels.gpkg: no parcel is left: look at'),
    Case('parcels', of_parcels(lambda g: g.assign(kind=None)), r'no parcel is left'),
    Case('parcels', as_csv, r'parcels.csv has no geometry: parcels are polygons'),
    Case('parcels', no_crs, r'parcels.shp has no coordinate system'),
    Case('parcels', lambda d: gpkg(d).unlink(), r'parcels.gpkg cannot be read as parcels'),
    Case('parcels', blunt(gpkg, b'<html>'), r'parcels.gpkg cannot be read as parcels'),
    Case('parcels', of_parcels(lambda g: g.set_geometry(g.centroid)), r'parcels are polygons'),
    Case('parcels', of_parcels(lambda g: g.set_geometry([bow]*len(g))), r'is not valid.*fix it'),
    Case('parcels', of_parcels(lambda g: g.set_geometry([None]*len(g))), r'is not valid.*fix'),
    Case('parcels', of_parcels(lambda g: g.set_crs(32632, allow_override=True)),
        r'no field lies in the Sentinel-2 image'),
    Case('parcels', with_ids([1, 1]), r'number 1 appears twice: number each once'),
    Case('parcels', with_ids([-1, 2, 3, 4, 5, 6, 7, 8, 9]), r'column number has to hold whole'),
    Case('parcels', with_ids([2**32+i for i in range(9)]), r'column number has to hold whole'),
    Case('parcels', with_ids([None, 2, 3, 4, 5, 6, 7, 8, 9]), r'with none missing; leave id'),
    Case('parcels', with_ids(list('abcdefghi')), r'column number has to hold whole'),
    Case('parcels', of_parcels(lambda g: pd.concat([g]*40).assign(
        kind=[f'crop {i}' for i in range(40*len(g))])), r'parcels.gpkg: kind: 360 classes'),
    accepted('parcels', of_parcels(lambda g: g.assign(kind=np.arange(len(g))%3)),
        'a number may be the name of a crop'),
    accepted('parcels', with_ids([5, 6, 7, 8, 9, 10, 11, 12, 13]), 'any whole numbers will do')]

# ---------------------------------------------------------------- tables and series
def put(**values): return lambda df: df.assign(**values)

def zone(df): return pd.to_datetime(df.day).dt.tz_localize('Europe/Berlin')

def with_nan(df):
    df.loc[0, 'b3'] = np.nan
    return df

def two_hours(df):
    "Two images of one day"
    return df.assign(day=['2018-03-01T10:00', '2018-03-01T12:00', '2018-05-01']*6)

tables = [
    Case('table', lambda df: df[:0], r'has no rows: was the right one read'),
    Case('table', lambda df: df.drop(columns='b3'), r'has no column b3: it has parcel'),
    Case('table', lambda df: pd.concat([df, df[['b3']]], axis=1), r'Column b3 appears twice'),
    Case('table', put(b3='high'), r'Column b3 holds .*, not numbers: convert it'),
    Case('table', put(b3='1,5'), r'Column b3 holds .*, not numbers: convert it'),
    Case('table', put(b3=True), r'Column b3 holds bool, not numbers'),
    Case('table', put(**{b: np.nan for b in names}), r'The bands have no value at all'),
    Case('table', put(b3=np.nan), r'No row of the table is whole'),
    Case('table', lambda df: df.assign(**df[names]/1e4), r'look like reflectances in 0..1'),
    Case('table', put(b3=-9999.), r'Column b3 holds -9999 in row 0.*put NaN'),
    Case('table', put(b3=65535), r'Column b3 holds 65535 in row 0'),
    Case('table', put(b3=np.inf), r'Column b3 holds inf'),
    Case('table', put(day='01/03/2018'), r"Column day: the date '01/03/2018' is not written as 20"),
    Case('table', put(day=17591), r'Column day: the date 17591 is not written as 2018-03-01'),
    Case('table', put(day=1.5e9), r'Column day: the date 1500000000.0 is not a date'),
    Case('table', put(day='2018-13-45'), r'is not a day of the calendar'),
    Case('table', put(day='NaT'), r"the date 'NaT' is not written"),
    Case('table', put(day=zone), r'has the time zone \+0[12]:00: convert it to UTC'),
    Case('table', put(day='2018-03-01T00:30+02:00'), r'has the time zone \+02:00'),
    Case('table', two_hours, r'A parcel and date appear twice: 0 on 2018-03-01; keep one row'),
    Case('table', put(day='2018-03-01'), r'A parcel and date appear twice'),
    Case('table', put(crop=['rye', 'oats']*9), r'has several classes in column crop'),
    Case('table', put(crop=lambda df: [c if c=='rye' else 1 for c in df.crop]), r'crop mixes text'),
    Case('table', put(parcel=[0]*9+['a']*9), r'Column parcel mixes text and numbers: convert'),
    Case('table', lambda df: pd.concat([df[:1]]*300).assign(
        parcel=range(300), crop=range(300)), r'Column crop: 300 classes are more than 255'),
    accepted('table', put(day=20180301, parcel=range(18)), '20180301 is read in one way only'),
    accepted('table', with_nan, 'a row with a gap is left out, and the mask says so'),
    accepted('table', put(b3=-20.), 'a little below 0 is noise of the correction, and becomes 0'),
    accepted('table', put(day=lambda df: pd.to_datetime(df.day)), 'dates of pandas are dates'),
    accepted('table', put(day=lambda df: df.day+'T23:59:59Z'), 'UTC is what image names use'),
    accepted('table', put(crop=[i//3%2 for i in range(18)]), 'a number may be the name of a crop'),
    accepted('table', lambda df: df.assign(**df[names].astype('Int64')), 'integers with gaps')]

def array(name, change):
    "Change one array of the series"
    return lambda s: s|{name: change(np.asarray(s[name]))}

def set_first(value, dtype=float):
    def go(a):
        a = a.astype(dtype)
        a.flat[0] = value
        return a
    return go

series_cases = [
    Case('series', array('label', lambda a: a[:4]), r'label has shape \(4,\), and 6 series'),
    Case('series', array('mask', lambda a: a[:,:2]), r'mask has shape \(6, 2\), and 6 series of 3'),
    Case('series', array('date', lambda a: a[0]), r'date has shape \(3,\)'),
    Case('series', array('time_series', lambda a: a[...,:11]), r'time_series has shape'),
    Case('series', lambda s: {k: v for k,v in s.items() if k!='date'}, r'lacks date: add it'),
    Case('series', array('label', set_first(257, int)), r'label holds 257.*from 1 to 2'),
    Case('series', array('label', set_first(3, int)), r'label holds 3: .* from 1 to 2'),
    Case('series', array('label', set_first(0, int)), r'label holds 0'),
    Case('series', array('label', set_first(np.nan)), r'label holds nan'),
    Case('series', array('label', lambda a: a.astype(str)), r'label has to hold whole numbers'),
    Case('series', array('field_id', set_first(2**32, 'int64')), r'field_id holds 4294967296'),
    Case('series', array('field_id', set_first(-7, int)), r'field_id holds -7'),
    Case('series', array('field_id', set_first(np.nan)), r'field_id holds nan'),
    Case('series', array('field_id', set_first(-1, int)), r'field_id is -1: .*number them from 0'),
    Case('series', array('time_series', in_0_1), r'looks like reflectances in 0..1: multiply'),
    Case('series', array('time_series', set_first(np.nan)), r'time_series holds NaN.*set the mask'),
    Case('series', array('time_series', lambda a: a.astype(str)), r'time_series holds <U'),
    Case('series', array('mask', set_first(2)), r'mask holds 2'),
    Case('series', array('date', lambda a: a*0+17_600), r'series 0 has two images of one day'),
    Case('series', array('date', set_first(-5, int)), r'date holds -5'),
    Case('series', array('date', lambda a: a+20_180_301), r'date holds 20197'),
    Case('series', array('date', lambda a: a.astype('datetime64[D]')), r'holds datetime64'),
    Case('series', lambda s: s|dict(cloud=np.full((6, 3), 900)), r'cloud holds 900'),
    Case('series', lambda s: {k: v if k=='classes' else v[:0] for k,v in s.items()}, r'no series'),
    Case('series', lambda s: s|dict(classes=[str(i) for i in range(300)]), r'300 classes are more'),
    accepted('series', array('mask', set_first(0)), 'what the mask leaves out is not looked at'),
    accepted('series', array('label', set_first(1.)), 'whole numbers may come as floats'),
    accepted('series', array('date', lambda a: a*0), 'dates may be unknown, as in published files')]

# ---------------------------------------------------------------- BreizhCrops
def mapping(d): return d/'classmapping.csv'
def index(d): return d/'2018/L1C/frh01.csv'
def region(d): return d/'2018/L1C/frh01.h5'

def h5(change):
    "Change the array of parcel 7"
    def go(d):
        with h5py.File(region(d), 'r+') as h:
            a = h['csv/7.csv'][:]
            del h['csv/7.csv']
            change(h, a)
    return go

def instead(value):
    return h5(lambda h, a: h.create_dataset('csv/7.csv', data=value(a)))

def other_h5(d):
    "A copy of the region, to be linked to"
    shutil.copy(region(d), region(d).with_name('other.h5'))

def elsewhere(d):
    other_h5(d)
    h5(lambda h, a: h.__setitem__('csv/7.csv', h5py.ExternalLink('other.h5', 'csv/7.csv')))(d)

def linked_group(d):
    "The group that the parcels are in"
    other_h5(d)
    with h5py.File(region(d), 'w') as h: h['csv'] = h5py.ExternalLink('other.h5', 'csv')

def virtual_parcel(d):
    def change(h, a):
        layout = h5py.VirtualLayout(a.shape, a.dtype)
        layout[...] = h5py.VirtualSource('other.h5', 'csv/7.csv', a.shape)
        h.create_virtual_dataset('csv/7.csv', layout)
    other_h5(d)
    h5(change)(d)

def raw_parcel(d):
    beside = d/'7.bin'
    def change(h, a):
        beside.write_bytes(a.tobytes())
        where = [(str(beside), 0, a.nbytes)]
        h.create_dataset('csv/7.csv', a.shape, a.dtype, external=where)
    h5(change)(d)

def text_of(path, old, new):
    return lambda d: path(d).write_text(path(d).read_text().replace(old, new))

def in_zip(old, new):
    "Other bytes in the zip's members"
    def go(d):
        zipped(d)
        path = d/'2018/L1C/frh01.zip'
        with zipfile.ZipFile(path) as z: all_files = {n: z.read(n) for n in z.namelist()}
        with zipfile.ZipFile(path, 'w') as z:
            for name,content in all_files.items(): z.writestr(name, content.replace(old, new))
    return go

def cut_zip(d):
    zipped(d)
    truncate(d/'2018/L1C/frh01.zip', 300)

def bad_byte(d):
    zipped(d)
    path = d/'2018/L1C/frh01.zip'
    a = bytearray(path.read_bytes())
    a[200] ^= 1
    path.write_bytes(a)

breizh = [
    Case('breizhcrops', lambda d: mapping(d).unlink(), r'no classmapping.csv'),
    Case('breizhcrops', lambda d: shutil.copytree(d/'2018', d/'2018/again') and shutil.copy(
        mapping(d), d/'2018/again'), r'several folders hold BreizhCrops .*name one'),
    Case('breizhcrops', text_of(index, 'csv/8.csv', ''), r'frh01.csv: path is missing in a row'),
    Case('breizhcrops', blunt(mapping), r'classmapping.csv cannot be read as CSV.*get it again'),
    Case('breizhcrops', blunt(mapping, b'<html>'), r'classmapping.csv has no column code'),
    Case('breizhcrops', blunt(mapping, b'id,code\n1,BTH\n2,BTH\n'), r'code BTH appears twice'),
    Case('breizhcrops', blunt(mapping, b'id,code\nx,BTH\n'), r'classmapping.csv: id has to hold'),
    Case('breizhcrops', blunt(index), r'frh01.csv cannot be read as CSV'),
    Case('breizhcrops', blunt(index, b'\xff\xfe\x00'), r'frh01.csv cannot be read as CSV'),
    Case('breizhcrops', blunt(index, b'id,path\n1,a\n'), r'frh01.csv has no column CODE_CULTU'),
    Case('breizhcrops', text_of(index, '7,BTH', '-7,BTH'), r'frh01.csv: id holds -7'),
    Case('breizhcrops', text_of(index, '7,BTH', '4294967303,BTH'), r'frh01.csv: id holds 42949673'),
    Case('breizhcrops', text_of(index, '7,BTH', ',BTH'), r'frh01.csv: id holds nan'),
    Case('breizhcrops', text_of(index, '8,BTH', '7,BTH'), r'frh01.csv: id 7 appears twice'),
    Case('breizhcrops', text_of(index, ',3', ',many'), r'sequencelength has to hold whole numbers'),
    Case('breizhcrops', text_of(index, 'BTH', 'ZZZ'), r'no parcel of the six classes'),
    Case('breizhcrops', text_of(index, 'csv/8', 'csv/9'), r'lacks the parcel csv/9.csv'),
    Case('breizhcrops', lambda d: region(d).unlink(), r'frh01.zip are both missing'),
    Case('breizhcrops', lambda d: truncate(region(d), 900), r'frh01.h5 cannot be read'),
    Case('breizhcrops', blunt(region, b'<html>'), r'frh01.h5 cannot be read'),
    Case('breizhcrops', instead(lambda a: a[:0]), r'csv/7.csv has no rows: get the file again'),
    Case('breizhcrops', instead(lambda a: a[:,:13]), r'csv/7.csv has shape \(3, 13\)'),
    Case('breizhcrops', instead(lambda a: a[0]), r'csv/7.csv has shape \(17,\)'),
    Case('breizhcrops', instead(lambda a: a*np.nan), r'csv/7.csv holds NaN'),
    Case('breizhcrops', instead(lambda a: a/1e4), r'csv/7.csv holds reflectances in 0..1'),
    Case('breizhcrops', instead(lambda a: np.where(a<4001, -9999, a)),
        r'csv/7.csv holds values be'),
    Case('breizhcrops', h5(lambda h, a: h.create_group('csv/7.csv')), r'csv/7.csv is a group'),
    Case('breizhcrops', h5(lambda h, a: h.__setitem__('csv/7.csv', h5py.SoftLink('/no'))),
        r'lacks the parcel csv/7.csv'),
    Case('breizhcrops', elsewhere, r'csv/7.csv is a link to other.h5: copy its data into this'),
    Case('breizhcrops', linked_group, r'csv/7.csv is a link to other.h5'),
    Case('breizhcrops', virtual_parcel, r'csv/7.csv keeps its numbers in other files: copy'),
    Case('breizhcrops', raw_parcel, r'csv/7.csv keeps its numbers in other files'),
    Case('breizhcrops', instead(lambda a: a/[*[1]*16, 1e3]),
        r'csv/7.csv: doa 1.52e\+15 to .* is not nanoseconds since 1970 .micro-'),
    Case('breizhcrops', instead(lambda a: a/[*[1]*16, 1e6]), r'csv/7.csv: doa .* not nanoseconds'),
    Case('breizhcrops', cut_zip, r'frh01.zip cannot be read.*get it again'),
    Case('breizhcrops', bad_byte, r'frh01.zip.*cannot be read.*get it again'),
    Case('breizhcrops', in_zip(b'B11', b'BXX'), r'csv/7.csv has no column B11'),
    Case('breizhcrops', in_zip(b'2018-', b'long ago '), r'csv/7.csv holds text'),
    Case('breizhcrops', in_zip(b'2018-03-', b'03/2018/'), r'csv/7.csv holds text'),
    Case('breizhcrops', instead(lambda a: a/[*[1]*16, 1e9]), r'csv/7.csv: doa .* not nanoseconds'),
    accepted('breizhcrops', zipped, 'the zip of 2018 is the same data'),
    accepted('breizhcrops', lambda d: (d/'2018/L1C/notes.txt').write_text('x'), 'is not read')]

# ---------------------------------------------------------------- splits, dates, days
splits = [
    Case('split', blunt(lambda d: d/'split.json'), r'split.json is damaged.*split again'),
    Case('split', blunt(lambda d: d/'split.json', b'{"parts": 1}'), r'split.json is damaged'),
    Case('split', blunt(lambda d: d/'split.json', b'{"parts": {"val": []}}'), r'has no part train')]

files = tiles+denethor_labels+scenes+stacks+parcel_files+breizh+splits
said = [case for case in files if case.says]
taken = [case for case in files if not case.says]

def ids(cases): return [f'{c.kind}-{i}' for i,c in enumerate(cases)]

@pytest.mark.parametrize('case', said, ids=ids(said))
def test_a_wrong_file_is_named(good, tmp_path, case):
    d = tmp_path/'d'
    shutil.copytree(good(case.kind), d)
    case.change(d)
    with pytest.raises((ValueError, OSError), match=case.says):
        readers[case.kind](d)

@pytest.mark.parametrize('case', taken, ids=ids(taken))
def test_an_odd_file_is_accepted(good, tmp_path, case):
    d = tmp_path/'d'
    shutil.copytree(good(case.kind), d)
    case.change(d)
    assert readers[case.kind](d) is not None, case.why

@pytest.mark.parametrize('case', tables, ids=ids(tables))
def test_tables(case):
    df = case.change(make_table())
    if case.says:
        with pytest.raises(ValueError, match=case.says): readers['table'](df)
    else:
        assert len(readers['table'](df)['label']), case.why

@pytest.mark.parametrize('case', series_cases, ids=ids(series_cases))
def test_series(case, tmp_path):
    s = case.change(make_series())
    if case.says:
        with pytest.raises(ValueError, match=case.says): own_task(tmp_path, s, 'a toy')
        assert not list(tmp_path.iterdir())
    else:
        assert own_task(tmp_path, s, 'a toy'), case.why

def test_published_series_name_neither_dates_nor_fields(tmp_path):
    s = make_series()
    s |= dict(date=s['date']*0, field_id=np.full(6, -1))
    about = dict(classes=s.pop('classes'))
    assert write_series(tmp_path/'train.h5', s, **about)[1]['n']==3

# ---------------------------------------------------------------- what a gate makes of it
def test_declared_nodata_becomes_0(good, tmp_path):
    for values,nodata in ((signed, -9999), (filled, 65535)):
        d = tmp_path/str(nodata)
        shutil.copytree(good('tile'), d)
        day(values, nodata=nodata)(d)
        first = read_tile(d).images[1][0]
        assert first.dtype=='uint16'
        assert (first[50]==0).all()
        assert (first[51]==700).all()

@pytest.mark.parametrize('dtypes', [('uint16', 'int16'), ('int32', 'uint16'), ('int16', 'uint32')])
def test_days_of_mixed_type_read_alike(good, tmp_path, dtypes):
    "Whatever integers a day holds, and whole or by windows"
    d = tmp_path/'d'
    shutil.copytree(good('tile'), d)
    values = np.arange(40_000).reshape(4, 100, 100)%30_000
    for which,dtype in zip((sr, second), dtypes): day(values.astype(dtype), which)(d)
    ps = open_tile(d).second
    for i in range(len(ps.dates)):
        assert ps[i].dtype=='uint16'
        assert (ps[i]==values.transpose(1, 2, 0)).all()
        assert (ps.read(i, slice(90, 120), slice(0, 7))==ps[i][90:,:7]).all()

def test_time_zones_shift_no_day():
    for text in ('2018-03-01', '20180301', '2018-03-01T23:59Z', '2018-03-01T00:00:00+00:00'):
        assert day_of(text, 'f')==np.datetime64('2018-03-01')

def test_one_of_two_published_files(smoke, tmp_path):
    "The tile beside it is not taken instead, without a word"
    train,val = authors_files[1]
    (tmp_path/train).write_bytes(b'x')
    with pytest.raises(FileNotFoundError, match=f'one of the two .*not {val}: get it from Zenodo'):
        series(1, OnDisk(tmp_path), smoke.recipe, 0)

def test_no_pixel_of_a_part(smoke, tmp_path):
    tile = open_tile(smoke.data.get())
    with pytest.raises(ValueError, match='labels.geojson: no pixel of the 1 fields of a part'):
        pixel_series(tile, [2**31-1], 5, 0, tmp_path/'x')

wrong_crowds = [
    (dict(cloud=1), r'Crowd has no option cloud: it has side=280.0, dates=144'),
    (dict(dx=3.), r'Crowd has no option dx'),
    (dict(clouds='many'), r"option clouds='many' is not in 0..1.5"),
    (dict(dates=0), r'option dates=0 is not a whole number in 1..363'),
    (dict(spread=float('nan')), r'option spread=nan is not in'),
    (dict(ps='Raw'), r"option ps='Raw' is not one of fusion, raw"),
    (dict(region='bavaria'), r"option region='bavaria' is not one of")]

@pytest.mark.parametrize('changes,says', wrong_crowds, ids=[next(iter(c)) for c,_ in wrong_crowds])
def test_options_of_a_crowd(tmp_path, changes, says):
    with pytest.raises(ValueError, match=says): write_published(tmp_path/'d', **changes)
    assert not (tmp_path/'d').exists()

def test_what_was_accepted(good):
    "Lines for `cropnb check`: one for all files that are alike"
    d = good('tile')
    lines = gates.accepted([sr(d), second(d), bands(d)])
    assert lines[0].startswith('2 of 4 bands of uint16, 0 is missing, such as sr.tif')
    assert lines[1].startswith('1 of 12 bands of uint16')

def test_a_missing_date_is_paired_with_nothing():
    days = np.array(['2018-03-01', 'NaT'], 'datetime64[D]')
    for a,b,sensor in ((days, days[:1], 'first'), (days[:1], days, 'second')):
        says = f'A date of the {sensor} sensor is missing'
        with pytest.raises(ValueError, match=says): match_days(a, b)

# ---------------------------------------------------------------- cropnb check
def test_check_runs_the_same_gate(good, tmp_path):
    d = tmp_path/'d'
    shutil.copytree(good('tile'), d)
    day(reflectance)(d)
    with pytest.raises(SystemExit, match='cropnb check: .*sr.tif holds float32'):
        main(['check', str(d)])

def test_check_names_a_constant_band(good, tmp_path, capsys):
    "With file and sensor, before anything is drawn"
    d = tmp_path/'d'
    shutil.copytree(good('scene'), d)
    def flat(band):
        def go(a):
            a[band] = 900
            return a
        return go
    image('s2/T32_20210615.tif', flat(2))(d)
    image('ps/20210820_ps.tif', flat(3))(d)
    main(['check', str(d)])
    out = capsys.readouterr().out
    assert 'Sentinel-2, ' in out
    assert 'T32_20210615.tif, 2021-06-15: B03 has one value' in out
    assert '20210820_ps.tif, 2021-08-20: nir has one value' in out
    assert out.count('has one value')==2

# ---------------------------------------------------------------- downloads
class Host(http.server.BaseHTTPRequestHandler):
    "Answers as it was told"
    answer, asked = None, []
    def log_message(self, *a): pass
    def do_GET(self):
        Host.asked.append(dict(self.headers))
        status,headers,body = Host.answer(self.headers)
        self.send_response(status)
        for name,value in headers.items(): self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

@pytest.fixture(scope='module')
def url():
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Host)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()

body = b'id,path\n'+b'7,csv/7.csv\n'*20
size = len(body)

def plain(content=body, status=200, **headers):
    "The same answer whatever is asked"
    said = {'Content-Length': str(len(content))}
    said |= {name.replace('_', '-'): value for name,value in headers.items()}
    said = {name: value for name,value in said.items() if value is not None}
    return lambda asked: (status, said, content)

def polite(content=body, tag='"1"'):
    "A host that knows ranges and If-Range"
    def go(asked):
        start = int((asked['Range'] or 'bytes=0-')[6:-1])
        if asked['If-Range'] not in (None, tag): start = 0
        headers = {'ETag': tag, 'Content-Length': str(len(content)-start)}
        if start>=len(content):
            return 416, {'Content-Range': f'bytes */{len(content)}', 'Content-Length': '0'}, b''
        headers['Content-Range'] = f'bytes {start}-{len(content)-1}/{len(content)}'
        return 206 if start else 200, headers, content[start:]
    return go

def rest(start, content_range):
    return plain(body[start:], 206, Content_Range=content_range)

@functools.cache
def a_zip():
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w') as z: z.writestr('csv/7.csv', body)
    return out.getvalue()

Get = namedtuple('Get', 'name had answer says why', defaults=(None, None))

page = b'\n <!DOCTYPE html><html>Please log in</html>'
downloads = [
    Get('a.csv', 0, plain(status=404), r'a.csv: the host answers 404'),
    Get('a.csv', 0, plain(status=503), r'a.csv: the host answers 503 .*try again later'),
    Get('a.csv', 0, plain(status=416), r'a.csv: the host answers 416'),
    Get('a.csv', 9, plain(status=416), r'a.csv: the host answers 416'),
    Get('a.csv', 0, plain(Content_Length=None), r'does not say how large the file is'),
    Get('a.csv', 0, plain(Content_Length='-5'), r'does not say how large the file is \(-5\)'),
    Get('a.csv', 0, plain(Content_Length='many'), r'does not say how large the file is \(many\)'),
    Get('a.csv', 0, plain(Content_Length='9'*15), r'bytes are to come.*make room'),
    Get('a.csv', 0, plain(Content_Length='9'*40), r'does not say how large'),
    Get('a.csv', 0, plain(Content_Length=str(size+5)),
        r'of 253 bytes came|IncompleteRead|came; run'),
    Get('a.csv', 9, rest(5, f'bytes 5-{size-1}/{size}'), r'host sent bytes 5-.*remove the .part'),
    Get('a.csv', 9, rest(9, None), r'a part of unknown place: remove the .part'),
    Get('a.csv', 9, rest(9, f'bytes 9-{size-9}/{size}'), r'not the rest of the file'),
    Get('a.csv', 9, rest(9, f'bytes 9-{size-1}/{size+7}'), r'not the rest of the file'),
    Get('a.csv', 9, rest(9, 'nonsense'), r'host sent nonsense'),
    Get('a.csv', 0, plain(page), r'a web page came, not a.csv.*with a browser'),
    Get('a.zip', 0, plain(page), r'a web page came, not a.zip'),
    Get('a.zip', 0, plain(body), r'not a .zip file .*check the address'),
    Get('a.zip', 0, plain(a_zip()[:-30]), r'the end of the zip is missing: get it again'),
    Get('a.h5.tar.gz', 0, plain(a_zip()), r'not a .gz file'),
    Get('a.csv', 0, plain(), why='200 with a length'),
    Get('a.csv', 9, plain(), why='a host that knows no ranges begins anew'),
    Get('a.csv', 9, polite(), why='the rest of the same file'),
    Get('a.csv', 9, polite(tag='"2"'), why='a file that changed comes whole'),
    Get('a.csv', size, polite(), why='416: ours is as long as the file, and is kept'),
    Get('a.csv', size, plain(status=416), r'a.csv: the host answers 416'),
    Get('a.zip', len(page), polite(page), r'a.zip: what came is not a .zip file'),
    Get('a.csv', size+50, polite(), why='416: ours is longer than the file, so it comes again'),
    Get('a.zip', 0, polite(a_zip()), why='a whole archive')]

@pytest.mark.parametrize('case', downloads, ids=[f'{c.name}-{i}' for i,c in enumerate(downloads)])
def test_downloads(url, tmp_path, case):
    "What was there before is of version 1; what is kept is a whole file of one version"
    Host.answer = staticmethod(case.answer)
    path = tmp_path/case.name
    if case.had:
        before = (body*2)[:case.had] if case.had>20 else b'old bytes'
        tmp_path.joinpath(f'{case.name}.part').write_bytes(before)
        same_version = case.why=='the rest of the same file'
        if same_version: tmp_path.joinpath(f'{case.name}.part').write_bytes(body[:9])
        tmp_path.joinpath(f'{case.name}.part.json').write_text('{"mark": "\\"1\\""}')
    if case.says:
        with pytest.raises((OSError, http.client.HTTPException), match=case.says):
            breizhcrops.download(f'{url}/{case.name}', path, chunk=50)
        assert not path.exists()
    else:
        breizhcrops.download(f'{url}/{case.name}', path, chunk=50)
        assert path.read_bytes() in (body, a_zip())
        assert [f.name for f in tmp_path.iterdir()]==[case.name]

def test_a_part_that_is_whole_is_not_fetched_again(url, tmp_path):
    "One question, answered by 416 and the size; of another version or size it comes again"
    for had,tag,asks in ((body, '"1"', 1), (body, '"2"', 2), (body+b'x', '"1"', 2)):
        (tmp_path/'a.csv.part').write_bytes(had)
        (tmp_path/'a.csv.part.json').write_text('{"mark": "\\"1\\""}')
        Host.asked, Host.answer = [], staticmethod(only_416(tag))
        breizhcrops.download(f'{url}/a.csv', tmp_path/'a.csv')
        assert (tmp_path/'a.csv').read_bytes()==body
        assert len(Host.asked)==asks
        (tmp_path/'a.csv').unlink()

def only_416(tag):
    "A host that looks at the range alone"
    def go(asked):
        status,headers,content = polite(tag=tag)(dict(asked)|{'If-Range': None} if asked['Range']
                                                 else {'Range': None, 'If-Range': None})
        return status, headers|{'ETag': tag}, content
    return go

def test_a_part_of_unknown_origin_is_not_continued(url, tmp_path):
    "A .part without the mark of its file: an earlier release left those"
    (tmp_path/'a.csv.part').write_bytes(b'something else')
    Host.answer = staticmethod(polite())
    breizhcrops.download(f'{url}/a.csv', tmp_path/'a.csv')
    assert (tmp_path/'a.csv').read_bytes()==body

def test_a_truncated_archive_is_named(tmp_path):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode='w:gz') as f:
        about = tarfile.TarInfo('kermaux.h5')
        about.size = 90_000
        f.addfile(about, io.BytesIO(np.random.default_rng(0).bytes(90_000)))
    archive = tmp_path/'kermaux.h5.tar.gz'
    for n in (50, 40_000):
        archive.write_bytes(out.getvalue()[:n])
        with pytest.raises(OSError, match='tar.gz cannot be unpacked .*get it again'):
            breizhcrops._unpack(archive, check_size=False)

def test_the_command_line_says_it_in_one_line(url, tmp_path, monkeypatch):
    Host.answer = staticmethod(plain(page))
    monkeypatch.setattr(breizhcrops, 'get', lambda folder, *_: breizhcrops.download(
        f'{url}/a.csv', tmp_path/'a.csv'))
    with pytest.raises(SystemExit, match='cropnb breizhcrops: .*a web page came'):
        main(['breizhcrops', str(tmp_path)])

def test_enough_cases():
    "The counts of the closing note"
    everything = files+tables+series_cases+downloads
    assert len(everything)>=250
    assert all(bool(case.says)!=bool(case.why) for case in everything)
