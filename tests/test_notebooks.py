"What nbdev_test can't see: notebooks stay parameterised, typed, on the plain kernel and in step with the package."
import json, shutil, subprocess
import pytest
from papermill import inspect_notebook
from conftest import root

nbs = sorted(p for p in (root/'nbs').rglob('*.ipynb') if not any(o[0] in '_.' for o in p.relative_to(root).parts))
name = lambda p: p.stem
def cells(p): return json.loads(p.read_text(encoding='utf-8'))['cells']
def source(c): return ''.join(c['source'])
def tagged(p, tag): return [c for c in cells(p) if tag in c['metadata'].get('tags', [])]
runs = [p for p in nbs if tagged(p, 'parameters')]

def test_which(): assert [p.stem for p in runs]==['00_data', '03_pretrain', '04_downstream', '04_probing', '05_evaluate', '06_paper', '00_difficulty', '01_models', '02_audit', '05_replication'], 'Has nbdev_clean stripped the tags?'

@pytest.mark.parametrize('p', runs, ids=name)
def test_parameters(p):
    "One tagged cell, not exported, every line of which papermill understands and explains"
    c, = tagged(p, 'parameters')
    assert '#|' not in source(c)
    ps = inspect_notebook(str(p)); assert len(ps)==len(source(c).strip().splitlines())
    for o in ps.values(): assert o['inferred_type_name'] in ('str', 'int', 'float', 'bool', 'list', 'dict') and o['help'], o
    assert not tagged(p, 'injected-parameters')
    assert any('check_params(globals()' in source(c) for c in cells(p))

@pytest.mark.parametrize('p', nbs, ids=name)
def test_saved(p):
    "On the plain kernel, without errors in the output, without paths of a machine, without an export inside"
    nb = json.loads(p.read_text(encoding='utf-8')); assert nb['metadata']['kernelspec']['name']=='python3'
    outs = [o for c in nb['cells'] for o in c.get('outputs', [])]
    assert not [o for o in outs if o['output_type']=='error']
    assert str(root.parent) not in json.dumps(outs) and 'site-packages' not in json.dumps(outs)
    assert not any('nbdev_export(' in source(c) for c in nb['cells'])

def test_in_step(tmp_path):
    "Exporting and cleaning a copy of the repository changes nothing"
    skip = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints', '.last_checked')
    shutil.copy(root/'settings.ini', tmp_path)
    for o in ('nbs', 'cropnb'): shutil.copytree(root/o, tmp_path/o, ignore=skip)
    files = lambda: {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob('*') if p.is_file() and p.name!='.last_checked' and '__pycache__' not in p.parts}
    old = files()
    for cmd in ('nbdev_export', 'nbdev_clean'): subprocess.run([cmd], cwd=tmp_path, check=True)
    new = files()
    assert sorted(str(o) for o in new if new[o]!=old.get(o))==[]
