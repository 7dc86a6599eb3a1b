"""Hostile files and values, one table: what is done to a good one, and what is said of it.

A case is (what is done, a part of the message); `accepted(why)` in place of the message where it
goes through on purpose. Every message names the file or the parameter."""
import json, math
import h5py, numpy as np, pytest, torch
from safetensors.torch import load_file, safe_open, save_file
from cropnb.downstream import build, load_model, save_model, training
from cropnb.encoder import load_encoder, save_encoder
from cropnb.encoders import ResMLP
from cropnb.engine.bands import crops, ps_bands, s2_bands
from cropnb.engine.parameters import check_params
from cropnb.engine.recipes import recipe
from cropnb.evaluate import read_scores, win_matrix
from cropnb.features import read_part
from cropnb.prepare.published import adopt_pairs, adopt_series, authors_files
from cropnb.pretrain import encoder
from cropnb.probing import probing
from cropnb.twin.sample import write_published
from cropnb.views import Pairs

class accepted(str):
    "Goes through on purpose; the text says why"

# ---------------------------------------------------------------- what is done to HDF5
def write(path, attrs=(), **arrays):
    with h5py.File(path, 'w') as h:
        for name,a in arrays.items(): h[name] = a
        h.attrs.update(dict(attrs))

def put(name, value):
    "Another data set in its place"
    def do(path):
        with h5py.File(path, 'r+') as h:
            old = h[name][:]
            del h[name]
            h[name] = value(old) if callable(value) else value
    return do

def cell(name, value):
    "One value of it, in a type that holds it"
    def other(old):
        a = old.astype(np.result_type(old, np.asarray(value)))
        a.flat[0] = value
        return a
    return put(name, other)

def drop(name):
    def do(path):
        with h5py.File(path, 'r+') as h: del h[name]
    return do

def group(name):
    def do(path):
        with h5py.File(path, 'r+') as h:
            del h[name]
            h.create_group(name)
    return do

def link(name, make):
    def do(path):
        with h5py.File(path, 'r+') as h:
            h.move(name, 'moved')
            h[name] = make(path)
    return do

def dangling(name): return link(name, lambda path: h5py.SoftLink('/gone'))
def external(name): return link(name, lambda path: h5py.ExternalLink('other.h5', name))

def raw(name):
    "Its numbers in a file beside it"
    def do(path):
        with h5py.File(path, 'r+') as h:
            a = h[name][:]
            del h[name]
            beside = path.with_suffix('.bin')
            beside.write_bytes(a.tobytes())
            h.create_dataset(name, a.shape, a.dtype, external=[(str(beside), 0, a.nbytes)])
    return do

def virtual(name):
    def do(path):
        with h5py.File(path, 'r+') as h:
            a = h[name]
            layout = h5py.VirtualLayout(a.shape, a.dtype)
            layout[...] = h5py.VirtualSource('other.h5', name, a.shape)
            del h[name]
            h.create_virtual_dataset(name, layout)
    return do

def attr(name, value=None):
    "Another value; without one it is removed"
    def do(path):
        with h5py.File(path, 'r+') as h:
            if name in h.attrs: del h.attrs[name]
            if value is not None: h.attrs[name] = value
    return do

def cut(path): path.write_bytes(path.read_bytes()[:len(path.read_bytes())//2])
def text(path): path.write_text('<html>Not found</html>')
def empty(path): path.write_bytes(b'')
def gone(path): path.unlink()
def same(path): pass

# ---------------------------------------------------------------- good files, and who reads them
n, dates = 36, 4
rng = np.random.default_rng(0)
s2 = rng.integers(300, 4000, (n, 12)).astype('uint16')
ps = np.repeat(s2[:,[1, 2, 3, 7],None], 9, 2)
season = rng.integers(300, 4000, (n, dates, 12)).astype('uint16')
label = (np.arange(n)%9+1)[:,None]

def published_pairs(folder):
    path = folder/authors_files['pairs']
    write(path, sentinel2_data=s2, planet_data=ps)
    def read():
        (folder/'out').mkdir()
        adopt_pairs(folder/'out', dict(source='toy'), folder)
    return path, read

def published_series(folder):
    path, val = (folder/f for f in authors_files[1])
    for p in (path, val): write(p, time_series=season, crop_labels=label)
    def read():
        (folder/'out').mkdir()
        adopt_series(folder/'out', dict(source='toy', task=1), folder)
    return path, read

def pair_file(folder):
    path = folder/'pairs.h5'
    stats = {'s2_mean': np.ones(12), 's2_std': np.ones(12), 'ps_mean': np.ones(4)}
    more = dict(date=np.full(n, 17532), crop=label[:,0], field_id=np.arange(n))
    write(path, stats|dict(ps_std=np.ones(4)), sentinel2_data=s2, planet_data=ps, **more)
    return path, lambda: Pairs(path)

def series_file(folder):
    path = folder/'train.h5'
    about = dict(
        time_series=season, mask=np.ones((n, dates), 'uint8'), crop_labels=label,
        date=np.full((n, dates), 17532), field_id=np.arange(n))
    write(path, dict(classes=json.dumps(crops), source='toy'), **about)
    return path, lambda: read_part(path)

stats = dict(s2_mean=torch.full((12,), .3), s2_std=torch.full((12,), .1))

def encoder_file(folder):
    path = folder/'encoder.safetensors'
    how = dict(mode='untrained', method=None, corruption=None)
    save_encoder(path, ResMLP(12, 8, 1), stats, recipe=dict(dim=8, blocks=1), **how)
    return path, lambda: load_encoder(path)

def model_file(folder):
    encoder_file(folder)
    path = folder/'model.safetensors'
    how = dict(family='lstm', hyper=dict(hidden=8, layers=1), seed=0, position='index', frozen=True)
    seen = dict(mean=[0.]*8, std=[1.]*8)
    part = dict(own={}, classes=list(crops))
    save_model(path, build(how, 8, 9, None), how, seen, part, 'e')
    return path, lambda: load_model(path, encoder=folder/'encoder.safetensors')

def series_of_pixels(folder):
    path, _ = encoder_file(folder)
    return None, load_encoder(path).embed

rows = [dict(task=1, family='lstm', variant=v, corruption=.2, config=c, seed=0, accuracy=.5)
        for v in ('supervised', 'unimodal', 'bimodal') for c in (0, 1)]

def score_table(folder):
    import pandas as pd
    path = folder/'scores.csv'
    pd.DataFrame(rows).to_csv(path, index=False)
    return path, lambda: win_matrix(read_scores(path))

def said(name, value):
    "A word for another in the metadata, or another tensor"
    def do(path):
        with safe_open(path, 'pt') as f: what = json.loads(f.metadata()['cropnb'])
        tensors = load_file(path)
        if name in tensors: tensors[name] = value
        else: what[name] = value
        save_file(tensors, path, dict(cropnb=json.dumps(what)))
    return do

def metadata(value):
    def do(path): save_file(load_file(path), path, value and dict(cropnb=value))
    return do

def lacking(name):
    def do(path):
        with safe_open(path, 'pt') as f: meta = f.metadata()
        tensors = load_file(path)
        del tensors[name]
        save_file(tensors, path, meta)
    return do

def wider(path):
    how = dict(mode='untrained', method=None, corruption=None)
    other = path.with_name('encoder.safetensors')
    save_encoder(other, ResMLP(12, 16, 1), stats, recipe=dict(dim=16, blocks=1), **how)

def no_encoder(path): path.with_name('encoder.safetensors').unlink()

def replace(old, new, count=-1):
    def do(path): path.write_text(path.read_text().replace(old, new, count))
    return do

def without(column):
    def do(path):
        import pandas as pd
        pd.read_csv(path).drop(columns=column).to_csv(path, index=False)
    return do

def header(path): path.write_text(path.read_text().splitlines()[0])
def doubled(path): path.write_text(path.read_text()+path.read_text().splitlines()[1]+'\n')

# ---------------------------------------------------------------- the table of files
def common(name, path):
    "What may be wrong with a data set of any HDF5 file"
    return [
        (cut, f'{path} cannot be read as HDF5'),
        (text, f'{path} cannot be read as HDF5'),
        (empty, f'{path} cannot be read as HDF5'),
        (drop(name), f'has no data set {name}'),
        (group(name), f'{path}: {name} is a group'),
        (dangling(name), f'{path}: {name} is a link that leads nowhere'),
        (external(name), f'{path}: {name} is a link to other.h5'),
        (raw(name), f'{path}: {name} keeps its numbers in other files'),
        (virtual(name), f'{path}: {name} keeps its numbers in other files'),
        (put(name, lambda a: a[:0]), f'{path}: {name} is empty'),
        (put(name, lambda a: a[...,:-1]), f'{path}: {name} has shape'),
        (put(name, np.array([b'a', b'b'])), f'{path}: {name} has shape')]

x10000 = 'integers of reflectance x 10000 are wanted'
clipped = accepted('dark pixels scatter about 0: clipped, as the notebook says')
files = {
    published_pairs: common('sentinel2_data', authors_files['pairs']) + [
        (gone, 'has no pretraining_point2.h5: get it from Zenodo'),
        (put('planet_data', ps[1:]), 'planet_data has shape'),
        (cell('planet_data', np.nan), f'planet_data holds NaN, or reflectances in 0..1: {x10000}'),
        (cell('planet_data', np.inf), 'planet_data holds NaN'),
        (put('sentinel2_data', s2/1e4), f'in 0..1: {x10000}'),
        (put('sentinel2_data', s2//10_000), f'holds nothing above 0: {x10000}'),
        (put('sentinel2_data', s2.astype('S4')), 'has the type |S4'),
        (put('sentinel2_data', s2.astype('f8')), accepted('whole numbers kept as floats')),
        (cell('sentinel2_data', -3), clipped),
        (same, accepted('the good file'))],
    published_series: common('time_series', authors_files[1][0]) + [
        (gone, 'has no train_sentinel_ts.hdf5: get it from Zenodo'),
        (put('crop_labels', label[1:]), 'crop_labels has shape'),
        (put('crop_labels', label[:,0]), 'crop_labels has shape (36,), not (36, 1)'),
        (cell('crop_labels', 0), 'crop_labels holds 0, which is not in 1..9'),
        (cell('crop_labels', 10), 'crop_labels holds 10'),
        (cell('crop_labels', 257), 'crop_labels holds 257'),
        (cell('crop_labels', -1), 'crop_labels holds -1'),
        (cell('crop_labels', 1.5), 'crop_labels holds 1.5: labels are whole numbers'),
        (cell('crop_labels', np.nan), 'crop_labels holds nan'),
        (put('crop_labels', label.astype('S1')), 'crop_labels has the type |S1'),
        (put('crop_labels', label*0+1), 'no sample of Rye'),
        (cell('time_series', np.nan), 'time_series holds NaN'),
        (put('time_series', season/1e4), 'in 0..1'),
        (put('time_series', season*0), 'time_series holds nothing above 0'),
        (put('crop_labels', label.astype('f4')), accepted('whole numbers kept as floats')),
        (same, accepted('the good file'))],
    pair_file: common('sentinel2_data', 'pairs.h5') + [
        (gone, 'pairs.h5 is not a file: make the pairs again'),
        (put('planet_data', ps[:0]), 'planet_data has shape (0, 4, 9), not (36, 4, 9)'),
        (put('sentinel2_data', s2.astype('f4')), 'has the type float32: integers are wanted'),
        (put('sentinel2_data', s2//10_000), f'holds nothing above 0: {x10000}'),
        (cell('sentinel2_data', -9999), 'sentinel2_data holds -9999'),
        (put('date', np.full(n, 20180301)), 'date holds 20180301'),
        (put('date', np.full(n, -2**63)), 'date holds -9223372036854775808'),
        (put('date', np.ones(n-1, int)), 'date has shape'),
        (cell('crop', -1), 'crop holds -1'),
        (cell('field_id', 2**32), 'field_id holds 4294967296'),
        (attr('s2_mean'), 'lacks the statistics s2_mean: run cropnb.data.add_moments'),
        (attr('s2_std', np.zeros(12)), 's2: the standard deviation of B01 is 0.0'),
        (attr('ps_std', np.array([1, 1, np.nan, 1])), 'the standard deviation of red is nan'),
        (attr('ps_mean', np.ones(12)), 'ps: the mean has shape (12,), not (4,)'),
        (drop('date'), accepted('the published pairs name no dates')),
        (cell('field_id', -1), accepted('a field that is not known')),
        (same, accepted('the good file'))],
    series_file: common('time_series', 'train.h5') + [
        (gone, 'train.h5 is not a file: make the series again'),
        (attr('classes'), 'the attribute classes is missing'),
        (attr('classes', 'wheat, rye'), "classes is 'wheat, rye', not a list of names as JSON"),
        (attr('classes', '{}'), 'not a list of names as JSON'),
        (attr('classes', '["a", "a"]'), 'classes names one twice'),
        (attr('classes', '["a", "b"]'), 'which is not in 1..2: labels go from 1'),
        (attr('source'), 'the attribute source is missing'),
        (attr('prevalence', '[0.5]'), 'prevalence has 1 numbers for 9 classes'),
        (attr('mean', np.ones(12)), 'has the attribute mean alone'),
        (cell('crop_labels', 0), 'crop_labels holds 0, which is not in 1..9'),
        (cell('crop_labels', 10), 'crop_labels holds 10'),
        (put('crop_labels', label[4:]), 'crop_labels has shape'),
        (put('mask', np.ones((n, 3), int)), 'mask has shape'),
        (cell('mask', 2), 'mask holds 2'),
        (put('date', np.ones(n, int)), 'date has shape'),
        (cell('date', 20180301), 'date holds 20180301'),
        (put('field_id', np.arange(n-1)), 'field_id has shape'),
        (cell('field_id', 2**32), 'field_id holds 4294967296'),
        (put('time_series', season/1e4), 'has the type float64'),
        (put('time_series', season//10_000), 'holds nothing above 0'),
        (put('mask', np.zeros((n, dates), bool)), accepted('a season in which nothing was seen')),
        (same, accepted('the good file'))],
    encoder_file: [
        (gone, 'encoder.safetensors is not there'),
        (cut, 'encoder.safetensors is damaged or not safetensors'),
        (text, 'encoder.safetensors is damaged or not safetensors'),
        (empty, 'encoder.safetensors is damaged or not safetensors'),
        (metadata(None), 'is not a cropnb encoder: it has no cropnb metadata'),
        (metadata('{'), 'its cropnb metadata are not JSON'),
        (metadata('[]'), 'not an object of JSON'),
        (metadata('{}'), 'its metadata lack mode'),
        (said('bands', None), 'was trained on bands None'),
        (said('bands', s2_bands[::-1]), 'was trained on bands'),
        (said('bands', ps_bands), 'was trained on bands'),
        (said('kind', 'ResNet'),
         "its kind is 'ResNet', not one of ResMLP, BandTransformer"),
        (said('recipe', dict(dim=8, blocks=100_000)), 'say blocks=100000'),
        (said('recipe', dict(dim=8, blocks=-1)), 'say blocks=-1'),
        (said('recipe', dict(dim=0, blocks=1)), 'dim=0 is not a whole number'),
        (said('recipe', dict(dim=32, blocks=1)), 'not those of a ResMLP of width 32'),
        (said('recipe', 'demo'), "its recipe is 'demo'"),
        (said('_std', torch.zeros(12)), 'the standard deviation of B01 is 0.0'),
        (said('_std', torch.full((12,), math.nan)), '_std holds NaN or infinity'),
        (said('_mean', torch.zeros(4)), 'the mean has shape (4,), not (12,)'),
        (lacking('_mean'), 'lacks _mean'),
        (lacking('0.weight'), 'its weights are not those'),
        (said('0.bias', torch.full((8,), math.inf)), '0.bias holds NaN or infinity'),
        (said('note', 'mine'), accepted('more metadata do no harm'))],
    model_file: [
        (gone, 'model.safetensors is not there'),
        (cut, 'model.safetensors is damaged or not safetensors'),
        (metadata(None), 'is not a cropnb model'),
        (metadata('{}'), 'its metadata lack family'),
        (said('family', 'svm'), "family='svm' is not one of lstm"),
        (said('classes', []), 'names no classes'),
        (said('classes', ['rye']), 'its weights are not those'),
        (said('hyper', dict(hidden=16, layers=1)), 'its weights are not those'),
        (no_encoder, 'stands on the encoder e'),
        (wider, 'was trained on 8 features, and'),
        (same, accepted('the good file'))],
    score_table: [
        (empty, 'scores.csv is not a score table'),
        (text, 'scores.csv is not a score table: its columns are <html>'),
        (without('accuracy'), 'is not a score table: its columns are'),
        (without('variant'), 'is not a score table: its columns are'),
        (without('config'), 'The score table lacks config'),
        (header, 'The score table is empty: run nbs/04_downstream.ipynb'),
        (doubled, 'Two trainings for'),
        (replace('0.5', 'high', 1), 'scores.csv: accuracy is high in row 1'),
        (replace('0.5', '61.5', 1), 'accuracy is 61.5 in row 1, not a number in 0..1'),
        (replace('0.5', '', 1), 'accuracy is nan in row 1'),
        (replace('0.2', '2', 1), 'corruption is 2.0 in row 1'),
        (same, accepted('the good file'))]}
cases = [(kind, do, says) for kind,table in files.items() for do,says in table]

def check(act, says, allowed=(ValueError, FileNotFoundError, TypeError)):
    if isinstance(says, accepted): return act()
    with pytest.raises(allowed) as e: act()
    assert says in str(e.value)

@pytest.mark.parametrize('kind,do,says', cases, ids=[f'{k.__name__}-{s}' for k,_,s in cases])
def test_a_file(tmp_path, kind, do, says):
    path, read = kind(tmp_path)
    do(path)
    check(read, says)

# ---------------------------------------------------------------- arrays for an encoder
x = np.full((3, 12), 3000)
arrays = [
    (np.full((3, 12), np.nan), 'holds NaN'),
    (np.where(np.eye(3, 12)>0, np.inf, x), 'holds NaN or infinity'),
    (x.astype(object), 'series has the type object'),
    (x.astype(str), 'series has the type <U'),
    (x.astype(complex), 'series has the type complex128'),
    (x>0, 'series has the type bool'),
    (x[:,:4], 'The last axis has 4 bands'),
    (np.zeros((3, 13)), 'The last axis has 13 bands'),
    (np.float64(3000), 'The last axis has 0 bands'),
    (x/1e4, 'multiply them by 10000'),
    (np.where(np.eye(3, 12)>0, -9999, x), 'series holds -9999: fill nodata with 0'),
    (np.ma.masked_equal(x, 3000), 'has masked values: fill them with 0'),
    (x-3010, accepted('noise of a dark pixel')),
    (np.zeros((3, 12), 'uint16'), accepted('a date that was not seen is 0')),
    (x.tolist(), accepted('lists are arrays'))]

@pytest.mark.parametrize('a,says', arrays, ids=[s for _,s in arrays])
def test_an_array(tmp_path, a, says):
    _, embed = series_of_pixels(tmp_path)
    check(lambda: embed(a), says)

# ---------------------------------------------------------------- parameters
def notebook(**p): return lambda folder: check_params(p, tasks=(1, 2, 3), families=('lstm',))
def of(n_jobs=1, tasks=(1,), families=('lstm',), **more):
    return notebook(n_jobs=n_jobs, tasks=list(tasks), families=list(families), **more)
def keys(**changes): return lambda folder: recipe('smoke', **changes)
def pretrain(seed=0, mode='bimodal', corruption=.2, epochs=1, **changes):
    def do(folder):
        return encoder(pair_file(folder)[0], recipe('smoke', **changes), seed, mode,
                       corruption, epochs)
    return do
def train(config=0, seed=0, fields=0, family='lstm', make=training, **changes):
    def do(folder):
        r = recipe('smoke')|changes
        more = (config,) if make is training else ()
        return make(folder, encoder_file(folder)[0], 1, family, *more, r, seed, fields=fields)
    return do
def probe(**changes): return train(make=probing, **dict(family='linear')|changes)

parameters = [
    (of(n_jobs=0), 'n_jobs=0 is not a whole number of at least 1'),
    (of(n_jobs=-1), 'n_jobs=-1 is not'),
    (of(n_jobs='2'), "n_jobs='2' is not"),
    (of(tasks=[]), 'tasks=[] is empty: take some of 1, 2, 3'),
    (of(tasks=[4]), 'tasks=4 is not one of 1, 2, 3'),
    (of(tasks=['lstm']), "tasks='lstm' is not one of"),
    (of(tasks=[1, 1]), 'tasks=[1, 1] names one twice'),
    (of(families=[]), 'families=[] is empty'),
    (of(seed=.5), 'seed=0.5 is not a whole number of at least 0'),
    (of(seed=-1), 'seed=-1 is not'),
    (of(corruption=math.nan), 'corruption=nan is not in 0..1'),
    (of(epochs=-2), 'epochs=-2 is not'),
    (of(), accepted('good parameters')),
    (keys(batch=0), 'batch=0 is not a whole number of at least 1'),
    (keys(batch=1), accepted('a network is trained on one series at a time')),
    (keys(pretrain_batch=0), 'pretrain_batch=0 is not'),
    (keys(pretrain_batch=1), 'pretrain_batch=1 is not a whole number of at least 2'),
    (keys(pretrain_batch=64.), 'pretrain_batch=64.0 is not'),
    (keys(threads=0), 'threads=0 is not'),
    (keys(pretrain_lr=0), 'pretrain_lr=0 is not a number above 0'),
    (keys(pretrain_lr=math.nan), 'pretrain_lr=nan is not'),
    (keys(weight_decay=-1), 'weight_decay=-1 is not'),
    (keys(dropout=1.5), 'dropout=1.5 is not in'),
    (keys(dim=0), 'dim=0 is not'),
    (keys(blocks=-1), 'blocks=-1 is not'),
    (keys(blocks=0), accepted('a network without residual blocks')),
    (keys(max_days=-1), 'max_days=-1 is not'),
    (keys(stratify='no'), "stratify='no' is not of type bool"),
    (keys(options=[]), 'options=[] is not of type dict'),
    (keys(clouds='some'), "clouds='some' is not one of all, clear"),
    (keys(temprature=.1), 'No recipe key temprature'),
    (pretrain(seed=.5), 'seed=0.5 is not'),
    (pretrain(seed=-1), 'seed=-1 is not'),
    (pretrain(corruption=math.nan), 'corruption=nan is not in 0..1'),
    (pretrain(corruption='0.2'), "corruption='0.2' is not in 0..1"),
    (pretrain(epochs=-2), "epochs (-1: the profile's)=-2 is not"),
    (pretrain(mode='three'), "mode='three' is not one of"),
    (pretrain(options=dict(temperature=0)), 'option temperature=0 is not a number above 0'),
    (pretrain(options=dict(temperature=-1.)), 'option temperature=-1.0 is not'),
    (pretrain(options=dict(temperature=math.nan)), 'option temperature=nan is not'),
    (pretrain(options=dict(temperature='cold')), 'is not of the type of its default'),
    (pretrain(options=dict(tau=1.)), 'SimCLR has no option tau: it has temperature'),
    (pretrain(method='byl'), "method='byl' is not one of"),
    (train(config=9), 'config=9: profile smoke has 1 sets of lstm'),
    (train(config=-1), 'config=-1 is not'),
    (train(seed=.5), 'seed=0.5 is not'),
    (train(fields=-1), 'fields=-1 is not'),
    (train(family='svm'), "family='svm' is not one of lstm"),
    (train(epochs=0), 'epochs=0 is not'),
    (probe(seed=-1), 'seed=-1 is not'),
    (probe(fields=1.5), 'fields=1.5 is not'),
    (probe(family='svm'), "family='svm' is not one of linear"),
    (probe(threads=0), 'threads=0 is not')]

@pytest.mark.parametrize('do,says', parameters, ids=[s for _,s in parameters])
def test_a_parameter(tmp_path, do, says): check(lambda: do(tmp_path), says)

# ---------------------------------------------------------------- one folder, two calls
small = dict(pairs=144, train=10, per_field=5, parcels=0, dates=2)
twins = [
    (dict(seed=1), 'other settings'),
    (dict(dates=3), 'take another folder'),
    (dict(train=9), 'train=9 is not a whole number of at least 10'),
    (dict(pairs=1), 'pairs=1 is not'),
    (dict(per_field=0), 'per_field=0 is not'),
    (dict(seed=-1), 'seed=-1 is not'),
    ({}, accepted('the same settings go on'))]

@pytest.fixture(scope='module')
def twin_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('twin')
    write_published(folder, **small)
    return folder

@pytest.mark.parametrize('change,says', twins, ids=[s for _,s in twins])
def test_a_second_twin(twin_folder, change, says):
    check(lambda: write_published(twin_folder, **small|change), says)

def test_the_table_is_large():
    every = [s for _,_,s in cases]+[s for _,s in arrays+parameters+twins]
    named = [s for s in every if not isinstance(s, accepted)]
    assert len(every)>=200 and len(named)>=150
