"The README's commands do what it says: the main job at the smallest profile, the rest as written"
import importlib.util, json, os, re, subprocess, sys
from pathlib import Path
import pandas as pd, pytest
from conftest import root
from cropnb.measure.claims import count_verdicts, ledger
from cropnb.measure.folders import publish

text = (root/'README.md').read_text(encoding='utf-8')
bin = Path(sys.executable).parent
env = os.environ|dict(PATH=f"{bin}{os.pathsep}{os.environ['PATH']}")

def blocks(language): return re.findall(rf'```{language}\n(.*?)```', text, re.S)

commands = '\n'.join(blocks('sh')).splitlines()

def shell(command):
    "From the repository's root, with the environment that runs the tests"
    return subprocess.run(command, shell=True, cwd=root, env=env, capture_output=True, text=True)

@pytest.fixture
def make(monkeypatch):
    "make.py, with the environment that runs the tests in the place of .venv"
    spec = importlib.util.spec_from_file_location('make', root/'make.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, 'bin', bin)
    return module

def test_commands_exist(make):
    assert {'python3 make.py figures', 'python3 make.py test'}<=set(commands)
    for name in ('figures', 'test', 'lab', 'docs', 'publish'):
        assert callable(getattr(make, name))
        assert f'make.py {name}' in make.__doc__

# ---------------------------------------------------------------- the main job
papermill = pytest.mark.xdist_group('papermill')   # in one process: they write the same notebook

pictures = [f'figure{i}' for i in (1, 2, 5, 6, 7, 8)]
pictures += [f'{kind}_task{t}' for kind in ('season', 'labels', 'confusions') for t in (1, 2, 3)]
pictures += ['embeddings_untrained', 'embeddings_bimodal']
tables = ['table1', 'controls', 'claims']
files = {f'{p}.{end}' for p in pictures for end in ('png', 'svg')}
files |= {f'{t}.{end}' for t in tables for end in ('csv', 'md')}
files |= {'scores.csv', 'per_class.csv', 'intervals.csv', 'table1.tex', 'made.json'}

base_models = {'lstm', 'inception', 'transformer'}
probes = {'ridge', 'linear', 'knn', 'forest'}
variants = {'supervised', 'untrained', 'unimodal', 'bimodal', 'end_to_end'}

def draw(make, *args): make.figures('-p', 'profile', 'smoke', *args)

def in_folder(folder): return '-p', 'figures', str(folder)

def changed_files():
    "What git says has changed, and what it does not know"
    words = ['git', 'status', '--porcelain']
    return subprocess.run(words, cwd=root, capture_output=True, text=True).stdout

def contents(folder): return {f.name: f.read_bytes() for f in folder.iterdir()}

def check_scores(table, base_models):
    "Of each task: base models on seven variants; three probes on six, and the forest on one"
    assert len(table)==3*(7*len(base_models)+6*3+1)
    assert set(table.family)==base_models|probes
    assert set(table.variant)==variants
    assert set(table.scene)=={'SIMULATED twin:smoke'}
    assert table.accuracy.between(0, 1).all()
    assert table.groupby('task').n_val.first().to_dict()=={1: 54, 2: 54, 3: 36}

def check_notebook():
    nb = json.loads((root/'runs'/'06_paper.ipynb').read_text())
    outputs = [o for c in nb['cells'] for o in c.get('outputs', [])]
    assert not any(o['output_type']=='error' for o in outputs)

@papermill
def test_main_job(make, tmp_path, capfd):
    "The paper at `smoke` with one base model: figures, tables, score table; git sees nothing"
    before, out = changed_files(), tmp_path/'figures'
    draw(make, *in_folder(out), '-y', 'families: [transformer]')
    assert changed_files()==before
    assert {f.name for f in out.iterdir()}==files
    check_scores(pd.read_csv(out/'scores.csv'), {'transformer'})
    assert 'SIMULATED twin:smoke' in (out/'figure6.svg').read_text()
    assert 'no evidence' in (out/'table1.md').read_text()
    assert not re.search(r'\b(nan|inf)\b', (out/'table1.md').read_text())
    assert publish(out, tmp_path/'shelf')==sorted(files-{'made.json'})
    said = capfd.readouterr().out
    assert 'to do, about' in said
    assert 'done in' in said
    check_notebook()

@papermill
@pytest.mark.slow
def test_main_job_twice(make, tmp_path, fresh_runs, capfd):
    "All of it, from nothing; then, nothing is left to do and the bytes are the same"
    out = tmp_path/'figures'
    draw(make, *in_folder(out))
    said = capfd.readouterr().out
    assert 'to do, about' in said
    assert 'done in' in said
    first = contents(out)
    assert first.keys()==files
    check_scores(pd.read_csv(out/'scores.csv'), base_models)
    draw(make, *in_folder(out))
    assert re.findall(r'(\d+) runs to do', capfd.readouterr().out)==['0', '0', '0']
    assert contents(out)==first
    check_notebook()

# ---------------------------------------------------------------- one notebook
def test_one_liner():
    command = 'papermill nbs/03_pretrain.ipynb out.ipynb -p mode bimodal'
    assert command in commands
    done = shell(command+' -p profile smoke')
    assert done.returncode==0, done.stderr[-2000:]
    out = root/'out.ipynb'
    assert 'encoder.safetensors: simclr bimodal' in out.read_text()
    out.unlink()

@pytest.mark.parametrize('args, says', [
    ('-p moed bimodal', 'No parameter moed: this notebook has mode, method, options, corruption'),
    ('-p mode s1', "'unimodal', 'bimodal'"),
    ('-p corruption 1.5 -p profile smoke', 'corruption=1.5 is not in 0..1'),
    ('-p seed one', "seed='one' is not of type int")])
def test_wrong_parameters(args, says, tmp_path):
    done = shell(f'papermill nbs/03_pretrain.ipynb {tmp_path}/out.ipynb {args}')
    assert done.returncode!=0
    assert says in done.stderr

def test_help():
    said = shell('papermill --help-notebook nbs/03_pretrain.ipynb').stdout
    for name in ('mode', 'corruption', 'profile', 'epochs', 'seed', 'device', 'data'):
        assert re.search(rf'^ *{name}: ', said, re.M), said

def test_python():
    for block in blocks('python'):
        names = {}
        exec(block, names)
    assert tuple(names['enc'].embed([[[3000.]*12]*144]).shape)==(1, 144, 256)

# ---------------------------------------------------------------- what it counts
verdicts = ('holds', 'does not hold', 'not testable here')

def counted(row):
    "Numbers of the rows of the README's table whose first cell is this"
    return [[int(n) for n in cells.split(' | ')]
            for cells in re.findall(rf'^\| {row} \| (.*) \|$', text, re.M)]

@pytest.mark.parametrize('row', ['SIMULATED twin:demo', 'this code', "the paper's own numbers"])
def test_the_summary_of_the_claims(row):
    "What the README counts is what the ledger says"
    claims = pd.read_csv(root/'figures'/'claims.csv')
    n = claims.groupby(['data', 'verdict']).size()
    assert counted(row)==[[n.get((row, verdict), 0) for verdict in verdicts]]

def test_the_claims_on_the_audit():
    "The same of the audit's stored table"
    on = 'SIMULATED, the audit'
    scores = pd.read_csv(root/'nbs/studies/replication.csv')
    judged = ledger(scores[scores.fields==0], on, by='name')
    assert counted(on)==[count_verdicts(judged).loc[on].tolist()]
