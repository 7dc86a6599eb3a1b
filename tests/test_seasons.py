"An encoder of whole seasons, from a bank to probes; what it refuses. Its method is in test_methods"
import shutil, subprocess, sys
import h5py, numpy as np, pytest, torch
from conftest import root
from test_methods import go_on, step_of
from cropnb.controls import raw
from cropnb.data import series
from cropnb.downstream import training
from cropnb.encoder import load_encoder
from cropnb.encoders import SeasonTransformer
from cropnb.engine.records import result
from cropnb.features import features, load_part, read_part
from cropnb.maps.networks import front_of
from cropnb.measure.probes import Collapse, check_collapse
from cropnb.methods.seasons import DatedSeasons, MAEDates, WholeSeasons, untrained_seasons
from cropnb.methods.table import find_method
from cropnb.prepare.years import years
from cropnb.pretrain import encoder, probe
from cropnb.probing import probing
from cropnb.seasons import embed_seasons

small = dict(method='mae_dates', dim=16, blocks=1)

@pytest.fixture(scope='module')
def world(smoke):
    "Recipe, years, a task and a trained encoder of seasons"
    r = smoke.recipe|small
    seasons = years(smoke.data, smoke.recipe, 0)
    return r, seasons, series(1, smoke.data, smoke.recipe, 0), encoder(seasons, r, 0, 'unimodal')

# ---------------------------------------------------------------- from a bank to probes
def test_it_is_an_encoder_file_like_any_other(world):
    r, seasons, task, run = world
    e = load_encoder(run.get())
    assert isinstance(e.net, SeasonTransformer)
    assert (e.dim, e.what['kind'], e.what['method']) == (16, 'SeasonTransformer', 'mae_dates')
    bank = DatedSeasons(seasons.get())
    with torch.no_grad(): want = e.net(WholeSeasons().whole(bank, slice(None)))
    found = embed_seasons(e, bank.x[0], bank.seen, bank.day)
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)

def test_its_features_are_one_vector_a_season(world):
    r, seasons, task, run = world
    made = features(task, run).get()
    train, val = (np.load(made/f'{name}.npy') for name in ('train', 'val'))
    assert (train.shape, val.shape) == ((108, 1, 16), (54, 1, 16))
    np.testing.assert_allclose(train.mean(0), 0, atol=2e-3)
    part = read_part(task.get()/'val.h5')
    code = embed_seasons(load_encoder(run.get()), part['x'], part['mask'], part['day'])
    mean, std = (np.array(result(made)[k]) for k in ('mean', 'std'))
    np.testing.assert_allclose(val[:,0], (code.numpy()-mean)/std, atol=5e-3)

@pytest.mark.parametrize('family', ['ridge', 'linear', 'knn', 'forest'])
def test_probes_take_them(world, family):
    r, seasons, task, run = world
    found = result(probing(task, run, 1, family, r, 0).get())
    assert 0<=found['accuracy']<=1
    assert found['n_val']==54

def test_its_control_is_what_it_starts_from(world):
    r, seasons, task, run = world
    control = untrained_seasons(seasons, r, 0)
    e, again = (load_encoder(control.get()) for _ in range(2))
    assert e.what['mode']=='untrained'
    torch.manual_seed(control.recipe['seed'])
    first = MAEDates(WholeSeasons(), 16, 1).encoder
    assert torch.equal(e.net[-1].weight, first[-1].weight)
    assert not torch.equal(e.net[1].running_mean, first[1].running_mean) # one pass over the bank
    assert result(probing(task, control, 1, 'ridge', r, 0).get())['n_val']==54

# ---------------------------------------------------------------- what was not seen
def altered(task, folder, change):
    "The task's files, changed by `change(h)`"
    folder.mkdir()
    for name in ('train.h5', 'val.h5'):
        shutil.copyfile(task.get()/name, folder/name)
        with h5py.File(folder/name, 'a') as h: change(h)
    return folder

def with_gaps(value):
    "The second date of every other season was not seen; what lies there is a value"
    def change(h):
        h['mask'][::2,1] = 0
        x = h['time_series'][:]
        x[::2,1] = value
        h['time_series'][:] = x
    return change

def test_what_lies_where_nothing_was_seen_changes_nothing(world, tmp_path):
    r, seasons, task, run = world
    banks, made = [], []
    for value in (0, 9000):
        folder = altered(task, tmp_path/str(value), with_gaps(value))
        banks.append(DatedSeasons(folder))
        made.append(np.load(features(folder, run).get()/'val.npy'))
    shown = [WholeSeasons().whole(bank, slice(None)) for bank in banks]
    assert torch.equal(*shown)
    assert np.array_equal(*made)
    torch.manual_seed(0)
    method = MAEDates(WholeSeasons(), 16, 1)
    for _ in range(20):
        hidden = method(shown[0])[2].view(len(banks[0]), -1, 12)
        assert not hidden[~banks[0].seen].any()

# ---------------------------------------------------------------- a collapse is seen
class Mute(MAEDates):
    "Its encoder says the same of all seasons; the decoder learns the mean year from the days"
    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        self.encoder[-1].weight.requires_grad_(False).zero_()

def test_an_encoder_that_says_nothing_is_seen_though_the_loss_falls(smoke):
    pairs = type('P', (), dict(years=years(smoke.data, smoke.recipe, 0)))()
    step = step_of(pairs, 'mae_dates', cls=Mute, n=60, lr=1e-2, width=32)
    losses = []
    for _ in range(2):
        step.total.zero_()
        for i in range(5): go_on(step, i, i+1)
        losses.append(step.total.item())
    assert losses[1]<losses[0]
    found = probe(step.method, step.views, step.pairs, 0)
    with pytest.raises(Collapse, match='The embeddings collapsed'): check_collapse(found, 1)

# ---------------------------------------------------------------- what makes no sense
single = 'encoder of whole seasons, and was given single dates'

def test_whoever_looks_at_dates_refuses_it(world):
    r, seasons, task, run = world
    e = load_encoder(run.get())
    with pytest.raises(ValueError, match=single): e.embed(np.full((3, 5, 12), 1500, 'uint16'))
    of_season = 'one vector a season, and dates are wanted'
    with pytest.raises(ValueError, match=of_season):
        training(task, run, 1, 'transformer', 0, r, 0).get()
    with pytest.raises(ValueError, match=of_season):
        load_part(features(task, run).get(), task.get(), 'val')
    with pytest.raises(ValueError, match='a SeasonTransformer, and maps'):
        front_of(e.net, e.mean, e.std)

def test_it_refuses_what_is_not_of_seasons(smoke, world):
    r, seasons, task, run = world
    part = read_part(task.get()/'val.h5')
    with pytest.raises(ValueError, match='sees single dates'):
        embed_seasons(load_encoder(raw(smoke.pairs).get()), part['x'], part['mask'], part['day'])
    with pytest.raises(ValueError, match='mae_dates has the modes unimodal, not bimodal'):
        encoder(seasons, r, 0, 'bimodal')
    with pytest.raises(ValueError, match='leave backbone at'):
        encoder(seasons, r|dict(backbone='bands'), 0, 'unimodal').get()
    with pytest.raises(FileNotFoundError, match='train.h5'):
        encoder(smoke.pairs, r, 0, 'unimodal').get()
    e = load_encoder(run.get())
    x = np.full((3, 5, 12), 1500, 'uint16')
    with pytest.raises(ValueError, match='seen is 0 everywhere'):
        embed_seasons(e, x, np.zeros((3, 5)), np.arange(15).reshape(3, 5))

def test_dates_that_are_not_known(world, tmp_path):
    r, seasons, task, run = world
    def undated(h): h['date'][:] = 0
    folder = altered(task, tmp_path/'undated', undated)
    with pytest.raises(ValueError, match='its dates are not known'): DatedSeasons(folder)
    with pytest.raises(ValueError, match=r'train.h5: The days are not known \(all are 1\)'):
        features(folder, run).get()

# ---------------------------------------------------------------- in a process of its own
def said(code):
    done = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True)
    return done.stdout+done.stderr.splitlines()[-1] if done.stderr else done.stdout

def test_the_front_door_reads_it(world):
    path = str(world[-1].get())
    for door in ('cropnb', 'cropnb.encoder'):
        code = f'from {door} import load_encoder; print(load_encoder({path!r}))'
        assert '16 features' in said(code)

def test_find_method(): assert find_method('mae_dates') is MAEDates
