"The twin, beyond its notebooks: a kill, real parcels, the way through the readers, who knows of it"
import ast, os, signal, subprocess, sys, time
import geopandas as gpd, h5py, numpy as np, pytest, rasterio
from conftest import root
from cropnb.data import pairs, resolve, series
from cropnb.engine.recipes import recipe
from cropnb.engine.records import result
from cropnb.prepare.fields import open_tile
from cropnb.twin.landscape import Day, Land, truth
from cropnb.twin.scene import scene

written = '.npy', '.tif', '.h5', '.csv', '.pkl', '.geojson'

def files(d):
    "Bytes of all that a scene holds"
    fs = [f for f in sorted(d.rglob('*')) if f.suffix in written]
    return {str(f.relative_to(d)): f.read_bytes() for f in fs}

def scenes_in(runs):
    "The one scene in a folder of runs"
    return files(next((runs/'scene').iterdir()))

def python(code, runs, **env):
    "Run code in a process of its own, its runs in a folder of its own"
    env = os.environ|dict(CROPNB_RUNS=str(runs))|env
    subprocess.run([sys.executable, '-c', code], cwd=root, env=env, check=True, capture_output=True)

def test_shipped_files_are_small():
    fs = [f for f in (root/'cropnb/twin').iterdir() if f.suffix in ('.safetensors', '.csv')]
    assert len(fs)==4
    assert sum(f.stat().st_size for f in fs)<400_000

def imported(path):
    "Names of the modules that a file imports"
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom): names.append(node.module or '')
        if isinstance(node, ast.Import): names += [a.name for a in node.names]
    return names

def test_only_resolve_and_the_command_line_know_the_twin():
    for f in (root/'cropnb').glob('*.py'):
        if f.stem in ('data', 'cli'): continue # `resolve` is in data
        assert not [n for n in imported(f) if 'twin' in n], f

def test_no_gpl_at_run_time():
    code = ("import sys, cropnb.twin.sample, cropnb.twin.realism;"
            "sys.exit(any(m in sys.modules for m in ('progeosail', 'pyrsr', 'numba')))")
    assert subprocess.run([sys.executable, '-c', code], cwd=root).returncode==0

def killed(code, runs):
    "Start code and kill it after a few dates"
    env = os.environ|dict(CROPNB_RUNS=str(runs))
    p = subprocess.Popen([sys.executable, '-c', code], cwd=root, env=env, start_new_session=True)
    while p.poll() is None and len(list(runs.rglob('tmp/train-*')))<=5: time.sleep(.02)
    assert p.poll() is None
    os.killpg(p.pid, signal.SIGKILL)
    p.wait()

def test_killed_and_gone_on(tmp_path):
    "kill -9 while a scene is written; it goes on, and the bytes are those of an undisturbed one"
    code = "from cropnb.twin.scene import scene; scene('tiny,dates=40', 5).get()"
    killed(code, tmp_path/'a')
    for d in 'ab': python(code, tmp_path/d)
    a,b = scenes_in(tmp_path/'a'), scenes_in(tmp_path/'b')
    assert len(a)>45
    assert a==b

def brightness(name):
    "Mean blue of each PlanetScope image of a scene"
    images = sorted(scene(name, 1).get().rglob('sr.tif'))
    return np.array([rasterio.open(f).read(1).mean() for f in images])

def test_raw_planetscope_is_cloudy_and_fusion_is_not(fresh_runs):
    assert brightness('tiny,ps=raw').max()>3000
    assert brightness('tiny').max()<2000
    assert brightness('tiny,ps=raw,clouds=0').max()<2000

def test_every_day_of_planetscope(fresh_runs):
    d = scene('tiny,extent=240,daily=True,dates=3').get()
    assert len(list(d.rglob('sr.tif')))==365
    assert len(open_tile(d).first.dates)==3

def test_truth_is_what_a_clear_pixel_sees(fresh_runs):
    "Clean reflectance against the file on a clear day: calibration, haze, noise between, no more"
    run = scene('tiny,clouds=0', 2)
    tile, i = open_tile(run.get()), 6
    doy = tile.first.dates[i].astype('datetime64[D]').item().timetuple().tm_yday
    clean = truth(Day(Land(run.recipe), doy), 0, 0, 600)
    infrared = clean['s2'].numpy()[...,7].ravel()
    seen = (tile.first[i]/1e4)[...,7].ravel()
    slope,offset = np.polyfit(infrared, seen, 1)
    assert .9<slope<1.1
    assert abs(offset)<.02
    assert np.corrcoef(infrared, seen)[0,1]>.97
    assert (clean['clouds']['kind']==0).all()

def test_farms_real_parcels(sample, fresh_runs):
    "DENETHOR's own labels in place of simulated fields, through the readers"
    f = sample('denethor_labels')/'de_train_2018.geojson'
    fields = open_tile(scene(f'tiny,extent=2400,dates=2,farm={f}').get()).fields()
    real = gpd.read_file(f).to_crs('EPSG:32633')
    assert len(fields)>=5
    assert set(fields.crop)<=set(real.crop_id)
    farmed = fields.to_crs('EPSG:32633').area.to_numpy()
    same = np.isclose(real.area.to_numpy()[:,None], farmed, rtol=.02)
    assert same.any(0).mean()>.4 # the others are cut by the tile's edge
    assert scene(f'tiny,farm={f}').id!=scene('tiny').id

@pytest.fixture
def points(tmp_path):
    "Path of a file with one point instead of parcels"
    def write(**columns):
        f = tmp_path/'p.geojson'
        point = gpd.points_from_xy([13], [52])
        gpd.GeoDataFrame(columns, geometry=point, crs=4326).to_file(f, driver='GeoJSON')
        return f
    return write

def test_points_are_not_parcels(points, fresh_runs):
    f = points(crop_id=[1])
    with pytest.raises(ValueError, match='p.geojson: none of its parcels'):
        scene(f'tiny,farm={f}').get()

def test_a_parcel_file_without_classes(points, fresh_runs):
    f = points(name=['x'])
    with pytest.raises(ValueError, match=r"p.geojson: farming it needs a column 'crop_id'"):
        scene(f'tiny,farm={f}').get()
    with pytest.raises(FileNotFoundError, match='farm=nowhere'): scene('tiny,farm=nowhere')

def test_the_same_bytes_on_any_number_of_cores(tmp_path):
    "One thread in every library against two, in processes of their own"
    code = "from cropnb.twin.scene import scene; scene('tiny,extent=1260,dates=3', 5).get()"
    for n in '12': python(code, tmp_path/n, OMP_NUM_THREADS=n, OPENBLAS_NUM_THREADS=n)
    assert scenes_in(tmp_path/'1')==scenes_in(tmp_path/'2')

def test_bands_keep_their_resolution(fresh_runs):
    "On disk the bands of 20 and 60 m have one value in 2 x 2 or 6 x 6, clouds and noise included"
    path = next(scene('tiny', 3).get().rglob('*_train_*/**/bands.npy'))
    x = np.load(path, mmap_mode='r')
    n = x.shape[1]
    for k,two in ((2, [4, 11]), (6, [0, 9])):
        cells = x[...,two].reshape(len(x), n//k, k, n//k, k, 2)
        assert (cells==cells[:,:,:1,:,:1]).all()

def twin(folder, options):
    "The command line"
    from cropnb.cli import main
    main(['twin', str(folder), *options.split()])

def test_sampled_twin_through_the_data_room(tmp_path, fresh_runs, capfd):
    "`cropnb twin` writes the authors' layout; its pairs are aligned, its series become tasks"
    folder = tmp_path/'s'
    twin(folder, '--pairs 14400 --train 20 --parcels 20')
    data = resolve(str(folder))
    r = recipe('smoke', min_dates=recipe('paper')['min_dates'])
    assert result(pairs(data, r, 0).get())['pairs']==14_400
    assert 'the pairs are aligned' in capfd.readouterr().out
    for task in (1, 2, 3):
        made = h5py.File(series(task, data, r, 0).get()/'val.h5')
        assert made['time_series'].shape[2]==12

def test_sampled_twin_is_kept(tmp_path):
    "Files that are there are kept; other settings are refused"
    folder = tmp_path/'s'
    small = '--pairs 144 --parcels 0 --train '
    twin(folder, small+'10')
    path = folder/'pretraining_point2.h5'
    before = path.stat().st_mtime_ns
    twin(folder, small+'10')
    assert path.stat().st_mtime_ns==before
    with pytest.raises(SystemExit, match='other settings'): twin(folder, small+'20')

def test_sampling_is_a_tensor_program_for_any_device():
    import torch
    if not torch.cuda.is_available(): pytest.skip('no GPU: not yet measured on one')
    from cropnb.twin.sample import Crowd, sample_pairs
    on_gpu, on_cpu = (sample_pairs(Crowd(90, dates=6, device=d), 600) for d in ('cuda', 'cpu'))
    assert abs(on_gpu['s2'].mean()/on_cpu['s2'].mean()-1)<.1
