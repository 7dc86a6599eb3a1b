"Any bands, one sensor or both: from a pair file through encoders and series to a model"
import json, shutil
import h5py, numpy as np, pytest, torch
from cropnb.controls import raw, untrained
from cropnb.data import series
from cropnb.downstream import load_model, training
from cropnb.encoder import load_encoder
from cropnb.engine.bands import Sensor, authors_sensors, band_groups, sensors, sensors_text
from cropnb.engine.recipes import recipe
from cropnb.engine.records import result
from cropnb.features import features, load_part, read_part
from cropnb.pretrain import encoder, encoders, sensor_table
from cropnb.probing import probing
from cropnb.views import Pairs, modes

small = dict(dim=32, blocks=2, pretrain_batch=64)
s2, ps = authors_sensors
ten = s2.pick(band_groups['10m+20m'])

def r_of(**changes): return recipe('smoke', **small|changes)

# ---------------------------------------------------------------- files of other sensors
def write_pairs(path, held, n=200):
    "Pairs of these sensors, all made of the same few leaves and soils"
    rng = np.random.default_rng(0)
    amount = rng.random((n, 1))
    with h5py.File(path, 'w') as h:
        h.attrs.update(sensors=sensors_text(held), source='toy')
        for i,s in enumerate(held):
            of_band = rng.integers(1000, 4000, len(s.bands))
            x = (amount*of_band+rng.integers(200, 400, (n, len(s.bands)))).astype('uint16')
            name = dict(sentinel2='sentinel2_data', planetscope='planet_data')
            h[name.get(s.name, f'{s.name}_data')] = x if not i else x[:,:,None].repeat(s.pixels, 2)
            short = dict(sentinel2='s2', planetscope='ps').get(s.name, s.name)
            h.attrs[f'{short}_mean'], h.attrs[f'{short}_std'] = x.mean(0)/1e4, x.std(0)/1e4
    return path

def write_series(folder, held, n=24, dates=6, second=True):
    "Both parts of a task of two classes; the second sensor saw every other date"
    folder.mkdir()
    rng = np.random.default_rng(1)
    for part in ('train', 'val'):
        label = np.arange(n)%2
        def values(*shape):
            of_class = (1+label).reshape(n, *[1]*(1+len(shape)))
            return rng.integers(800, 1200, (n, dates, *shape))*of_class
        with h5py.File(folder/f'{part}.h5', 'w') as h:
            h['time_series'] = values(len(held[0].bands)).astype('uint16')
            mask = np.ones((n, dates), 'uint8')
            mask[:,-1] = 0
            h['mask'], h['date'] = mask, np.tile(17532+10*np.arange(dates), (n, 1))
            h['crop_labels'], h['field_id'] = label[:,None]+1, np.arange(n)
            h.attrs.update(classes='["wheat", "maize"]', source='toy', sensors=sensors_text(held))
            for s in held[1:] if second else ():
                h[f'{s.name}_series'] = values(len(s.bands), s.pixels).astype('uint16')
                h[f'{s.name}_mask'] = np.tile(np.arange(dates)%2, (n, 1)).astype('uint8')
    return folder

two = [s2, ps]

@pytest.fixture
def world(tmp_path, fresh_runs):
    "Pairs and a task of Sentinel-2 and PlanetScope"
    return write_pairs(tmp_path/'pairs.h5', two), write_series(tmp_path/'series', two)

# ---------------------------------------------------------------- bands
def test_ten_bands_from_twelve(smoke):
    "An encoder of ten bands takes them from series of twelve; so do its controls"
    r = r_of(bands='10m+20m')
    task = series(1, smoke.data, smoke.recipe, 0)
    for run in (encoder(smoke.pairs, r, 0), untrained(smoke.pairs, r, 0), raw(smoke.pairs, r)):
        e = load_encoder(run.get())
        assert e.sensors==[ten] and e.mean.shape==(10,)
        seen = features(task, run)
        assert np.load(seen.get()/'val.npy').shape==(54, 8, e.dim)
    part = read_part(task.path/'val.h5')
    kept = part['x'][...,s2.index(ten.bands)]
    assert torch.equal(e.embed(part['x'], bands=s2.bands), e.embed(kept))
    wide, = Pairs(smoke.pairs.get(), bands='10m+20m').x[:1]
    assert torch.equal(wide, Pairs(smoke.pairs.get()).x[0][:,s2.index(ten.bands)])

def test_bands_rename_what_they_change_and_nothing_else(smoke):
    "'all' and 'first' are what their absence means"
    old = encoder(smoke.pairs, r_of(), 0)
    assert encoder(smoke.pairs, r_of(bands='all', sensor='first', sees='second'), 0).id==old.id
    assert encoder(smoke.pairs, r_of(bands='B04 B08'), 0).id!=old.id
    assert raw(smoke.pairs, r_of()).id==raw(smoke.pairs).id
    assert raw(smoke.pairs, r_of(bands='B04 B08')).id!=raw(smoke.pairs).id

def test_series_that_lack_a_band(tmp_path, fresh_runs, world):
    pairs,_ = world
    nine = write_series(tmp_path/'nine', [s2.pick([b for b in ten.bands if b!='B8A'])])
    full = encoder(pairs, r_of(), 0, 'unimodal')
    says = 'train.h5: sentinel2 has no band B01, B8A, B09, on which the encoder was trained'
    with pytest.raises(ValueError, match=says): features(nine, full).get()
    fits = encoder(pairs, r_of(bands=' '.join(b for b in ten.bands if b!='B8A')), 0, 'unimodal')
    assert load_encoder(fits.get()).net[0].in_features==9
    assert result(training(nine, fits, 1, 'lstm', 0, r_of(), 0).get())['n_val']==24

def test_an_encoder_of_band_drop_takes_what_there_is(tmp_path, fresh_runs, world):
    "And differs where a band differs that it sees, and only there"
    pairs, task = world
    run = encoder(pairs, r_of(), 0, 'unimodal_drop')
    e = load_encoder(run.get())
    assert (e.mask, e.net[0].in_features, e.what['mode'])==('bands', 24, 'unimodal_drop')
    x = read_part(task/'val.h5')['x'][:5]
    four = list(band_groups['10m'])
    some = e.embed(x[...,s2.index(four)], bands=four)
    other = x.clone()
    other[...,s2.index(['B11'])] += 999
    assert torch.equal(some, e.embed(other[...,s2.index(four)], bands=four))
    assert not torch.equal(e.embed(x), e.embed(other))
    assert not torch.equal(some, e.embed(x))
    at_hand = r_of(bands='10m') # of the twelve that the series hold
    got = training(task, run, 1, 'lstm', 0, at_hand, 0).get()
    assert (load_model(got).predict(task/'val.h5')[0]==np.load(got/'predictions.npy')).all()
    shown = load_part(features(task, run, bands='10m').get(), task, 'val')['x']
    assert not torch.equal(shown, load_part(features(task, run).get(), task, 'val')['x'])
    with pytest.raises(ValueError, match='train.h5: sentinel2 has no band B01'):
        features(task, encoder(pairs, r_of(), 0, 'unimodal'), bands='10m').get()
    fewer = write_series(tmp_path/'four', [s2.pick(four)])
    assert result(probing(fewer, run, 1, 'ridge', r_of(), 0).get())['accuracy']>.9
    foreign = write_series(tmp_path/'foreign', [Sensor('sentinel2', ['B10'])])
    with pytest.raises(ValueError, match='sentinel2 has no band B01'): features(foreign, run).get()

# ---------------------------------------------------------------- one sensor
def test_one_sensor_is_enough_for_unimodal(tmp_path, fresh_runs):
    "The other modes say what is missing and how to get it"
    alone = write_pairs(tmp_path/'pairs.h5', [ten])
    assert result(encoder(alone, r_of(), 0, 'unimodal').get())['parameters']
    want = ['supervised', 'untrained', 'unimodal 0.2', 'unimodal 0.6']
    assert list(encoders(alone, r_of(), 0))==want
    for mode in ('bimodal', 'joint', 'bimodal_drop'):
        says = f"mode='{mode}' wants two sensors, and these pairs have sentinel2 alone: add"
        with pytest.raises(ValueError, match=says): encoder(alone, r_of(), 0, mode).get()
    with pytest.raises(ValueError, match='have one sensor: add a second'):
        sensor_table(alone, r_of(), 0)

others = [sensors['sentinel1'], sensors['landsat'], Sensor('mine', ['a', 'b'], 5)]

@pytest.mark.parametrize('second', others, ids=lambda s: s.name)
@pytest.mark.parametrize('mode', [m for m in modes if modes[m].needs>1])
def test_any_second_sensor(tmp_path, fresh_runs, second, mode):
    pairs = write_pairs(tmp_path/'pairs.h5', [ten, second])
    e = load_encoder(encoder(pairs, r_of(), 0, mode).get())
    want = ['sentinel2', second.name] if mode=='joint' else ['sentinel2']
    assert [s.name for s in e.sensors]==want

def test_an_encoder_of_the_second_sensor(world):
    "Alone: its windows, from pairs and from series"
    pairs, task = world
    r = r_of(sensor='planetscope')
    run = encoder(pairs, r, 0, 'unimodal')
    e = load_encoder(run.get())
    assert (e.sensors, e.net[0].in_features)==([ps], 36)
    seen = features(task, run).get()
    part, plain = load_part(seen, task, 'val'), read_part(task/'val.h5')
    assert torch.equal(part['mask'], plain['second_mask'])
    assert not torch.equal(part['mask'], plain['mask'])
    got = training(task, run, 1, 'transformer', 0, r, 0)
    assert result(got.get())['n_val']==24
    with pytest.raises(ValueError, match="sensor='planetscope' is one sensor, and joint has two"):
        encoder(pairs, r, 0, 'joint')
    with pytest.raises(ValueError, match="has no sensor 'landsat': it has sentinel2, planetscope"):
        encoder(pairs, r_of(sensor='landsat'), 0, 'unimodal').get()
    with pytest.raises(ValueError, match='sees=.both. is for joint encoders'):
        features(task, run, sees='both').get()

# ---------------------------------------------------------------- either sensor, or both
def test_a_joint_encoder_serves_either_sensor(world):
    "Its masks: of the first, of the second, of any; a date without the second says so"
    pairs, task = world
    run = encoder(pairs, r_of(), 0, 'joint')
    e = load_encoder(run.get())
    assert (e.mask, e.net[0].in_features)==('sensors', 50)
    plain = read_part(task/'val.h5')
    first, second = plain['mask'], plain['second_mask']
    masks = dict(first=first, second=second, both=first|second)
    found = {}
    for sees,mask in masks.items():
        part = load_part(features(task, run, sees=sees).get(), task, 'val')
        assert torch.equal(part['mask'], mask)
        found[sees] = part['x'].float()
        got = result(training(task, run, 1, 'lstm', 0, r_of(sees=sees), 0).get())
        assert got['accuracy']>=.5
    assert not torch.equal(found['first'], found['both'])
    x, y = plain['x'][:3], plain['second'][:3]
    gone = torch.where(second[:3,:,None,None], y, 0)
    z = e.embed(sentinel2=x, planetscope=gone)
    alone = e.embed(x)
    assert torch.equal(alone, e.embed(sentinel2=x, planetscope=None))
    torch.testing.assert_close(z[:,0], alone[:,0])          # the second sensor saw odd dates only
    assert (z[:,1]!=alone[:,1]).any()

def test_a_model_of_both_sensors_is_used_as_it_was_trained(world):
    pairs, task = world
    run = encoder(pairs, r_of(), 0, 'joint')
    for sees in ('first', 'second', 'both'):
        got = training(task, run, 1, 'lstm', 0, r_of(sees=sees), 0).get()
        model = load_model(got)
        classes, chances = model.predict(task/'val.h5')
        assert (classes==np.load(got/'predictions.npy')).all()
        assert chances.shape==(24, 2)

def test_joint_without_the_second_in_the_series(tmp_path, world):
    pairs,_ = world
    alone = write_series(tmp_path/'alone', two, second=False)
    run = encoder(pairs, r_of(), 0, 'joint')
    assert result(probing(alone, run, 1, 'ridge', r_of(), 0).get())['accuracy']>.9
    says = 'train.h5: The encoder sees planetscope, and these series hold sentinel2 alone'
    with pytest.raises(ValueError, match=says): features(alone, run, sees='both').get()
    model = load_model(training(write_series(tmp_path/'both', two), run, 1, 'lstm', 0,
                                r_of(sees='both'), 0).get())
    with pytest.raises(ValueError, match='The encoder sees planetscope'):
        model.predict(alone/'val.h5')

def test_end_to_end_of_both_sensors(world):
    "An untrained joint encoder that is trained along"
    pairs, task = world
    start = untrained(pairs, r_of(), 0, like='joint')
    got = training(task, start, 1, 'transformer', 0, r_of(sees='both'), 0, frozen=False)
    assert result(got.get())['training']=='end_to_end'
    classes,_ = load_model(got.path).predict(task/'val.h5')
    assert (classes==np.load(got.path/'predictions.npy')).all()

def test_the_table_of_either_sensor(world):
    "Rows random, own sensor, joint, supervised; columns first, second, both"
    pairs, task = world
    table = sensor_table(pairs, r_of(), 0)
    rows = ('random', 'own sensor', 'joint', 'supervised')
    want = {(row, column) for row in rows for column in ('first', 'second', 'both')}
    assert table.keys()==want-{('own sensor', 'both')}
    assert len({run.id for (row,_),(run,_) in table.items() if row=='joint'})==1
    for cell,(run,sees) in table.items():
        got = probing(task, run, 1, 'ridge', r_of(sees=sees), 0)
        assert result(got.get())['accuracy']>.9, cell

# ---------------------------------------------------------------- what has to be refused
def edit_attr(path, name, value):
    with h5py.File(path, 'a') as h: h.attrs[name] = value

@pytest.mark.parametrize('text, says', [
    ('[]', 'names \\[\\]: one or two sensors are wanted'),
    ('{"a": 1}', 'the attribute sensors is'),
    (json.dumps([s2.as_dict()|dict(window=2)]), 'window=2 is not an odd number'),
    (json.dumps([s2.as_dict()]*2), 'one or two sensors are wanted'),
    (json.dumps([ten.as_dict()]), 'sentinel2_data has shape .200, 12., not .any, 10.'),
    (json.dumps([s2.as_dict(), sensors['landsat'].as_dict()]), 'has no data set landsat_data'),
])
def test_a_pair_file_that_names_other_sensors(tmp_path, text, says):
    path = write_pairs(tmp_path/'pairs.h5', two)
    edit_attr(path, 'sensors', text)
    with pytest.raises(ValueError, match=says): Pairs(path)

def test_an_encoder_of_another_sensor(tmp_path, fresh_runs, world):
    "Landsat's encoder on Sentinel-2's series, and a window of another size"
    _, task = world
    landsat = write_pairs(tmp_path/'landsat.h5', [sensors['landsat']])
    run = encoder(landsat, r_of(), 0, 'unimodal')
    says = 'The encoder sees landsat, and these series hold sentinel2, planetscope alone'
    with pytest.raises(ValueError, match=says): features(task, run).get()
    wide = Sensor('planetscope', ps.bands, 5)
    pairs = write_pairs(tmp_path/'wide.h5', [s2, wide])
    run = encoder(pairs, r_of(), 0, 'joint')
    says = 'planetscope is 3 x 3 pixels of reflectance here, and the encoder was trained on 5 x 5'
    with pytest.raises(ValueError, match=says): features(task, run, sees='both').get()

def test_series_of_fewer_bands_than_they_say(tmp_path):
    task = write_series(tmp_path/'series', [ten])
    edit_attr(task/'val.h5', 'sensors', sensors_text([s2]))
    with pytest.raises(ValueError, match='time_series has shape .24, 6, 10., not .any, any, 12.'):
        read_part(task/'val.h5')

def test_bands_of_a_pair_file_are_named_in_the_error(smoke):
    says = "bands='B02 NIR': sentinel2 has no band NIR: it has B01 B02"
    with pytest.raises(ValueError, match=says): encoder(smoke.pairs, r_of(bands='B02 NIR'), 0).get()

def test_old_files_mean_the_authors_two(tmp_path):
    "Without the attribute"
    path = write_pairs(tmp_path/'pairs.h5', two)
    said = Pairs(path)
    with h5py.File(path, 'a') as h: del h.attrs['sensors']
    shutil.copy(path, tmp_path/'old.h5')
    old = Pairs(tmp_path/'old.h5')
    assert old.sensors==said.sensors==two
    assert all(torch.equal(a, b) for a,b in zip(old.x, said.x))
