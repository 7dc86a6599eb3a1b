"What nbdev_test cannot see: notebooks stay parameterised, typed and in step with the package"
import json, shutil, subprocess
import pytest
from papermill import inspect_notebook
from conftest import root

def hidden(path): return any(part[0] in '_.' for part in path.relative_to(root).parts)
def name(path): return path.stem
def notebook(path): return json.loads(path.read_text(encoding='utf-8'))
def cells(path): return notebook(path)['cells']
def source(cell): return ''.join(cell['source'])
def tagged(path, tag): return [c for c in cells(path) if tag in c['metadata'].get('tags', [])]

nbs = sorted(p for p in (root/'nbs').rglob('*.ipynb') if not hidden(p))
parameterised = [p for p in nbs if tagged(p, 'parameters')]
kinds = ('str', 'int', 'float', 'bool', 'list', 'dict')

def test_which():
    want = ['00_data', '03_pretrain', '04_downstream', '04_probing', '05_evaluate', '06_paper',
            '00_difficulty', '01_models', '02_audit', '05_replication']
    assert [p.stem for p in parameterised]==want, 'Has nbdev_clean stripped the tags?'

@pytest.mark.parametrize('path', parameterised, ids=name)
def test_parameters(path):
    "One tagged cell, not exported, every line of which papermill understands and explains"
    cell, = tagged(path, 'parameters')
    assert '#|' not in source(cell)
    known = inspect_notebook(str(path))
    assert len(known)==len(source(cell).strip().splitlines())
    for p in known.values(): assert p['inferred_type_name'] in kinds and p['help'], p
    assert not tagged(path, 'injected-parameters')
    assert any('check_params(globals()' in source(c) for c in cells(path))

@pytest.mark.parametrize('path', nbs, ids=name)
def test_saved(path):
    "On the plain kernel, without errors or a machine's paths in the output, without an export"
    nb = notebook(path)
    assert nb['metadata']['kernelspec']['name']=='python3'
    outputs = [o for c in nb['cells'] for o in c.get('outputs', [])]
    assert not [o for o in outputs if o['output_type']=='error']
    assert str(root.parent) not in json.dumps(outputs)
    assert 'site-packages' not in json.dumps(outputs)
    assert not any('nbdev_export(' in source(c) for c in nb['cells'])

def files(folder):
    "Contents by relative path, without caches"
    fs = [p for p in folder.rglob('*') if p.is_file() and '__pycache__' not in p.parts]
    return {str(p.relative_to(folder)): p.read_bytes() for p in fs if p.name!='.last_checked'}

def test_in_step(tmp_path):
    "Exporting and cleaning a copy of the repository changes nothing"
    skip = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints', '.last_checked')
    shutil.copy(root/'settings.ini', tmp_path)
    for folder in ('nbs', 'cropnb'): shutil.copytree(root/folder, tmp_path/folder, ignore=skip)
    old = files(tmp_path)
    subprocess.run(['nbdev_export'], cwd=tmp_path, check=True)
    subprocess.run(['nbdev_clean'], cwd=tmp_path, check=True)
    new = files(tmp_path)
    assert sorted(path for path in new if new[path]!=old.get(path))==[]
