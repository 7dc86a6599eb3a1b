"What nbdev_test cannot see: notebooks stay parameterised, typed and in step with the package"
import json, re, shutil, subprocess, sys
import pytest
from papermill import inspect_notebook
from conftest import root
from cropnb.encoder import load_encoder

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
    want = ['00_data', '03_pretrain', '03_seasons', '04_downstream', '04_few_labels',
            '04_probing', '05_evaluate', '06_paper', '07_map', '08_explore',
            '00_difficulty', '01_models', '02_audit', '05_replication',
            '07_length', '08_real', '09_sensors',
            '10_few_labels', '11_methods', '13_maps']
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
    assert any(re.search(r'check_params\(\s*globals\(\)', source(c)) for c in cells(path))

laid_out = [p for p in parameterised if any('## How it works' in source(c) for c in cells(p))]

def test_chapters_begin_with_their_run():
    "Of these at least; the rest of the parameterised ones have no source, or are studies"
    chapters = ['00_data', '03_pretrain', '04_downstream', '04_few_labels', '04_probing']
    assert [p.stem for p in laid_out]==[*chapters, '05_evaluate', '06_paper', '08_explore']

@pytest.mark.parametrize('path', laid_out, ids=name)
def test_source_comes_after_the_run(path):
    "Nothing is defined for the package before the reader has set parameters and seen a result"
    before = []
    for cell in cells(path):
        if '## How it works' in source(cell): break
        before.append(cell)
    exported = [source(c) for c in before if source(c).startswith('#| export')]
    assert not [text for text in exported if re.search(r'^(def|class|@)', text, re.M)]
    assert any(c.get('outputs') for c in before)

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

def pretrain(out, *args):
    "nbs/03_pretrain.ipynb at the smallest profile, through papermill"
    words = ('nbs/03_pretrain.ipynb', str(out), '-p', 'profile', 'smoke', *args)
    cmd = [sys.executable, '-m', 'papermill', '--no-progress-bar', *words]
    return subprocess.run(cmd, cwd=root, capture_output=True, text=True)

@pytest.mark.slow
def test_a_method_and_its_options_as_parameters(tmp_path, fresh_runs):
    "They reach the encoder's file"
    args = ('-p', 'method', 'barlow_twins', '-y', 'options: {weight: 0.01}')
    done = pretrain(tmp_path/'out.ipynb', *args)
    assert done.returncode==0, done.stderr[-2000:]
    made = [load_encoder(f.parent).what for f in fresh_runs.glob('pretrain/*/encoder.safetensors')]
    chosen = [(what['method'], what['options']) for what in made if what['mode']=='bimodal']
    assert ('barlow_twins', dict(weight=.01)) in chosen

@pytest.mark.slow
@pytest.mark.parametrize('args, says', [
    (('-p', 'method', 'nothing'), "'', 'simclr', 'dcl', 'clip', 'moco'"),
    (('-p', 'method', 'barlow_twins', '-y', 'options: {of: 0.01}'),
        'BarlowTwins has no option of: it has weight=0.005'),
    (('-y', 'options: {temperature: warm}'), "option temperature='warm' is not of the type")])
def test_wrong_options_as_parameters(tmp_path, fresh_runs, args, says):
    "An error that lists the right ones"
    done = pretrain(tmp_path/'out.ipynb', *args)
    assert done.returncode!=0
    assert says in done.stderr
