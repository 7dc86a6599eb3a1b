"What is real in the samples goes the same way as the twin; skipped where the samples are not at hand."
import numpy as np, pandas as pd, pytest
from rasterio.transform import from_origin
from cropnb.core import recipe, resolve
from cropnb.data import own_task, pairs, split_fields
from cropnb.downstream import training
from cropnb.evaluate import relative_gain, scores, win_matrix
from cropnb.pretrain import encoders
from cropnb.sources.denethor import PlanetScope, crops, rasterise, read_parcels
from cropnb.sources.table import series_from_table

@pytest.mark.parametrize('file,west,north', [('de_train_2018', 432000, 5832000), ('de_test_2019', 408000, 5856000)])
def test_denethor_parcels(sample, file, west, north):
    g = read_parcels(sample('denethor_labels')/f'{file}.geojson', 'EPSG:32633')
    assert len(g)==50 and g.crop.between(1, 9).all() and g.field_id.is_unique and str(g.crs)=='EPSG:32633'
    b = g.total_bounds; assert west-500<b[0]<west+24500 and north-24500<b[1]<north+500      # they lie in their tile
    ids = rasterise(g, from_origin(west, north, 10, 10), (2400, 2400))
    px = pd.Series(ids[ids>=0]).value_counts(); area = g.set_index('field_id').area/100      # hectares of pixels against those of polygons
    big = area[area>100]
    inside = g.set_index('field_id').bounds.eval(f'minx>={west} and maxx<={west+24000} and miny>={north-24000} and maxy<={north}')
    big = big[inside[big.index]]
    assert len(big)>20 and (px.reindex(big.index).fillna(0)/big-1).abs().max()<.1
    s = split_fields(g.field_id, g.crop, dict(pretrain=.7, train=.21, val=.09), 0)
    assert sorted(sum(s.values(), []))==sorted(g.field_id)

def test_planet_fusion(sample):
    ps = PlanetScope({np.datetime64('2017-11-30'): sample('planet_fusion_sample')/'data.tif'})
    a = ps[ps.dates[0]]; assert a.shape==(4, 400, 400) and a.dtype=='uint16' and ps.transform.a==3
    r = a/1e4; assert (0<np.median(r, (1, 2))).all() and (np.median(r, (1, 2))<.6).all()
    assert np.median(r[3])>np.median(r[2])                                            # near infrared above red: the order is blue, green, red, NIR
    from cropnb.sources.denethor import read_ps
    with pytest.raises(ValueError, match='qa.tif has 9 bands'): read_ps(sample('planet_fusion_sample')/'qa.tif')

groups = {451: 'grassland', 452: 'grassland', 453: 'grassland', 441: 'grassland', 115: 'wheat', 400: 'maize', 131: 'barley', 132: 'barley', 311: 'rape'}

def test_bavaria_from_series_to_win_matrix(sample, fresh_runs):
    "Real Sentinel-2 series of 2018 near Munich, five crop groups, classified with the twin's smallest encoders"
    df = pd.read_csv(sample('bavaria_s2_parcels')/'bavaria_parcels_long_derived.csv')
    df = df.assign(crop=df.NC.map(groups)).dropna(subset='crop')
    bs = [f'B{b}_mean' for b in '1 2 3 4 5 6 7 8 8A 9 11 12'.split()]
    s = series_from_table(df, 'id', 'Date', 'crop', bs); assert s['time_series'].shape[1:]==(14, 12) and s['classes']==sorted(set(groups.values()))
    n = own_task(fresh_runs/'bavaria', s, 'Bavaria 2018 (real)', level='L1C'); assert all(v['fields']>=3 for v in n['val'].values())
    r = recipe('smoke', epochs=25, batch=32); d = resolve('twin', 'smoke', 0)
    runs = [training(fresh_runs/'bavaria', e, 4, 'transformer', 0, r, 0) for e in encoders(pairs(d, r, 0), r, 0).values()]
    for c in runs: c.get()
    t = scores(runs); assert set(t.scene)=={'Bavaria 2018 (real)'} and set(t.pretrained_on)=={'SIMULATED twin:smoke'}
    sup = t[t.variant=='supervised'].accuracy.item(); assert sup>.6, sup            # grassland alone is 45 %
    w = win_matrix(t); np.testing.assert_allclose(w.to_numpy()+w.to_numpy().T, 1)
    assert len(relative_gain(t))==5 and np.isfinite(relative_gain(t).gain).all()

def test_crops_are_denethors(sample):
    import json
    names = {f['properties']['crop_id']: f['properties']['crop_name'] for p in sample('denethor_labels').glob('*.geojson') for f in json.loads(p.read_text())['features']}
    assert all(crops[i-1]==n for i,n in names.items())
