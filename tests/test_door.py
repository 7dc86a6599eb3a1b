"What a new user meets: the package as pip installs it, the commands, a cluster, the site"
import json, os, shutil, stat, subprocess, sys
from pathlib import Path
import pytest
import cropnb
from cropnb.cluster import differences_text
from conftest import root

bin = Path(sys.executable).parent

def shell(words, cwd, **variables):
    "In a folder, with some variables; words, or a line"
    env = os.environ|variables
    line = isinstance(words, str)
    return subprocess.run(words, cwd=cwd, env=env, shell=line, capture_output=True, text=True)

# ---------------------------------------------------------------- the package
def test_offers():
    "What the README imports from the top, light until it is asked for"
    for name in ('load_encoder', 'load_model', 'recipe'): assert callable(getattr(cropnb, name))
    code = "import cropnb, sys; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    assert shell([sys.executable, '-c', code], root).returncode==0
    with pytest.raises(AttributeError, match='no_such'): cropnb.no_such

def test_version():
    said = shell([bin/'cropnb', '--version'], root, PYTHONPATH=str(root))
    assert said.stdout.strip()==f'cropnb {cropnb.__version__}'
    assert f'version = {cropnb.__version__}' in (root/'settings.ini').read_text()
    assert f'version: {cropnb.__version__}' in (root/'CITATION.cff').read_text()
    assert f'## {cropnb.__version__}' in (root/'CHANGELOG.md').read_text()

def test_a_reader_that_stops_early():
    "`cropnb differences | head -1`"
    variables = dict(PYTHONPATH=str(root), PATH=f'{bin}:/usr/bin:/bin')
    said = shell('cropnb differences | head -1', root, **variables)
    assert said.stdout.startswith('| what | the paper') and not said.stderr

def test_the_readme_has_the_differences():
    assert differences_text() in (root/'README.md').read_text()

wheel_code = '''
import json
from cropnb.engine.files import nbs_dir, repo_root, runs_dir
from cropnb.engine.records import commit
print(json.dumps([str(repo_root()), str(runs_dir()), str(nbs_dir()), commit()]))
'''

@pytest.mark.slow
def test_a_wheel_from_an_empty_folder(tmp_path):
    "Installed without a clone: runs in the working folder, notebooks in the package"
    wheels, home, empty = (tmp_path/name for name in ('wheels', 'home', 'empty'))
    copy = tmp_path/'copy'
    skip = shutil.ignore_patterns('.git', '.venv', 'runs', 'build', '_docs', '*.egg-info')
    shutil.copytree(root, copy, ignore=skip)
    pip = [sys.executable, '-m', 'pip', '-q']
    made = shell([*pip, 'wheel', '--no-deps', '--no-build-isolation', '-w', wheels, '.'], copy)
    assert made.returncode==0, made.stderr
    wheel, = wheels.iterdir()
    done = shell([*pip, 'install', '--no-deps', '--target', home, wheel], tmp_path)
    assert done.returncode==0, done.stderr
    empty.mkdir()
    variables = dict(PYTHONPATH=str(home), CROPNB_RUNS='')
    told = shell([sys.executable, '-c', wheel_code], empty, **variables).stdout
    want = [str(empty), str(empty/'runs'), str(home/'cropnb/notebooks'), f'v{cropnb.__version__}']
    assert json.loads(told)==want
    command = [sys.executable, '-m', 'papermill', '--no-progress-bar']
    book = home/'cropnb/notebooks/06_paper.ipynb'
    words = ['-p', 'profile', 'smoke', '-y', 'tasks: [1]', '-y', 'families: [transformer]']
    done = shell([*command, book, 'out.ipynb', *words], empty, **variables)
    assert done.returncode==0, done.stderr[-2000:]
    assert (empty/'runs/figures/twin-smoke/figure6.png').exists()

# ---------------------------------------------------------------- a cluster
sbatch = '''#!/bin/sh
# Stands for SLURM's: runs the job here, in the background
for script; do :; done
nohup sh "$script" > "{folder}/job.log" 2>&1 &
echo "Submitted batch job $!"
'''
scancel = '''#!/bin/sh
for job; do kill "$job" 2>/dev/null; done; true
'''

@pytest.mark.slow
def test_slurm(tmp_path):
    "The example, with stand-ins for sbatch and scancel: two workers make the smallest study"
    pytest.importorskip('dask_jobqueue', reason='pip install dask-jobqueue')
    for name,text in dict(sbatch=sbatch, scancel=scancel).items():
        path = tmp_path/name
        path.write_text(text.format(folder=tmp_path))
        path.chmod(path.stat().st_mode|stat.S_IEXEC)
    words = ['--profile', 'smoke', '--device', 'cpu', '--tasks', '1', '--families', 'lstm']
    variables = dict(PATH=f"{tmp_path}:{os.environ['PATH']}", CROPNB_RUNS=str(tmp_path/'runs'),
                     PYTHONPATH=str(root))
    command = [sys.executable, root/'examples/slurm.py', *words, '--workers', '2']
    done = shell([*command, '--memory', '2GB'], tmp_path, **variables)
    assert done.returncode==0, done.stderr[-3000:]
    assert len(list((tmp_path/'runs/downstream').glob('*/result.json')))>7

# ---------------------------------------------------------------- the site
@pytest.mark.slow
def test_the_site(tmp_path):
    "Every notebook is a page, every public function is in the reference, and search knows both"
    copy = tmp_path/'copy'
    skip = shutil.ignore_patterns('.git', '.venv', 'runs', 'build', '_docs', '*.egg-info')
    shutil.copytree(root, copy, ignore=skip)
    done = shell([sys.executable, 'docs/build.py'], copy, PYTHONPATH=str(copy))
    assert done.returncode==0, done.stderr[-2000:]
    site = copy/'_docs/site'
    assert 'What a training is called' in (site/'05_evaluate.html').read_text()
    reference = (site/'reference/cropnb.evaluate.html').read_text()
    assert 'share of runs in which i has the higher validation accuracy' in reference
    index = json.loads((site/'search/search_index.json').read_text())
    titles = {page['title'] for page in index['docs']}
    assert {'win_matrix', 'Evaluation', 'Should I pre-train?'}<=titles

# ---------------------------------------------------------------- before a long run
def test_a_plan_starts_nothing(tmp_path):
    "At the smallest size; then there is nothing to tell about"
    runs = dict(CROPNB_RUNS=str(tmp_path/'runs'), PYTHONPATH=str(root))
    code = "from cropnb.cli import main; main({})"
    asked = ['plan', '--profile', 'smoke', '--tasks', '1', '--families', 'lstm']
    said = shell([sys.executable, '-c', code.format(asked)], root, **runs)
    assert said.returncode==0, said.stderr
    assert 'nothing was started' in said.stdout and '04_downstream' in said.stdout
    assert not list(tmp_path.glob('runs/*/*/result.json'))
    said = shell([sys.executable, '-c', code.format(['status'])], root, **runs)
    assert 'no run of 06_paper has begun' in said.stderr
