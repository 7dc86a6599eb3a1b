"Base models, features, records and probes"
import gc, json, shutil, weakref
from types import SimpleNamespace
import h5py, numpy as np, pytest, torch
from cropnb.base_models import families
from cropnb.controls import raw, untrained
from cropnb.data import series
from cropnb.downstream import EndToEnd, build, fit, load_model, predict, training
from cropnb.encoder import Encoder, load_encoder
from cropnb.engine.files import runs_dir
from cropnb.engine.records import Run, result
from cropnb.evaluate import scores
from cropnb.features import features, load_part, read_part
from cropnb.prepare.seasons import own_task
from cropnb.pretrain import encoder
from cropnb.probing import label_grid, probes, probing

# ---------------------------------------------------------------- base models on a toy task
def toy_part(n=64, dates=20, gaps=True, device='cpu'):
    "Random seasons of four classes; with `gaps`, 30 % of the dates are missing"
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, dates, 12, generator=g).half()
    mask = torch.rand(n, dates, generator=g)<.7
    part = dict(x=x, y=torch.arange(n)%4, mask=mask, day=torch.arange(dates).expand(n, dates))
    return {k: v.to(device) for k,v in part.items()} | dict(whole=not gaps)

def train_on(model, part):
    "Accuracy and loss of each of two epochs; the last batch is short"
    r = dict(hyper=dict(lr=1e-3), epochs=2, batch=24, seed=0, position='index', frozen=True)
    rows = torch.arange(len(part['y']), device=part['y'].device)
    return fit(model, dict(train=part, val=part), r, rows)

def weights_of(model): return {k: v.clone() for k,v in model.state_dict().items()}

def same_weights(model, weights):
    return all(torch.equal(v, weights[k]) for k,v in model.state_dict().items())

def unregistered(model):
    "Is there a layer that `.double()` does not reach? Then float64 meets float32"
    try: model.double()(torch.randn(4, 9, 12, dtype=torch.float64))
    except RuntimeError: return True
    finally: model.float()

@pytest.mark.parametrize('family', families)
def test_every_parameter_is_registered_moved_and_trained(family):
    model = families[family](12, 4)
    assert not unregistered(model)
    before = weights_of(model)
    train_on(model, toy_part())
    assert [n for n,p in model.named_parameters() if torch.equal(p, before[n])]==[]
    predict(model, toy_part())
    assert not any(layer.training for layer in model.modules())

def test_a_frozen_inception_would_be_seen():
    "In the released snapshot the blocks are in a plain list, and so in no state_dict"
    model = families['inception'](12, 4)
    blocks = list(model.mods)
    del model.mods
    model.__dict__['mods'] = blocks
    assert unregistered(model)

@pytest.mark.parametrize('family', families)
def test_prediction_changes_nothing_and_draws_nothing(family):
    hyper = {} if family=='inception' else dict(dropout=.5, layers=2)
    model = families[family](12, 4, **hyper)
    old = weights_of(model)
    part = toy_part()
    assert torch.equal(predict(model, part), predict(model, part))
    assert same_weights(model, old)

def train_whole(family, **where):
    "A model, and accuracy and loss of each epoch, on seasons without gaps"
    torch.manual_seed(0)
    model = families[family](12, 4).to(where.get('device', 'cpu'))
    return model, train_on(model, toy_part(gaps=False, **where))

@pytest.mark.parametrize('family', families)
def test_a_recorded_training_is_the_plain_one(family, record_steps):
    "With a last batch that is short and a learning rate that falls, on a CPU"
    plain, want = train_whole(family)
    seen = record_steps()
    recorded, history = train_whole(family)
    assert seen==['plain']*3+['recorded', 'replayed']
    assert history==want
    assert same_weights(recorded, plain.state_dict())

no_gpu = 'no GPU here: what runs on one is not yet measured'
@pytest.mark.skipif(not torch.cuda.is_available(), reason=no_gpu)
@pytest.mark.parametrize('family', families)
def test_on_a_gpu_too(family, monkeypatch):
    _, (_, recorded) = train_whole(family, n=240, device='cuda')
    monkeypatch.setenv('CROPNB_EAGER', '1')
    _, (_, plain) = train_whole(family, n=240, device='cuda')
    assert recorded==pytest.approx(plain, rel=1e-3)

def test_a_training_lets_go_of_its_data():
    "No cycle keeps the embeddings until the collector comes"
    part = toy_part()
    x = weakref.ref(part['x'])
    gc.disable()
    try:
        train_on(families['lstm'](12, 4), part)
        del part
        assert x() is None
    finally: gc.enable()

@pytest.mark.parametrize('family', families)
def test_a_season_may_have_any_length_and_gaps(family):
    model = families[family](12, 4).eval()
    for dates in (1, 7, 144, 200):
        mask = torch.rand(2, dates)<.5
        when = torch.arange(dates).expand(2, dates)
        assert model(torch.randn(2, dates, 12), mask, when).isfinite().all()

@torch.no_grad()
def test_a_transformer_sees_when():
    model = families['transformer'](12, 4).eval()
    x = torch.randn(2, 9, 12)
    mask = torch.ones(2, 9).bool()
    weekly = 7*torch.arange(9).expand(2, 9)
    assert not torch.allclose(model(x, mask, weekly), model(x, mask))

# ---------------------------------------------------------------- records on the smallest scene
@pytest.fixture(scope='module')
def world(smoke):
    "Two tasks and three encoders, which all workers share"
    r = smoke.recipe | dict(epochs=2)
    made = dict(
        supervised=raw(smoke.pairs), untrained=untrained(smoke.pairs, r, 0),
        bimodal=encoder(smoke.pairs, r, 0, 'bimodal', .2))
    made |= dict(series=series(1, smoke.data, r, 0), brittany=series(3, smoke.data, r, 0))
    for run in made.values(): run.get()
    return SimpleNamespace(recipe=r, runs=runs_dir(), **made)

def lstm(world, encoder, **kwargs):
    "Its training on task 1"
    return training(world.series, encoder, 1, 'lstm', 0, world.recipe, 0, **kwargs)

def test_embedded_once_for_all_families(world, runs_with, monkeypatch):
    runs_with(world.series, world.bimodal)
    in_training = []
    embed = Encoder.embed
    def watched(self, *args, **kwargs):
        in_training.append(self.net.training)
        return embed(self, *args, **kwargs)
    monkeypatch.setattr(Encoder, 'embed', watched)
    s,e,r = world.series, world.bimodal, world.recipe
    made = [training(s, e, 1, f, 0, r, 0) for f in families] + [probing(s, e, 1, 'ridge', r, 0)]
    for run in made: run.get()
    assert len({run.inputs['features'].id for run in made})==1
    assert in_training==[False]*2   # the parts train and val, in eval mode
    folder = features(s, e).path
    assert load_part(folder, s.path, 'train')['x'].dtype==torch.float16
    assert sorted(f.name for f in folder.glob('*.npy'))==['train.npy', 'val.npy']

def test_the_record(world):
    run = lstm(world, world.supervised)
    v = result(run.get())
    part = load_part(features(world.series, world.supervised).get(), world.series.path, 'val')
    right = (part['y'].numpy()==np.load(run.path/'predictions.npy')).mean()
    assert v['accuracy']==pytest.approx(right)
    assert v['accuracy']==pytest.approx(v['epoch_accuracy'][-1])
    assert v['accuracy']==v['until'][-1]
    assert len(v['epoch_accuracy'])==2
    assert len(v['until'])==len(v['without'])==12
    assert {'producer', 'user', 'kappa', 'macro_f1', 'confusion', 'parameters'}<=v.keys()
    assert 0<=v['weighted_accuracy']<=1

def test_the_votes_of_fields(world):
    run = lstm(world, world.supervised)
    v = result(run.get())
    votes = np.load(run.path/'votes.npy')
    assert len(votes)==v['n_fields_val']
    assert v['field_accuracy']==(votes[:,1]==votes[:,2]).mean()

def test_what_a_machine_did_is_in_the_log_alone(world):
    folder = lstm(world, world.supervised).get()
    text = json.dumps(result(folder))
    assert 'seconds' not in text
    assert 'host' not in text
    log = json.loads((folder/'log.json').read_text())
    assert {'seconds', 'host', 'peak_mb'}<=log.keys()

def test_fine_tuning_and_from_scratch(world):
    def how(encoder):
        found = result(lstm(world, encoder, frozen=False).get())
        return found['mode'], found['training']
    assert how(world.untrained)==('untrained', 'end_to_end')
    assert how(world.bimodal)==('bimodal', 'tuned')
    with pytest.raises(ValueError, match='nothing to train'): how(world.supervised)

def test_an_unknown_set_of_hyper_parameters(world):
    says = 'config=3: profile smoke has 1 sets of lstm'
    with pytest.raises(ValueError, match=says):
        training(world.series, world.supervised, 1, 'lstm', 3, world.recipe, 0)

def test_frozen_or_not_the_base_model_starts_the_same(world):
    recipe = lstm(world, world.untrained).recipe
    def made(frozen): return build(recipe|dict(frozen=frozen), 256, 9, world.untrained.path)
    assert same_weights(made(True), made(False).base.state_dict())

def test_fine_tuning_starts_from_what_was_pretrained(world):
    recipe = lstm(world, world.bimodal, frozen=False).recipe
    model = build(recipe, 12, 9, world.bimodal.path)
    assert isinstance(model, EndToEnd)
    assert all(p.requires_grad for p in model.parameters())
    bands = features(world.series, world.bimodal, frozen=False).get()
    seen = load_part(bands, world.series.path, 'val')['x'][:5].float()
    seasons = read_part(world.series.path/'val.h5')['x'][:5]
    want = load_encoder(world.bimodal.path).embed(seasons)
    embedded = model.enc.eval()(seen.flatten(0, 1)).unflatten(0, seasons.shape[:2])
    assert (embedded-want).abs().max()<.01*want.std()

measures = ['accuracy', 'kappa', 'macro_f1', 'weighted_accuracy', 'field_accuracy']

def test_probes_leave_records_like_trainings(world):
    s,e,r = world.series, world.bimodal, world.recipe
    runs = [probing(s, e, 1, f, r, 0) for f in probes] + [training(s, e, 1, 'transformer', 0, r, 0)]
    for run in runs: run.get()
    table = scores(runs)
    assert list(table.family)==[*probes, 'transformer']
    assert table[measures].notna().all(None)
    assert set(table.variant)=={'bimodal'}
    says = "family='svm' is not one of linear, ridge, knn, forest"
    with pytest.raises(ValueError, match=says): probing(s, e, 1, 'svm', r, 0)

old_words = [
    ('bimodal_tuned', 'dcl_one_sided', ('bimodal', 'dcl', '{"symmetric": false}', 'tuned')),
    ('unimodal', 'nt_xent', ('unimodal', 'simclr', '', 'frozen')),
    ('end_to_end', 'nt_xent', ('untrained', None, '', 'end_to_end')),
    ('supervised', 'nt_xent', ('raw', None, '', 'frozen'))]

@pytest.mark.parametrize('method, loss, now', old_words)
def test_an_old_record_is_scored(world, tmp_path, method, loss, now):
    "Its `method` was mode and training in one word, its `loss` is the method now"
    old = shutil.copytree(lstm(world, world.supervised).get(), tmp_path/'old')
    (old/'model.safetensors').unlink()
    record = json.loads((old/'result.json').read_text())
    del record['recipe']['keep_model']
    found = record['result']
    for key in ('mode', 'options', 'training'): del found[key]
    found |= dict(method=method, loss=loss)
    (old/'result.json').write_text(json.dumps(record))
    row, = scores([SimpleNamespace(path=old, done=True)]).to_dict('records')
    assert (row['mode'], row['method'] or None, row['options'], row['training'])==now
    assert row['variant']==method
    assert row['accuracy']==found['accuracy']

def test_labels_by_fields(world):
    families = ('ridge', 'lstm')
    variant = dict(supervised=world.supervised)
    runs = label_grid(world.series, variant, 1, world.recipe, 0, families=families)
    assert len({run.id for run in runs.values()})==10
    v = {key: result(run.get()) for key,run in runs.items()}
    for family in families:
        fields = [v['supervised', family, k]['n_fields_train'] for k in (1, 2, 5, 10, 0)]
        assert fields[0]==9
        assert fields==sorted(fields)
    few, all_of_them = v['supervised','ridge',1], v['supervised','ridge',0]
    assert few['n_fields_val']==all_of_them['n_fields_val']

def test_day_of_year(world):
    def made(family, **change):
        return training(world.series, world.supervised, 1, family, 0, world.recipe|change, 0)
    by_day = result(made('transformer', position='day').get())
    by_index = result(made('transformer').get())
    assert by_day['epoch_loss']!=by_index['epoch_loss']
    says = "position='week' is not one of index, day"
    with pytest.raises(ValueError, match=says): made('lstm', position='week')

def nameless_task(folder):
    "A task as the authors' files: neither fields nor dates nor prevalence are known"
    rng = np.random.default_rng(0)
    x = rng.integers(100, 3000, (40, 6, 12))
    s = dict(time_series=x, mask=np.ones((40, 6)), date=np.zeros((40, 6)),
             label=np.arange(40)%2+1, field_id=np.arange(40), classes=['a', 'b'])
    own_task(folder, s, 'toy')
    for part in ('train', 'val'):
        with h5py.File(folder/f'{part}.h5', 'a') as h: h['field_id'][:] = -1
    return folder

def test_series_that_name_nothing(world, tmp_path):
    "What cannot be known is NaN or empty, and a wish for few fields is an error"
    task = nameless_task(tmp_path/'t')
    def made(fields):
        return training(task, world.supervised, 4, 'lstm', 0, world.recipe, 0, fields=fields)
    v = result(made(0).get())
    assert v['n_fields_val'] is None
    assert np.isnan(v['field_accuracy'])
    assert np.isnan(v['weighted_accuracy'])
    assert v['until']==[]
    with pytest.raises(ValueError, match='do not name their fields'): made(1).get()

# ---------------------------------------------------------------- the model is kept
ways = {'lstm': 'index', 'inception': 'index', 'transformer': 'index', 'transformer by day': 'day'}

def trained(world, way='lstm', task=1, encoder='bimodal', frozen=True, **changes):
    "One of `ways` as a run"
    r = world.recipe|dict(position=ways[way])|changes
    on = world.series if task==1 else world.brittany
    family = way.partition(' ')[0]
    return training(on, getattr(world, encoder), task, family, 0, r, 0, frozen=frozen)

def recorded(run): return np.load(run.path/'predictions.npy')

def check_model(run, task):
    "It predicts what is recorded, to the byte; own normalisation is in its file"
    model = load_model(run.get())
    cls, probability = model.predict(task.path/'val.h5')
    assert cls.astype('uint8').tobytes()==recorded(run).tobytes()
    assert len(set(cls))>1
    assert (probability.argmax(1)==cls).all()
    np.testing.assert_allclose(probability.sum(1), 1, rtol=1e-5)
    assert probability.shape==(len(cls), len(model.classes))
    assert model.classes==result(run)['classes']
    unnamed = read_part(task.path/'val.h5')|dict(own={})
    assert (model.predict(unnamed)[0]==cls).all()

@pytest.mark.parametrize('task', [1, 3])
@pytest.mark.parametrize('encoder, frozen', [('bimodal', True), ('untrained', False)])
@pytest.mark.parametrize('way', ways)
def test_a_kept_model_predicts_what_is_recorded(world, way, encoder, frozen, task):
    run = trained(world, way, task, encoder, frozen)
    check_model(run, world.series if task==1 else world.brittany)

def test_tasks_are_normalised_as_they_say(world):
    "Task 3 by itself, tasks 1 and 2 as the encoder was: else the test before tests little"
    own = [bool(read_part(task.path/'val.h5')['own']) for task in (world.series, world.brittany)]
    assert own==[False, True]

@pytest.mark.parametrize('encoder, frozen', [('supervised', True), ('bimodal', False)])
def test_models_on_raw_bands_and_tuned_ones(world, encoder, frozen):
    check_model(trained(world, 'lstm', 1, encoder, frozen), world.series)

def test_a_model_on_seasons_with_gaps(world, smoke):
    task = series(1, smoke.data, world.recipe|dict(clouds='clear'), 0)
    assert not read_part(task.get()/'val.h5')['mask'].all()
    for frozen in (True, False):
        run = training(task, world.untrained, 1, 'transformer', 0, world.recipe, 0, frozen=frozen)
        check_model(run, task)

def test_a_model_and_its_encoder_elsewhere(world, fresh_runs, tmp_path, monkeypatch):
    "Two files are enough; without the encoder's, the error says which one it was"
    with monkeypatch.context() as m:
        m.setenv('CROPNB_RUNS', str(world.runs))
        run = trained(world)
        model = shutil.copy(run.get()/'model.safetensors', tmp_path)
        enc = shutil.copy(world.bimodal.path/'encoder.safetensors', tmp_path)
        val = shutil.copy(world.series.path/'val.h5', tmp_path)
        want = recorded(run)
    says = f'model.safetensors stands on the encoder {world.bimodal.id}, .*: pass encoder='
    with pytest.raises(FileNotFoundError, match=says): load_model(model)
    assert (load_model(model, enc).predict(val)[0]==want).all()

def test_only_trainings_keep_a_model(world):
    "Not a probe, and not with keep_model=False"
    says = 'probes, and trainings with keep_model=False, keep no model'
    probe = probing(world.series, world.bimodal, 1, 'ridge', world.recipe, 0)
    kept, bare = trained(world), trained(world, keep_model=False)
    for run in (probe, bare):
        with pytest.raises(FileNotFoundError, match=says): load_model(run.get())
    kept.get()
    files = sorted(f.name for f in bare.path.iterdir())
    assert sorted(f.name for f in kept.path.iterdir())==sorted([*files, 'model.safetensors'])
    assert result(kept)==result(bare)
    assert recorded(kept).tobytes()==recorded(bare).tobytes()

def test_keeping_the_model_is_no_part_of_the_name(world):
    "But not keeping it is"
    run = trained(world)
    without = {k: v for k,v in run.recipe.items() if k!='keep_model'}
    assert Run(run.stage, without, run.make, **run.inputs).id==run.id
    assert trained(world, keep_model=False).id!=run.id
