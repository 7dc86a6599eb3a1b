"What is real in the samples goes the same way as the twin; skipped where the samples are missing."
import json
import numpy as np, pandas as pd, pytest
from rasterio.transform import from_origin
from cropnb.data import pairs, resolve
from cropnb.downstream import training
from cropnb.engine.recipes import recipe
from cropnb.evaluate import relative_gain, scores, win_matrix
from cropnb.prepare.fields import split_fields
from cropnb.prepare.seasons import own_task
from cropnb.pretrain import encoders
from cropnb.sources.denethor import PlanetScope, crops, rasterise, read_parcels, read_ps
from cropnb.sources.table import series_from_table

tiles = [('de_train_2018', 432000, 5832000), ('de_test_2019', 408000, 5856000)] # west, north

def whole_fields(g, west, north):
    "Area of the large parcels that lie wholly in the tile, in pixels of 10 m"
    g = g.set_index('field_id')
    b = g.bounds
    inside = (b.minx>=west) & (b.maxx<=west+24000) & (b.miny>=north-24000) & (b.maxy<=north)
    area = g.area/100
    return area[inside & (area>100)]

@pytest.mark.parametrize('file,west,north', tiles)
def test_denethor_parcels(sample, file, west, north):
    g = read_parcels(sample('denethor_labels')/f'{file}.geojson', 'EPSG:32633')
    assert len(g)==50
    assert g.crop.between(1, 9).all()
    assert g.field_id.is_unique
    assert str(g.crs)=='EPSG:32633'
    left,bottom,_,_ = g.total_bounds                             # they lie in their tile
    assert west-500<left<west+24500
    assert north-24500<bottom<north+500

    ids = rasterise(g, from_origin(west, north, 10, 10), (2400, 2400))
    pixels = pd.Series(ids[ids>=0]).value_counts()
    area = whole_fields(g, west, north)
    assert len(area)>20
    burnt = pixels.reindex(area.index).fillna(0)
    assert (burnt/area-1).abs().max()<.1

    parts = split_fields(g.field_id, g.crop, dict(pretrain=.7, train=.21, val=.09), 0)
    assert sorted(sum(parts.values(), []))==sorted(g.field_id)

def test_planet_fusion(sample):
    folder = sample('planet_fusion_sample')
    ps = PlanetScope({np.datetime64('2017-11-30'): folder/'data.tif'})
    image = ps[0]
    assert image.shape==(400, 400, 4)
    assert image.dtype=='uint16'
    assert ps.transform.a==3
    medians = np.median(image/1e4, (0, 1))
    assert (0<medians).all()
    assert (medians<.6).all()
    blue,green,red,nir = medians
    assert nir>red                                               # so the order is as we name it
    with pytest.raises(ValueError, match='qa.tif has 9 bands'):
        read_ps(folder/'qa.tif')

groups = {451: 'grassland', 452: 'grassland', 453: 'grassland', 441: 'grassland', 115: 'wheat',
          400: 'maize', 131: 'barley', 132: 'barley', 311: 'rape'}
bavaria_bands = [f'B{b}_mean' for b in '1 2 3 4 5 6 7 8 8A 9 11 12'.split()]

def test_bavaria_from_series_to_win_matrix(sample, fresh_runs):
    "Series of 2018 near Munich, five crop groups, classified with the twin's smallest encoders"
    table = pd.read_csv(sample('bavaria_s2_parcels')/'bavaria_parcels_long_derived.csv')
    table = table.assign(crop=table.NC.map(groups)).dropna(subset='crop')
    s = series_from_table(table, 'id', 'Date', 'crop', bavaria_bands)
    assert s['time_series'].shape[1:]==(14, 12)
    assert s['classes']==sorted(set(groups.values()))
    task = fresh_runs/'bavaria'
    counts = own_task(task, s, 'Bavaria 2018 (real)', level='L1C')
    assert all(v['fields']>=3 for v in counts['val'].values())

    r = recipe('smoke', epochs=25, batch=32)
    trained = encoders(pairs(resolve('twin', 'smoke', 0), r, 0), r, 0).values()
    runs = [training(task, e, 4, 'transformer', 0, r, 0) for e in trained]
    for run in runs: run.get()
    t = scores(runs)
    assert set(t.scene)=={'Bavaria 2018 (real)'}
    assert set(t.pretrained_on)=={'SIMULATED twin:smoke'}
    supervised = t[t.variant=='supervised'].accuracy.item()
    assert supervised>.6, supervised                             # grassland alone is 45 %
    wins = win_matrix(t).to_numpy()
    np.testing.assert_allclose(wins+wins.T, 1)
    gains = relative_gain(t)
    assert len(gains)==5
    assert np.isfinite(gains.gain).all()

def test_crops_are_denethors(sample):
    names = {}
    for path in sample('denethor_labels').glob('*.geojson'):
        for feature in json.loads(path.read_text())['features']:
            about = feature['properties']
            names[about['crop_id']] = about['crop_name']
    assert all(crops[i-1]==name for i,name in names.items())
