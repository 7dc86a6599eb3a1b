"Cubes: as written by several tools, refused where wrong, bounded in memory, and real ones"
import json, shutil, subprocess, sys
from pathlib import Path
import geopandas as gpd, h5py, numpy as np, pandas as pd, pytest, xarray as xr
from shapely.geometry import box
from conftest import root
from cropnb.engine.bands import sensors
from cropnb.downstream import training
from cropnb.engine.recipes import recipe
from cropnb.maps.blocks import state_of
from cropnb.evaluate import scores, win_matrix
from cropnb.prepare.seasons import own_task
from cropnb.pretrain import encoders
from cropnb.sources.cube import Cube, open_cube, open_dataset, parcels_of_labels
from cropnb.sources.table import series_from_table

four = sensors['sentinel2'].pick(['B02', 'B03', 'B04', 'B08'])
west, north, shape = 600_000, 5_000_000, (12, 10)

def grid(step=10, shape=shape):
    rows, cols = shape
    return dict(y=north-step*(np.arange(rows)+.5), x=west+step*(np.arange(cols)+.5))

def made(dates=3, bands=four.bands, dtype='uint16', seed=0, step=10, shape=shape):
    rng = np.random.default_rng(seed)
    time = np.datetime64('2021-04-01T10:30', 'ns')+np.arange(dates)*np.timedelta64(5, 'D')
    ds = xr.Dataset(coords=dict(time=time, **grid(step, shape)))
    for band in bands:
        values = rng.integers(200, 4000, (dates, *shape)).astype(dtype)
        ds[band] = ('time', 'y', 'x'), values
    return ds.rio.write_crs('EPSG:32632')

expected = np.stack([made()[band].values[1] for band in four.bands], -1)

# ---------------------------------------------------------------- ways of writing
def scaled(ds):
    for band in four.bands: ds[band].attrs.update(scale_factor=.0001, _FillValue=65535)
    return ds

def shifted(ds):
    "Baseline 04.00: reflectance = raw*.0001 - .1"
    out = ds+1000
    for band in four.bands: out[band].attrs.update(scale_factor=.0001, add_offset=-.1)
    return out.assign_attrs(ds.attrs)

def stackstac(ds):
    "One array with a band dimension, coordinates of corners, and the CRS as a coordinate"
    from affine import Affine
    a = ds.drop_vars('spatial_ref').to_dataarray('band').transpose('time', 'band', 'y', 'x')
    a = a.assign_coords(x=a.x-5, y=a.y+5, epsg=32632)
    a.attrs['transform'] = Affine(10, 0, west, 0, -10, north)
    return a.rename('stackstac-1')

def openeo(ds):
    "Dimensions t, y, x and the CRS in a variable `crs`"
    ds = ds.rename(time='t', spatial_ref='crs')
    for band in four.bands:
        ds[band].attrs['grid_mapping'] = 'crs'
        ds[band].encoding.pop('grid_mapping', None)
    return ds

ways = dict(
    plain=lambda ds: ds,
    scaled=scaled,
    shifted=shifted,
    stackstac=stackstac,
    openeo=openeo,
    int32=lambda ds: ds.astype('int32'),
    south_first=lambda ds: ds.sortby('y'),
    west_last=lambda ds: ds.isel(x=slice(None, None, -1)),
    other_order=lambda ds: ds.transpose('x', 'y', 'time'),
    shuffled_dates=lambda ds: ds.isel(time=[2, 0, 1]),
    common_names=lambda ds: ds.rename(B02='blue', B03='green', B04='red', B08='nir'),
    product_names=lambda ds: ds.rename({band: f'S2-L2A-{band}' for band in four.bands}),
    more_variables=lambda ds: ds.assign(angle=('time', np.ones(3)), B10=ds.B02))

@pytest.mark.parametrize('how', ['memory', 'dask', 'netcdf', 'zarr2', 'zarr3'])
@pytest.mark.parametrize('way', ways)
def test_the_same_values_from_each_way_of_writing(tmp_path, way, how):
    ds = ways[way](made())
    if how=='dask': ds = ds.chunk()
    if how not in ('memory', 'dask'):
        if isinstance(ds, xr.DataArray):
            ds.attrs['transform'] = tuple(ds.attrs['transform'])[:6]
            ds = ds.to_dataset(promote_attrs=True)
        file = tmp_path/'s2'
        if how=='netcdf': ds.to_netcdf(file, engine='h5netcdf')
        else: ds.to_zarr(file, zarr_format=int(how[-1]), consolidated=False)
        ds = file
    cube = Cube(ds, four)
    assert cube.crs=='EPSG:32632'
    assert tuple(cube.transform)[:6]==(10, 0, west, 0, -10, north)
    assert cube.shape==shape
    assert [str(d) for d in cube.dates]==['2021-04-01', '2021-04-06', '2021-04-11']
    assert cube[1].dtype=='uint16'
    assert (cube[1]==expected).all()
    assert (cube.read(1, slice(2, 7), slice(3, None))==expected[2:7,3:]).all()

def test_any_window_is_a_part_of_the_whole():
    fine = made(bands=['B02', 'B03'])
    coarse = made(bands=['B04', 'B08'], step=20, shape=(6, 5), seed=1).sortby('y')
    cube = Cube([fine, coarse], four)
    whole = cube[2]
    assert (whole[::2,::2,2]==whole[1::2,1::2,2]).all()
    rng = np.random.default_rng(0)
    for _ in range(20):
        (top, bottom), (left, right) = (np.sort(rng.integers(0, n+1, 2)) for n in shape)
        rows, cols = slice(top, bottom), slice(left, right)
        assert (cube.read(2, rows, cols)==whole[rows,cols]).all()

def test_decibel_and_power_are_the_same():
    sensor = sensors['sentinel1']
    power = made(bands=['VV', 'VH']).astype('float32')/20_000
    decibel = 10*np.log10(power)
    decibel = decibel.assign_coords(power.coords)
    a, b = Cube(decibel, sensor), Cube(power, sensor, dict(unit='power'))
    assert np.abs(a[0].astype(int)-b[0]).max()<=1
    assert 8000<np.median(a[0])<10_000
    with pytest.raises(ValueError, match='linear power, not dB'): Cube(power, sensor)
    with pytest.raises(ValueError, match='no linear power'):
        Cube(-decibel.clip(max=-1e-3)*1e6, sensor, dict(unit='power'))

# ---------------------------------------------------------------- refused
def without_crs(ds): return ds.drop_vars('spatial_ref')
def first_band_objects(ds): return ds.assign(B02=ds.B02.astype(object))
def irregular(ds): return ds.isel(x=[0, 1, 2, 3, 7])
def text_dates(ds): return ds.assign_coords(time=['1.4.21', '6.4.21', '7.4.21'])
def with_gap(ds): return ds.assign_coords(time=np.array([*ds.time.values[:2], 'NaT'], 'M8[ns]'))
def twice(ds): return ds.assign_coords(time=ds.time.values[[0, 0, 1]])
def lost_band(ds): return ds.assign(B03=ds.B03.astype(float)*np.nan)

wrong = dict(
    no_crs=(without_crs, 'no coordinate system: state it'),
    degrees=(lambda ds: ds.rio.write_crs('EPSG:4326'), 'is in degrees'),
    no_time=(lambda ds: ds.isel(time=0, drop=True), 'none of which is time'),
    time_is_numbers=(lambda ds: ds.assign_coords(time=[1, 2, 3]), 'the date 1 is not'),
    time_is_text=(text_dates, "'1.4.21' is not written as"),
    time_has_no_values=(lambda ds: ds.drop_vars('time'), 'time has no dates'),
    time_is_missing=(with_gap, r'a date is missing \(NaT\)'),
    two_of_a_day=(twice, 'two acquisitions on 2021-04-01: merge'),
    no_band=(lambda ds: ds.drop_vars('B08'), 'no band B08 of sentinel2: it has B02, B03, B04'),
    band_twice=(lambda ds: ds.assign(red=ds.B04), 'B04 of sentinel2 is there as B04 and red'),
    objects=(first_band_objects, 'B02 holds object, not numbers'),
    reflectance=(lambda ds: ds.astype(float)/1e4, 'set scale = 1'),
    scaled_twice=(lambda ds: ds.astype(float)*1e4, 'median reflectance'),
    irregular=(irregular, 'x does not run in equal steps'),
    no_coordinates=(lambda ds: ds.drop_vars('x'), 'x has no coordinates'),
    one_column=(lambda ds: ds.isel(x=[0]), 'at least two numbers'),
    lost_band=(lost_band, 'band B03 has no value where others have'))

@pytest.mark.parametrize('kind', wrong)
def test_a_wrong_cube_is_named(kind):
    change, says = wrong[kind]
    with pytest.raises(ValueError, match=says): Cube(change(made()), four)

wrong_keys = dict(
    unit=(dict(unit='power'), "unit = 'power' of sentinel2"),
    same_day=(dict(same_day='yes'), 'not refuse or merge'),
    scale=(dict(scale=0), 'scale = 0 has to be above 0'),
    crs=(dict(crs='EPSG:nothing'), 'is not one'),
    clouds=(dict(clouds='SCL'), 'no variable SCL for clouds: it has B02'))

@pytest.mark.parametrize('kind', wrong_keys)
def test_a_wrong_key_is_named(kind):
    keys, says = wrong_keys[kind]
    with pytest.raises(ValueError, match=says): Cube(made(), four, keys)

def test_mixed_grids():
    half = made(bands=['B08'])
    moved = half.assign_coords(x=half.x+5)
    rest = made(bands=['B02', 'B03', 'B04'])
    with pytest.raises(ValueError, match='same resolution: resample'): Cube([rest, moved], four)
    with pytest.raises(ValueError, match='B08 is also in'): Cube([made(), half], four)
    other = half.rio.write_crs('EPSG:32633')
    with pytest.raises(ValueError, match='EPSG:32632 and EPSG:32633'): Cube([rest, other], four)
    fewer = half.isel(time=[0, 1])
    with pytest.raises(ValueError, match='B08 has other days'): Cube([rest, fewer], four)
    small = half.isel(x=slice(0, 5))
    with pytest.raises(ValueError, match='does not cover'): Cube([rest, small], four)[0]

def test_one_date_is_enough_to_look_at():
    assert len(Cube(made(dates=1), four))==1
    assert len(Cube(made().isel(time=1), four))==1

def test_offset_of_the_user():
    ds = made()+1000
    ds = ds.rio.write_crs('EPSG:32632')
    assert (Cube(ds, four, dict(offset=-1000))[1]==expected).all()
    for band in four.bands: ds[band].attrs.update(scale_factor=.0001, add_offset=-.1)
    with pytest.raises(ValueError, match='only one can be right'):
        Cube(ds, four, dict(offset=-1000))

def test_missing_values():
    ds = made(dtype='float32')
    ds.B02[0, 0, 0] = np.nan
    for band in four.bands: ds[band][0, 1, 1] = 0
    ds.B03[0, 2, 2] = -9999
    ds.B03.attrs['_FillValue'] = -9999
    ds.B04[0, 3, 3] = 60_000
    ds.B08[0, 4, 4] = -20
    x = Cube(ds, four, dict(highest=20_000))[0]
    for k in range(4): assert not x[k,k].any()
    assert x[4,4,3]==1                                             # noise below 0 is seen
    assert (x==0).all(2).sum()==4

# ---------------------------------------------------------------- files from outside
def test_hdf5_that_points_elsewhere(tmp_path):
    path = tmp_path/'s2.nc'
    made().to_netcdf(path, engine='h5netcdf')
    with h5py.File(path, 'a') as h: h['secret'] = h5py.ExternalLink('/etc/passwd', '/x')
    with pytest.raises(ValueError, match='secret is a link to another file'): open_dataset(path)
    raw = tmp_path/'raw.nc'
    with h5py.File(raw, 'w') as h:
        h.create_dataset('B02', (4,), 'uint8', external=[('/etc/passwd', 0, 4)])
    with pytest.raises(ValueError, match='values of B02 lie in another file'): open_dataset(raw)
    virtual = tmp_path/'virtual.nc'
    layout = h5py.VirtualLayout((4,), 'uint8')
    layout[:] = h5py.VirtualSource(str(raw), 'B02', (4,))
    with h5py.File(virtual, 'w') as h: h.create_virtual_dataset('B02', layout)
    with pytest.raises(ValueError, match='values of B02 lie in another file'): open_dataset(virtual)

def test_zarr_with_a_pickle(tmp_path):
    made().to_zarr(tmp_path/'a.zarr', zarr_format=2, consolidated=False)
    array = tmp_path/'a.zarr'/'B02'/'.zarray'
    said = json.loads(array.read_text())
    for change in (dict(dtype='|O', filters=[dict(id='pickle')]), dict(filters=[dict(id='pickle')]),
                   dict(dtype='|O', filters=None)):
        array.write_text(json.dumps(said|change))
        with pytest.raises(ValueError, match='array of objects'): open_dataset(tmp_path/'a.zarr')

def test_files_that_are_no_cube(tmp_path):
    path = tmp_path/'s2.nc'
    with pytest.raises(FileNotFoundError, match='name a NetCDF file'): open_dataset(path)
    path.write_text('no')
    with pytest.raises(ValueError, match='neither NetCDF 4 nor'): open_dataset(path)
    path.unlink()
    made().to_netcdf(path, engine='h5netcdf')
    whole = path.read_bytes()
    path.write_bytes(whole[:len(whole)//3])
    with pytest.raises(ValueError, match='cannot be read as NetCDF'): open_dataset(path)
    (tmp_path/'empty').mkdir()
    with pytest.raises(ValueError, match='cannot be read as Zarr'): open_dataset(tmp_path/'empty')

# ---------------------------------------------------------------- a scene
def squares(n=4):
    polygons = [box(west+20*i, north-60, west+20*i+20, north-10) for i in range(n)]
    crop = ['Rye', 'Wheat', None, ''][:n]
    return gpd.GeoDataFrame(dict(crop=crop), geometry=polygons, crs='EPSG:32632')

@pytest.mark.parametrize('suffix', ['gpkg', 'parquet', 'geojson'])
def test_parcels_of_any_format(tmp_path, suffix):
    file = tmp_path/f'parcels.{suffix}'
    g = squares().to_crs(4326)
    if suffix=='parquet': g.to_parquet(file)
    else: g.to_file(file)
    tile = open_cube(made(), file, sensor=four, second=made(bands=sensors['landsat'].bands),
                     second_sensor='landsat')
    assert tile.classes==('Rye', 'Wheat')
    assert tile.fields().crop.tolist()==[1, 2]
    assert len(tile.unlabelled('EPSG:32632'))==2
    assert [image.sensor.name for image in tile.images]==['sentinel2', 'landsat']
    assert tile.files()==[file]
    assert '2 parcels of 2 crops, 2 without a crop' in repr(tile)

def test_what_a_resumed_map_may_not_mix(tmp_path):
    path = tmp_path/'cube.nc'
    made().to_netcdf(path, engine='h5netcdf')
    g = squares().assign(right=['b', 'a', None, None])
    def state(source=path, column='crop', **keys):
        return state_of(open_cube(source, g, sensor=four, column=column, keys=keys))
    assert state()==state()
    for other in (state(column='right'), state(offset=-400), state(made())): assert other!=state()
    assert state(made())!=state(made())            # who knows what a cube in memory holds now?

def test_parcels_that_do_not_fit(tmp_path):
    g = squares()
    with pytest.raises(ValueError, match='no column kind: it has crop'):
        open_cube(made(), g, sensor=four, column='kind')
    with pytest.raises(ValueError, match='no parcel lies in the images'):
        open_cube(made(), g.set_geometry(g.translate(1e5)), sensor=four)
    with pytest.raises(ValueError, match='reproject one of them'):
        open_cube(made(), g, made().rio.write_crs('EPSG:32633'), four, four)
    with pytest.raises(ValueError, match='none.parquet cannot be read as parcels'):
        open_cube(made(), tmp_path/'none.parquet', sensor=four)

def test_the_template_leaves_the_clouds_of_a_cube_alone(tmp_path):
    from cropnb.prepare.fields import open_tile
    from cropnb.sources.own import sentinel2_template, write_template
    ds = made()
    ds['MSK_CLDPRB'] = ('time', 'y', 'x'), np.full((3, *shape), 100, 'uint8')
    ds.to_netcdf(tmp_path/'s2.nc', engine='h5netcdf')
    squares().to_file(tmp_path/'parcels.gpkg')
    said = sentinel2_template.replace('cube = ""', 'cube = "s2.nc"')
    use = json.dumps(four.bands)
    write_template(tmp_path, said.replace('use = []', f'use = {use}'))
    assert (open_tile(tmp_path).first.clouds(1)==255).all()

# ---------------------------------------------------------------- memory
many = '''
import resource, sys
import numpy as np
from cropnb.engine.bands import sensors
from cropnb.sources.cube import Cube

cube = Cube(sys.argv[1], sensors['sentinel2'].pick(sys.argv[2].split()))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
whole = cube[0]
at = np.random.default_rng(0).integers(0, 3000, (2, 2000))
seasons = [cube.read(i, slice(1000, 1500), slice(0, 500)).mean() for i in range(len(cube))]
series = np.stack([cube[i][at[0], at[1]] for i in range(5)])
print(before//1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss//1024)
'''

def large_zarr(path, bands, dates=72, side=3000, chunk=500):
    "Chunks of one date; the first of each band is written, the others are copies of its file"
    ds = xr.Dataset(coords=dict(
        time=np.datetime64('2021-01-01', 'ns')+np.arange(dates)*np.timedelta64(5, 'D'),
        **grid(shape=(side, side))))
    ds = ds.rio.write_crs('EPSG:32632')
    ds.to_zarr(path, zarr_format=2, consolidated=False)
    import zarr
    store = zarr.open_group(path, mode='a', zarr_format=2)
    values = np.random.default_rng(0).integers(200, 4000, (1, chunk, chunk), 'uint16')
    for band in bands:
        shape, chunks = (dates, side, side), (1, chunk, chunk)
        a = store.create_array(band, shape=shape, chunks=chunks, dtype='uint16')
        a.attrs['_ARRAY_DIMENSIONS'] = ['time', 'y', 'x']
        a[:1,:chunk,:chunk] = values
        first, n = Path(path)/band/'0.0.0', side//chunk
        for name in np.ndindex(dates, n, n):
            to = first.with_name('.'.join(map(str, name)))
            if to!=first: to.hardlink_to(first)
    return path

@pytest.mark.slow
def test_memory_on_a_large_cube(tmp_path):
    "72 dates x 10 bands x 3000 x 3000: 13 GB as uint16; below 2 GB at any time"
    ten = 'B02 B03 B04 B05 B06 B07 B08 B8A B11 B12'
    path = large_zarr(tmp_path/'large.zarr', ten.split())
    done = subprocess.run([sys.executable, '-c', many, str(path), ten], cwd=root,
                          capture_output=True, text=True)
    assert not done.returncode, done.stderr[-2000:]
    before, most = map(int, done.stdout.split())
    print(f'{before} MB after opening, {most} MB at most')
    shutil.rmtree(path)
    assert most<2000

# ---------------------------------------------------------------- real ones
def patch(folder, place):
    def files(kind): return sorted(folder.glob(f'{kind}_{place}*.nc'))
    return dict(
        sentinel2=files('S2_L2A_10m')+files('S2_L2A_20m'), landsat=files('L8_SR_10m'),
        sentinel1=files('S1_GRD-ASCENDING_20m'), crops=files('OUTPUT_POLY-110_10m'))

def test_flanders(sample):
    files = patch(sample('flanders_patches'), '00002806639B424A')
    ten = sensors['sentinel2'].pick('B02 B03 B04 B05 B06 B07 B08 B8A B11 B12'.split())
    cube = Cube(files['sentinel2'], ten)
    assert (len(cube), cube.shape, cube.crs)==(118, (64, 64), 'EPSG:32631')
    assert cube.cloud_name=='SCL'
    clear = [i for i in range(118) if cube.clouds(i).mean()<5]
    assert len(clear)>20
    nir, red = np.median(cube[clear[0]], (0, 1))[[6, 2]]
    assert nir>red>200
    six = sensors['landsat'].pick([f'B{i}' for i in range(2, 8)])
    with pytest.raises(ValueError, match='two acquisitions on'): Cube(files['landsat'], six)
    landsat = Cube(files['landsat'], six, dict(same_day='merge', highest=20_000))
    assert len(landsat)==24
    assert landsat[3].max()<=20_000
    radar = Cube(files['sentinel1'], 'sentinel1')
    vv, vh = np.median(radar[0], (0, 1))/100-100
    assert -25<vh<vv<0
    parcels = parcels_of_labels(files['crops'][0], 'CT', 20)
    tile = open_cube(cube, parcels, landsat)
    assert len(tile.fields())==14
    assert tile.classes==('1200', '2130', '5100', '7900', '9120')

def france(folder):
    rows = pd.read_parquet(folder/'2023_FRA_LPIS_POLY_110_dekad.geoparquet')
    names = {'110101': 'Wheat', '110106': 'Maize', '1106': 'Oil seeds', '2': 'Grassland'}
    codes = rows.ewoc_code.astype(str)
    rows['crop'] = None
    for start,name in names.items(): rows.loc[codes.str.startswith(start), 'crop'] = name
    return rows

def test_france_with_encoders_of_nine_bands(sample, smoke, fresh_runs):
    "500 real parcels, nine bands, half of the dates missing, to a win matrix"
    nine = 'B02 B03 B04 B05 B06 B07 B08 B11 B12'.split()
    rows = france(sample('france_2023'))
    columns = {f'S2-L2A-{band}': band for band in nine}
    named = ('sample_id', 'timestamp', 'crop')
    with pytest.raises(ValueError, match='65535 in row'): series_from_table(rows, *named, columns)
    ten = columns|{'S2-L2A-B8A': 'B8A'}
    with pytest.raises(ValueError, match='S2-L2A-B8A has no value at all'):
        series_from_table(rows, *named, ten, missing=65535)
    s = series_from_table(rows, *named, columns, missing=65535)
    assert s['sensors'][0].bands==tuple(nine)
    assert s['time_series'].shape[1:]==(42, 9)
    assert s['mask'].sum(1).min()>=10
    task = fresh_runs/'france'
    own_task(task, s, 'France 2023 (real)')
    r = recipe('smoke', epochs=25, batch=32, bands=' '.join(nine))
    trained = encoders(smoke.pairs, r, 0).values()
    runs = [training(task, e, 4, 'transformer', 0, r, 0) for e in trained]
    for run in runs: run.get()
    t = scores(runs)
    assert set(t.scene)=={'France 2023 (real)'}
    wins = win_matrix(t).to_numpy()
    np.testing.assert_allclose(wins+wins.T, 1)
    supervised = t[t.variant=='supervised'].accuracy.item()
    assert supervised>.5, supervised

# ---------------------------------------------------------------- from a cube to a map
def given_to_a_user(folder):
    "Ten bands and SCL as openEO writes them, and parcels; of the smallest simulated scene"
    from cropnb.prepare.fields import open_tile
    from cropnb.twin.scene import scene
    tile = open_tile(scene('tiny', 0).get())
    images, transform = tile.first, tile.first.transform
    rows, cols = images.shape
    place = dict(y=transform.f+transform.e*(np.arange(rows)+.5),
                 x=transform.c+transform.a*(np.arange(cols)+.5))
    ds = xr.Dataset(coords=dict(time=images.dates.astype('M8[ns]'), **place))
    values = np.stack([images[i] for i in range(len(images.dates))])
    for band in ten:
        ds[band] = ('time', 'y', 'x'), values[...,images.sensor.bands.index(band)].astype('int16')
    cloud = np.stack([images.clouds(i) for i in range(len(images.dates))])
    ds['SCL'] = ('time', 'y', 'x'), np.where(cloud>128, 9, 4).astype('int16')
    ds = ds.rio.write_crs(images.crs).rename(time='t', spatial_ref='crs')
    for name in (*ten, 'SCL'):
        ds[name].encoding.pop('grid_mapping', None)
        ds[name].attrs['grid_mapping'] = 'crs'
    ds.to_netcdf(folder/'s2.nc', engine='h5netcdf')
    g = tile.fields(images.crs)
    g['crop'] = [tile.classes[c-1] for c in g.crop]
    g[['crop', 'geometry']].to_parquet(folder/'parcels.parquet')
    return images

ten = 'B02 B03 B04 B05 B06 B07 B08 B8A B11 B12'.split()

@pytest.mark.slow
def test_from_a_cube_and_a_geoparquet_to_a_score_table_and_a_map(tmp_path, fresh_runs, capsys):
    "The README's commands, by a user who has nothing else"
    import cropnb, papermill, rasterio
    from cropnb.cli import main
    folder = tmp_path/'scene'
    folder.mkdir()
    images = given_to_a_user(folder)
    main(['template', str(folder), '--sentinel2-only'])
    toml = folder/'scene.toml'
    text = toml.read_text().replace('"parcels.gpkg"', '"parcels.parquet"')
    toml.write_text(text.replace('cube = ""', 'cube = "s2.nc"'))
    with pytest.raises(SystemExit, match='no band B01, B09.*`use`'): main(['check', str(folder)])
    toml.write_text(toml.read_text().replace('use = []', f'use = {json.dumps(ten)}'))
    main(['check', str(folder)])
    assert '67 fields' in capsys.readouterr().out
    steps = [('03_pretrain', dict(mode='unimodal')),
             ('04_downstream', dict(task=1, family='transformer')), ('04_probing', dict(task=1)),
             ('05_evaluate', dict(tasks=[1], families=['transformer']))]
    for name,chosen in steps:
        chosen |= dict(data=str(folder), profile='smoke')
        papermill.execute_notebook(root/f'nbs/{name}.ipynb', tmp_path/'out.ipynb', chosen,
                                   cwd=root, progress_bar=False)
    assert list(fresh_runs.glob('figures/scene-smoke/scores.csv'))
    sees = {f: json.loads(f.read_text()) for f in fresh_runs.glob('pretrain/*/result.json')}
    encoder = next(f.parent for f,made in sees.items() if made['result'].get('mode')=='unimodal')
    words = ['--out', str(tmp_path/'model'), '--pixels', '10', '--epochs', '1']
    main(['fit', str(folder), '--encoder', encoder.name, *words])
    main(['map', str(folder), str(tmp_path/'model'), '--out', str(tmp_path/'crops.tif')])
    main(['embed', str(folder), encoder.name, '--out', str(tmp_path/'z.tif')])
    sensor = sensors['sentinel2'].pick(ten)
    opened = cropnb.open_scene(folder/'s2.nc', parcels=folder/'parcels.parquet', sensor=sensor)
    model = cropnb.fit(opened, encoder, tmp_path/'again', pixels=10, epochs=1)
    model.map(opened, tmp_path/'again.tif')
    with rasterio.open(tmp_path/'crops.tif') as f: codes = f.read(1)
    with rasterio.open(tmp_path/'again.tif') as f: assert (f.read(1)==codes).all()
    assert codes.shape==images.shape and codes.max()<=9
