"Maps of whole scenes: the same bytes however they are made, gaps named, files that open well"
import os, shutil, signal, subprocess, sys, time
from types import SimpleNamespace
import geopandas as gpd, numpy as np, pytest, rasterio, torch, zarr
from rasterio.errors import RasterioIOError
from rio_cogeo.cogeo import cog_validate
from conftest import root
from cropnb.cli import main
from cropnb.encoder import load_encoder, save_encoder
from cropnb.encoders import ResMLP
from cropnb.engine.bands import sensors
from cropnb.maps import scene as scene_module
from cropnb.maps.blocks import as_scene
from cropnb.maps.fit import MapModel, fit_scene, split_scene
from cropnb.maps.rasters import no_share, no_value, unseen
from cropnb.maps.scene import embed_raster

@pytest.fixture(scope='module')
def world(tmp_path_factory):
    "The smallest scene, an encoder with random weights, and a model of two epochs"
    from cropnb.twin.scene import scene
    here = tmp_path_factory.mktemp('maps')
    torch.manual_seed(0)
    stats = dict(s2_mean=torch.full((12,), .2), s2_std=torch.full((12,), .15))
    encoder = here/'encoder.safetensors'
    save_encoder(encoder, ResMLP(12, 32, 2), stats, mode='untrained', corruption=None,
                 source='noise', recipe=dict(dim=32, blocks=2))
    folder = scene('smoke', 0).get()
    model = fit_scene(folder, encoder, here/'model', pixels=8, epochs=2)
    return SimpleNamespace(here=here, encoder=encoder, scene=folder, model=model)

class View:
    "Images of a tile as another would give them: some pixels missing, some that cannot be read"
    def __init__(self, images, missing=None, broken=None, mistake=None, **other):
        self.images,self.missing,self.broken,self.mistake = images,missing,broken,mistake
        self.sensor,self.dates,self.shape = images.sensor,images.dates,images.shape
        self.transform,self.crs = images.transform,images.crs
        self.__dict__.update(other)

    def read(self, i, rows, cols):
        if self.broken and self.broken[0] in _span(rows) and self.broken[1] in _span(cols):
            damage = RasterioIOError('TIFFReadEncodedTile() failed')
            raise ValueError(f'image-{i}.tif cannot be read: get it again') from damage
        if self.mistake: raise self.mistake
        x = np.array(self.images.read(i, rows, cols))
        if self.missing:
            row,col = np.ogrid[rows,cols]
            x[(row<self.missing[0])&(col<self.missing[1])] = 0
        return x

    def clouds(self, i, rows, cols): return self.images.clouds(i, rows, cols)

def _span(s): return range(s.start, s.stop)

class Scene:
    "A tile with such images"
    def __init__(self, tile, images):
        self.tile,self.first = tile,images
    def __getattr__(self, name): return getattr(self.tile, name)

def scene_like(world, **other):
    tile = as_scene(world.scene)
    return Scene(tile, View(tile.first, **other))

# ---------------------------------------------------------------- the same bytes
def contents(folder): return {f.name: f.read_bytes() for f in sorted(folder.glob('*.tif'))}

def map_into(world, folder, **how):
    folder.mkdir()
    asked = dict(probabilities=folder/'p.tif', confidence=folder/'c.tif', level=.8)
    found = world.model.map(world.scene, folder/'crops.tif', **asked, **how)
    embed_raster(world.encoder, world.scene, folder/'z.tif', **how)
    return found

def test_blocks_and_workers_change_nothing(world, tmp_path):
    found = map_into(world, tmp_path/'one', block=256)
    assert map_into(world, tmp_path/'two', block=32, workers=2)==found
    assert map_into(world, tmp_path/'three', block=64)==found
    assert contents(tmp_path/'one')==contents(tmp_path/'two')==contents(tmp_path/'three')
    assert sum(found['classes'].values())+found['not_seen']==90*90
    for f in (tmp_path/'one').glob('*.tif'):
        assert cog_validate(f, strict=True, quiet=True)==(True, [], []), f

def test_dask_changes_nothing(world, tmp_path):
    from distributed import Client
    world.model.map(world.scene, tmp_path/'a.tif')
    with Client(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as c:
        world.model.map(world.scene, tmp_path/'b.tif', client=c, block=64)
    assert (tmp_path/'a.tif').read_bytes()==(tmp_path/'b.tif').read_bytes()

slow_run = '''
import sys, time
from cropnb.maps import work
from cropnb.maps.fit import MapModel
from cropnb.maps.scene import map_scene
once = work.do_block
def slowly(*args):
    time.sleep(.5)
    return once(*args)
work.do_block = slowly
map_scene(MapModel(sys.argv[1]), sys.argv[2], sys.argv[3], block=32)
'''

def test_killed_and_resumed(world, tmp_path, capfd):
    whole, out = tmp_path/'whole.tif', tmp_path/'killed.tif'
    world.model.map(world.scene, whole, block=32)
    words = [sys.executable, '-c', slow_run, world.here/'model', world.scene, out]
    run = subprocess.Popen(words, cwd=root)
    part = tmp_path/'killed.tif.part'
    end = time.time()+120
    while len(list(part.glob('0*.npz')))<3 and time.time()<end: time.sleep(.1)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert part.exists() and not out.exists()
    world.model.map(world.scene, out, block=32)
    assert 'blocks are there from an earlier run' in capfd.readouterr().out
    assert out.read_bytes()==whole.read_bytes()
    assert sorted(f.name for f in tmp_path.glob('killed*'))==[
        'killed.json', 'killed.tif', 'killed.tif.aux.xml']

class Killed(BaseException): "As a signal would end a run"

def kill_at(monkeypatch, name):
    "Whoever calls this function of `cropnb.maps.scene` is killed"
    def end(*args): raise Killed
    monkeypatch.setattr(scene_module, name, end)

def test_killed_between_two_outputs(world, tmp_path, monkeypatch):
    out, parcels = tmp_path/'a.tif', tmp_path/'a.gpkg'
    with monkeypatch.context() as m, pytest.raises(Killed):
        kill_at(m, 'write_parcels')
        world.model.map(world.scene, out, parcels=parcels)
    assert out.exists() and not parcels.exists()
    with pytest.raises(FileExistsError): world.model.map(world.scene, out, level=.8)
    world.model.map(world.scene, out, parcels=parcels)
    assert parcels.exists() and (tmp_path/'a.json').exists()

def test_another_encoder_in_memory_resumes_nothing(world, tmp_path, monkeypatch):
    out, again = tmp_path/'z.zarr', tmp_path/'y.zarr'
    one, two = load_encoder(world.encoder), load_encoder(world.encoder)
    with torch.no_grad(): two.net[0].weight.mul_(-1)
    with monkeypatch.context() as m, pytest.raises(Killed):
        kill_at(m, 'write_zarr')
        embed_raster(one, world.scene, out)
    for path in (out, again): embed_raster(two, world.scene, path)
    a, b = (zarr.open_group(path, mode='r')['embedding'][:] for path in (out, again))
    assert np.array_equal(a, b, equal_nan=True)

def test_a_block_that_is_gone_is_no_gap(world, tmp_path, monkeypatch):
    write = scene_module.assemble
    def without_one(layers, grid, blocks, folder, *more):
        (folder/'000001.npz').unlink()
        write(layers, grid, blocks, folder, *more)
    monkeypatch.setattr(scene_module, 'assemble', without_one)
    with pytest.raises(FileNotFoundError, match='000001.npz is gone'):
        world.model.map(world.scene, tmp_path/'a.tif', block=64)

# ---------------------------------------------------------------- what is missing
def test_pixels_never_seen_are_nodata(world, tmp_path):
    scene = scene_like(world, missing=(40, 10))
    found = world.model.map(scene, tmp_path/'a.tif', tmp_path/'p.tif', block=32)
    with rasterio.open(tmp_path/'a.tif') as f: codes = f.read(1)
    with rasterio.open(tmp_path/'p.tif') as f: p = f.read()
    assert found['not_seen']==(codes==unseen).sum()==400
    assert (p[:,codes==unseen]==no_share).all()
    assert (p[:,codes!=unseen]<=10_000).all()
    embed_raster(world.encoder, scene, tmp_path/'z.tif')
    with rasterio.open(tmp_path/'z.tif') as f: z = f.read()
    assert ((z==no_value)==(codes==unseen)).all()

def test_a_corrupt_block_is_a_gap(world, tmp_path, capfd):
    scene = scene_like(world, broken=(40, 70))
    found = world.model.map(scene, tmp_path/'gap.tif', block=32, parcels=tmp_path/'gap.gpkg')
    world.model.map(world.scene, tmp_path/'whole.tif', block=32)
    said = capfd.readouterr().out
    assert 'image-0.tif cannot be read' in said and '1 of 9 blocks, 832 pixels' in said
    with rasterio.open(tmp_path/'gap.tif') as f: gap,tags = f.read(1),f.tags()
    with rasterio.open(tmp_path/'whole.tif') as f: whole = f.read(1)
    lost = gap!=whole
    assert (gap[lost]==unseen).all() and found['lost']==832==int(tags['lost_pixels'])
    assert lost[32:64,64:90].all() and lost.sum()==832

def test_embeddings_around_a_corrupt_block(world, tmp_path, capfd):
    scene = scene_like(world, broken=(40, 70))
    found = embed_raster(world.encoder, scene, tmp_path/'z.tif', block=32)
    assert 'image-0.tif cannot be read' in capfd.readouterr().out
    with rasterio.open(tmp_path/'z.tif') as f: gone = (f.read()==no_value).all(0)
    assert found['lost']==gone.sum()==832

def geotiffs(tile, folder):
    "The tile's images as files of small compressed tiles, and its parcels"
    images = tile.first
    (folder/'s2').mkdir(parents=True)
    height,width = images.shape
    how = dict(driver='GTiff', dtype='uint16', count=12, height=height, width=width, tiled=True,
               blockxsize=32, blockysize=32, compress='deflate', interleave='pixel')
    for i,day in enumerate(images.dates):
        x = images.read(i, slice(None), slice(None))
        with rasterio.open(folder/'s2'/f'{day}.tif', 'w', crs=images.crs,
                           transform=images.transform, **how) as f: f.write(x.transpose(2, 0, 1))
    fields = tile.fields(images.crs)
    fields['crop'] = [tile.classes[c-1] for c in fields.crop]
    fields.to_parquet(folder/'parcels.parquet')
    bands = str(list(images.sensor.bands)).replace("'", '"')
    (folder/'scene.toml').write_text(f'''name = "files"
[parcels]
file = "parcels.parquet"
[sentinel2]
files = "s2/*.tif"
bands = {bands}
''')
    return folder

def test_a_damaged_file(world, tmp_path, capfd):
    scene = geotiffs(as_scene(world.scene), tmp_path/'scene')
    world.model.map(scene, tmp_path/'whole.tif', block=32)
    image = sorted((scene/'s2').glob('*.tif'))[3]
    with rasterio.open(image) as f: start = int(f.get_tag_item('BLOCK_OFFSET_1_1', 'TIFF', bidx=1))
    data = bytearray(image.read_bytes())
    data[start+20:start+220] = bytes(200)
    image.write_bytes(data)
    found = world.model.map(scene, tmp_path/'gap.tif', block=32)
    said = capfd.readouterr().out
    assert f'sentinel2 of {image.stem}' in said and f'{image.name} cannot be read' in said
    with rasterio.open(tmp_path/'whole.tif') as f: whole = f.read(1)
    with rasterio.open(tmp_path/'gap.tif') as f: gap = f.read(1)
    assert found['lost']==32*32 and (gap[32:64,32:64]==unseen).all()
    assert (gap!=whole).sum()==32*32

mistakes = dict(value=ValueError('operands could not be broadcast'), key=KeyError('B99'),
                unfinished=NotImplementedError('later'))

@pytest.mark.parametrize('name', mistakes)
def test_a_mistake_is_no_gap(world, tmp_path, name):
    mistake = mistakes[name]
    scene = scene_like(world, mistake=mistake)
    with pytest.raises(type(mistake), match=mistake.args[0]):
        world.model.map(scene, tmp_path/'a.tif', block=32)
    assert not (tmp_path/'a.tif').exists()

def test_a_part_of_the_season(world, tmp_path, capfd):
    world.model.map(world.scene, tmp_path/'a.tif', until='2018-06-30', days=10)
    assert 'not on seasons cut at random' in capfd.readouterr().out
    with rasterio.open(tmp_path/'a.tif') as f: assert '2018-01-02 to' in f.tags()['season']
    with pytest.raises(ValueError, match='has no date'):
        world.model.map(world.scene, tmp_path/'b.tif', until='2017-06-30')

def test_means_of_many_days(world, tmp_path, capfd):
    model = fit_scene(world.scene, world.encoder, tmp_path/'m', pixels=6, epochs=1, days=60)
    capfd.readouterr()
    model.map(world.scene, tmp_path/'a.tif')
    assert 'neither its scores' not in capfd.readouterr().out
    with rasterio.open(tmp_path/'a.tif') as f: assert f.tags()['composites']=='60'
    world.model.map(world.scene, tmp_path/'b.tif', days=60)
    said = capfd.readouterr().out
    assert 'fitted on single dates, and reads means of 60 days here' in said

def test_inside_of_parcels(world, tmp_path):
    parcels = tmp_path/'a.parquet'
    found = world.model.map(world.scene, tmp_path/'a.tif', within=True, parcels=parcels)
    assert found['outside']>0
    table = gpd.read_parquet(parcels)
    assert table.pixels.sum()==sum(found['classes'].values())
    seen = table[table.pixels>0]
    p = seen[[f'p_{name}' for name in world.model.classes]].to_numpy()
    assert np.allclose(p.sum(1), 1, atol=.002)
    assert (seen.share>=seen.second_share).all()

# ---------------------------------------------------------------- other calendars
def test_another_year_by_days_of_the_year(world, tmp_path):
    found = world.model.map(world.scene, tmp_path/'a.tif', part='test')
    assert sum(found['classes'].values())>0

def test_a_model_that_counts_images_refuses_another_calendar(world, tmp_path):
    small = dict(pixels=4, epochs=1, position='index')
    model = fit_scene(world.scene, world.encoder, tmp_path/'m', **small)
    model.map(world.scene, tmp_path/'a.tif')
    later = scene_like(world, dates=as_scene(world.scene).first.dates+20)
    with pytest.raises(ValueError, match="counts images.*position='day'"):
        model.map(later, tmp_path/'b.tif')

def test_a_scene_of_another_season(world, tmp_path):
    model = MapModel(world.here/'model')
    model.what = model.what|dict(season=['2018-06-01', '2018-06-20'])
    days = np.arange('2018-01-01', '2018-01-09', dtype='datetime64[D]')
    winter = scene_like(world, dates=days)
    with pytest.raises(ValueError, match='no date in the season'):
        model.map(winter, tmp_path/'a.tif')

# ---------------------------------------------------------------- bad input
def test_bands_that_lack(world, tmp_path):
    sensor = sensors['sentinel2'].pick(sensors['sentinel2'].bands[:-1])
    with pytest.raises(ValueError, match='lacks the bands B12'):
        world.model.map(scene_like(world, sensor=sensor), tmp_path/'a.tif')

def test_no_coordinate_system(world, tmp_path):
    with pytest.raises(ValueError, match='no coordinate system'):
        world.model.map(scene_like(world, crs=None), tmp_path/'a.tif')

def test_no_room(world, tmp_path, monkeypatch):
    full = SimpleNamespace(free=1000)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: full)
    with pytest.raises(OSError, match='make room'): world.model.map(world.scene, tmp_path/'a.tif')
    assert os.listdir(tmp_path)==[]

def test_an_output_that_is_there(world, tmp_path):
    (tmp_path/'a.tif').write_text('mine')
    with pytest.raises(FileExistsError, match='--force'):
        world.model.map(world.scene, tmp_path/'a.tif')
    assert (tmp_path/'a.tif').read_text()=='mine'
    world.model.map(world.scene, tmp_path/'a.tif', force=True)
    assert cog_validate(tmp_path/'a.tif', quiet=True)[0]

def test_nothing_is_computed_that_cannot_be_written(world, tmp_path, monkeypatch):
    kill_at(monkeypatch, 'do_blocks')
    (tmp_path/'a.json').write_text('mine')
    with pytest.raises(FileExistsError, match='a.json'):
        world.model.map(world.scene, tmp_path/'a.tif')
    with pytest.raises(ValueError, match='two outputs'):
        world.model.map(world.scene, tmp_path/'b.tif', tmp_path/'b.tif')
    with pytest.raises(ValueError, match='not a folder'):
        world.model.map(world.scene, tmp_path/'b.tif', parcels=tmp_path/'no'/'b.gpkg')

# ---------------------------------------------------------------- two fits, one folder
slow_fit = '''
import sys, time
from cropnb.maps import fit
def never(*args): time.sleep(100)
fit.train_base = never
fit.fit_scene(sys.argv[1], sys.argv[2], sys.argv[3], pixels=6, epochs=1)
'''

def test_two_fits_into_one_folder(world, tmp_path):
    out = tmp_path/'model'
    words = [sys.executable, '-c', slow_fit, world.scene, world.encoder, out]
    first = subprocess.Popen(words, cwd=root)
    end = time.time()+120
    while not (tmp_path/'model.part'/'test.h5').exists() and time.time()<end: time.sleep(.1)
    command = ['fit', str(world.scene), '--encoder', str(world.encoder), '--out', str(out),
               '--pixels', '6', '--epochs', '1']
    try:
        with pytest.raises(SystemExit, match=f'another run is writing {out}'): main(command)
        assert (tmp_path/'model.part'/'test.h5').exists() and not out.exists()
    finally:
        first.kill()
        first.wait()
    main(command)                          # the lock went with the process
    assert sorted(f.name for f in tmp_path.iterdir())==['.model.lock', 'model']
    assert (out/'card.json').exists()

# ---------------------------------------------------------------- command line
def test_commands(world, tmp_path, capsys):
    model, crops = str(tmp_path/'model'), str(tmp_path/'crops.tif')
    scene = str(world.scene)
    main(['fit', scene, '--encoder', str(world.encoder), '--out', model, '--pixels', '6',
          '--epochs', '1', '--early'])
    assert 'fields never used' in capsys.readouterr().out
    main(['map', scene, model, '--out', crops, '--until', '2018-06-30',
          '--parcels', str(tmp_path/'crops.gpkg')])
    assert 'pixels' in capsys.readouterr().out
    main(['embed', scene, str(world.encoder), '--out', str(tmp_path/'z.zarr'), '--pool', 'month'])
    with pytest.raises(SystemExit, match='--force'): main(['map', scene, model, '--out', crops])
    with pytest.raises(SystemExit, match='is not an encoder'):
        main(['embed', scene, 'nowhere', '--out', str(tmp_path/'y.tif')])

def test_a_class_of_two_fields(world):
    tile = as_scene(world.scene)
    fields = tile.fields()
    few = fields[(fields.crop!=1) | (fields.crop==1).cumsum().le(2)]
    less = SimpleNamespace(fields=lambda: few, classes=tile.classes, labels='labels.geojson')
    with pytest.raises(ValueError, match=r'fewer than three fields of Wheat \(2\)'):
        split_scene(less)
