"The README's commands do what it says: the main job at the smallest profile, the one-liner as written, its Python as written."
import importlib.util, json, os, re, subprocess, sys
from pathlib import Path
import pandas as pd, pytest
from conftest import root

text = (root/'README.md').read_text(encoding='utf-8')
def blocks(lang): return re.findall(rf'```{lang}\n(.*?)```', text, re.S)
lines = [l for b in blocks('sh') for l in b.strip().splitlines()]
env = os.environ|dict(PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
def sh(cmd): return subprocess.run(cmd, shell=True, cwd=root, env=env, capture_output=True, text=True)

@pytest.fixture
def make(monkeypatch):
    "make.py, with the environment that runs the tests in the place of .venv"
    spec = importlib.util.spec_from_file_location('make', root/'make.py'); m = importlib.util.module_from_spec(spec); spec.loader.exec_module(m)
    monkeypatch.setattr(m, 'bin', Path(sys.executable).parent); return m

def test_commands_exist(make):
    assert {'python3 make.py figures', 'python3 make.py test'}<=set(lines)
    for f in ('figures', 'test', 'lab'): assert callable(getattr(make, f)) and f'make.py {f}' in make.__doc__

def test_main_job(make, tmp_path, fresh_runs, capfd):
    "All of the paper at `smoke`: figures, tables, score table; a second time, nothing is left to do and the bytes are the same"
    out = tmp_path/'figures'
    make.figures('-p', 'profile', 'smoke', '-p', 'figures', str(out))
    pictures = [f'figure{i}' for i in (1, 2, 5, 6, 7, 8)]+[f'{k}_task{t}' for k in ('season', 'labels', 'confusions') for t in (1, 2, 3)]+['embeddings_untrained', 'embeddings_bimodal']
    want = {f'{p}.{e}' for p in pictures for e in ('png', 'svg')} | {f'{t}.{e}' for t in ('table1', 'controls', 'claims') for e in ('csv', 'md')} | {'scores.csv', 'per_class.csv', 'intervals.csv', 'table1.tex'}
    assert {p.name for p in out.iterdir()}==want
    s = pd.read_csv(out/'scores.csv')
    assert len(s)==3*3*7+3*(6*3+1) and set(s.family)=={'lstm', 'inception', 'transformer', 'ridge', 'linear', 'knn', 'forest'} and set(s.variant)=={'supervised', 'untrained', 'unimodal', 'bimodal', 'end_to_end'} and set(s.scene)=={'SIMULATED twin:smoke'}
    assert s.accuracy.between(0, 1).all() and s.groupby('task').n_val.first().to_dict()=={1: 54, 2: 54, 3: 36}
    assert 'SIMULATED twin:smoke' in (out/'figure6.svg').read_text() and 'no evidence' in (out/'table1.md').read_text()
    said = capfd.readouterr().out; assert 'to do, about' in said and 'done in' in said
    old = {p.name: p.read_bytes() for p in out.iterdir()}
    make.figures('-p', 'profile', 'smoke', '-p', 'figures', str(out))
    assert re.findall(r'(\d+) runs to do', capfd.readouterr().out)==['0', '0', '0'] and {p.name: p.read_bytes() for p in out.iterdir()}==old
    nb = json.loads((root/'runs'/'06_paper.ipynb').read_text()); assert not any(o['output_type']=='error' for c in nb['cells'] for o in c.get('outputs', []))

def test_one_liner():
    one = 'papermill nbs/03_pretrain.ipynb out.ipynb -p mode bimodal'; assert one in lines
    r = sh(one+' -p profile smoke'); assert r.returncode==0, r.stderr[-2000:]
    assert 'encoder.safetensors: bimodal' in (root/'out.ipynb').read_text(); (root/'out.ipynb').unlink()

@pytest.mark.parametrize('args,says', [('-p moed bimodal', 'No parameter moed: this notebook has mode, corruption, profile'), ('-p mode s1', "'unimodal', 'bimodal'"),
                                       ('-p corruption 1.5 -p profile smoke', 'corruption=1.5 is not in 0..1'), ('-p seed one', "seed='one' is not of type int")])
def test_wrong_parameters(args, says, tmp_path):
    r = sh(f'papermill nbs/03_pretrain.ipynb {tmp_path}/out.ipynb {args}'); assert r.returncode!=0 and says in r.stderr

def test_help():
    r = sh('papermill --help-notebook nbs/03_pretrain.ipynb').stdout
    for k in ('mode', 'corruption', 'profile', 'epochs', 'seed', 'device', 'data'): assert re.search(rf'^ *{k}: ', r, re.M), r

def test_python(fresh_runs):
    for b in blocks('python'): exec(b, ns := {})
    assert tuple(ns['enc'].embed([[[3000.]*12]*144]).shape)==(1, 144, 256)

def test_the_summary_of_the_claims():
    "What the README counts is what the ledger says"
    t = pd.read_csv(root/'figures'/'claims.csv'); n = t.groupby(['data', 'verdict']).size()
    for data,line in re.findall(r'^\| (SIMULATED twin:demo|this code|the paper\'s own numbers) \| (.*) \|$', text, re.M): assert [int(v) for v in line.split(' | ')]==[n.get((data, v), 0) for v in ('holds', 'does not hold', 'not testable here')], data
    assert text.count('| this code |')==1 and text.count('| SIMULATED twin:demo |')==1

def test_the_claims_on_the_audit():
    "The same of the audit's stored table"
    from cropnb.claims import ledger, summary
    from cropnb.studies.replication import named
    t = pd.read_csv(root/'nbs/studies/replication.csv'); on = 'SIMULATED, the audit'; n = summary(ledger(named(t[t.fields==0]), on)).loc[on].tolist()
    assert [[int(v) for v in m.split(' | ')] for m in re.findall(rf'^\| {on} \| (.*) \|$', text, re.M)]==[n]
